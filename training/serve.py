"""Serves the page on which a gallery is searched: `python -m training.serve --gallery GALLERY --run RUN`.

On this machine only, unless --host says otherwise; then every request needs a token. No request leaves the server.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.utils import cli
from training.utils.cli import Device

TOKEN = "GALLERY_TOKEN"


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Gallery of `python -m training.gallery`.
    gallery: Path
    # Run folder whose model reads the texts.
    run: Path | None = None
    # Folder of `python -m training.export` whose model reads the texts, without PyTorch.
    onnx: Path | None = None
    # Address to listen on; another one than of this machine needs a token.
    host: str = "127.0.0.1"
    # Port to listen on; 0 for any free one.
    port: int = 8000
    # Token of every request, at least 16 characters; by default GALLERY_TOKEN of the environment, else a new one where needed.
    token: str = ""
    # Names under which browsers address the server, beside HOST; "*" for any.
    name: tuple[str, ...] = ()
    # Engine of the search; all but `exact` need the extra `search`, and the last two a server: QDRANT_URL, PGVECTOR_URL.
    engine: Literal["exact", "faiss", "qdrant", "pgvector"] = "exact"
    # Requests a second of each client; 0 for any number. By default any number on this machine, else 20.
    rate: float | None = None
    # File to which every search is appended: who, when, what. Without it no query is written anywhere.
    audit: Path | None = None
    # Only search: no marks, no uploads.
    read_only: bool = False
    device: Device = "auto"


def main(argv: Sequence[str]) -> None:
    """Entry point: serves until interrupted. Raises what opening the model and the gallery raises, OSError for a port in use
    and an audit file that cannot be written."""
    arguments = cli.parse(Arguments, argv, "training.serve", __doc__)
    # Not at the top: --help need not wait for torch.
    try:
        import uvicorn
        from threadpoolctl import threadpool_limits

        from training.retrieval.web.app import LOCAL_NAMES, build_app, choose_token, is_local, reachable_name
        from training.retrieval.web.search_service import require_writable
    except ImportError as error:
        raise RuntimeError(
            f"the page needs starlette, uvicorn and threadpoolctl: pip install 'bdam-fast[web]' ({error})"
        ) from error
    from training.retrieval.embedders import open_embedder
    from training.retrieval.finder import Finder
    from training.retrieval.store import Gallery
    from training.utils.machine import return_freed_memory

    # Before anything large is allocated: blocks of an arena stay there.
    return_freed_memory()
    token = choose_token(arguments.host, arguments.token or os.environ.get(TOKEN, ""))
    local = is_local(arguments.host)
    # Before the model is loaded: a port in use is said at once, and so is an audit file that cannot be written.
    listener = _listen(arguments.host, arguments.port)
    if arguments.audit is not None:
        require_writable(arguments.audit)
    gallery = Gallery(arguments.gallery)
    embedder = open_embedder(arguments.run, arguments.onnx, arguments.device, threads=1)
    finder = Finder(gallery, embedder, arguments.engine)
    # Requests run side by side: a second thread of one would only take the core of another, and spins where it waits.
    threadpool_limits(1, user_api="blas")
    app = build_app(
        finder,
        hosts=(*LOCAL_NAMES, arguments.host, *arguments.name),
        token=token,
        rate=(0.0 if local else 20.0) if arguments.rate is None else arguments.rate,
        audit=arguments.audit,
        read_only=arguments.read_only,
    )
    port = listener.getsockname()[1]
    address = f"http://{reachable_name(arguments.host)}:{port}/{f'?token={token}' if token else ''}"
    print(f"{gallery.count()} images of {arguments.gallery}: {address}", flush=True)
    # access_log: addresses hold the queries.
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=15)
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}; give another --port") from error
    listener.listen(1024)
    return listener


if __name__ == "__main__":
    sys.exit(cli.run(main))
