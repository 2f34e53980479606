"""Application of the page: routes, middleware, and the server that runs it."""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from training.retrieval.finder import Finder
from training.retrieval.web import api, pages
from training.retrieval.web.guard import Guard
from training.retrieval.web.search_service import Service
from training.retrieval.web.uploads import remove_abandoned

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


def build_app(
    finder: Finder,
    *,
    hosts: Sequence[str] = LOCAL_NAMES,
    token: str = "",
    rate: float = 0.0,
    audit: Path | None = None,
    read_only: bool = False,
) -> Starlette:
    """The application. hosts: names under which the server may be addressed, "*" for any; the rest as in `Guard` and `Service`.
    Raises OSError for an audit file that cannot be written."""
    routes = [
        Route("/", pages.page),
        Route("/results", pages.results),
        Route("/image/{id}", pages.image),
        Route("/case/{name}", pages.case_page),
        Route("/mark", pages.mark, methods=["POST"]),
        Route("/query-image", pages.query_image, methods=["POST"]),
        Route("/add", pages.add, methods=["POST"]),
        Route("/job", pages.job),
        Route("/api", api.api_description),
        Route("/api/search", api.api_search),
        Route("/healthz", api.health),
        Route("/metrics", api.metrics),
        Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
    ]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=[url_name(host) for host in hosts], www_redirect=False),
        Middleware(Guard, token=token, rate=rate),
    ]
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: pages.error_page, 500: pages.error_page},
    )
    app.state.service = Service(finder, audit)
    app.state.writable = not read_only and os.access(finder.gallery.folder, os.W_OK)
    if app.state.writable:
        remove_abandoned(finder.gallery)
    return app


def url_name(host: str) -> str:
    """A host as browsers write it in addresses: of IPv6 the shortest form, in brackets."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return f"[{address}]" if address.version == 6 else host


def reachable_name(host: str) -> str:
    """Name in the address under which this machine reaches a server that listens on `host`."""
    # These two are no address of a machine, but every one of this one.
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "[::]": "[::1]"}.get(url_name(host), url_name(host))


def is_local(host: str) -> bool:
    """True for a host that other machines cannot reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def choose_token(host: str, token: str) -> str:
    """The token of a server: what was given, a new one where other machines can reach it, none on this machine. Raises
    ValueError for one that is short."""
    if token:
        if len(token) < 16:
            raise ValueError(f"--token must have at least 16 characters, got {len(token)}")
        return token
    return "" if is_local(host) else secrets.token_urlsafe(24)
