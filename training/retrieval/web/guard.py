"""Who may ask for what: a token, requests of foreign pages, the rate of each client, and headers that keep a browser at home."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "gallery_token"
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
# Longest path and parameters, and number of clients whose rate is remembered.
MOST_URL, MOST_CLIENTS = 8192, 4096
# Seconds of requests that a client may make at once.
BURST_SECONDS = 4.0


class Guard:
    """Middleware around everything. token: "" for none; rate: requests a second of each client, 0 for any number."""

    def __init__(self, app: ASGIApp, token: str, rate: float) -> None:
        self.app, self.token, self.rate = app, token, rate
        # Requests left and time of the last one, by client.
        self.clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self.app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        """Response to a request that is not let through."""
        if len(request.url.path) + len(request.url.query) > MOST_URL:
            return PlainTextResponse(f"the address is longer than {MOST_URL} characters", 414)
        if request.method not in ("GET", "HEAD") and not _is_own(request.headers):
            return PlainTextResponse("requests of other sites are refused", 403)
        if self.token and request.url.path != "/healthz":
            refusal = self._check_token(request)
            if refusal is not None:
                return refusal
        if self.rate and not self._has_turn(request.client.host if request.client else ""):
            return PlainTextResponse("too many requests; try again in a second", 429, {"retry-after": "1"})
        return None

    def _check_token(self, request: Request) -> Response | None:
        given = request.query_params.get("token")
        if given is not None and self._is_token(given) and request.method == "GET" and request.url.path == "/":
            # Into a cookie, and out of the address, which is seen and shared.
            response = RedirectResponse("/", 303)
            response.set_cookie(COOKIE, given, httponly=True, samesite="strict")
            return response
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if self._is_token(request.cookies.get(COOKIE, "")) or (scheme.lower() == "bearer" and self._is_token(bearer)):
            return None
        text = "this server needs its token: open /?token=TOKEN once, or send Authorization: Bearer TOKEN"
        return PlainTextResponse(text, 401, {"www-authenticate": "Bearer"})

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())

    def _has_turn(self, client: str) -> bool:
        now = time.monotonic()
        left, last = self.clients.pop(client, (self.rate * BURST_SECONDS, now))
        left = min(self.rate * BURST_SECONDS, left + (now - last) * self.rate)
        self.clients[client] = (left - 1 if left >= 1 else left, now)
        while len(self.clients) > MOST_CLIENTS:
            self.clients.popitem(last=False)
        return left >= 1


def _is_own(headers: Headers) -> bool:
    """True for a request of this page, or of a program that is no browser."""
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc == headers.get("host")
    return headers.get("sec-fetch-site", "none") in ("same-origin", "none")
