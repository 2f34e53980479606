"""The command that serves: addresses that answer, names of the server, and an audit file that cannot be written."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import threadpoolctl
import uvicorn
from starlette.testclient import TestClient

from tests.support.retrieval.galleries import HERE
from training import serve
from training.retrieval import embedders
from training.retrieval.web.app import build_app, url_name
from training.utils import cli, machine

Serve = Callable[..., int]


@pytest.fixture
def served(finder, monkeypatch) -> tuple[Serve, list[uvicorn.Server]]:
    """The command with a model of colours, which ends where it would wait for requests; and the servers that it made."""
    servers: list[uvicorn.Server] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        server.sockets = sockets  # type: ignore[attr-defined]
        servers.append(server)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr(machine, "return_freed_memory", lambda: None)
    monkeypatch.setattr(threadpoolctl, "threadpool_limits", lambda *_, **__: None)
    monkeypatch.setattr(embedders, "open_embedder", lambda *_, **__: finder.embedder)

    def command(*words: str) -> int:
        return cli.run(serve.main, ["--gallery", str(finder.gallery.folder), "--run", "r", "--port", "0", *words])

    return command, servers


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


HOSTS = ["127.0.0.1", "127.0.0.2", "localhost", "0.0.0.0", "::1", "0:0:0:0:0:0:0:1", "::", "::0"]


@pytest.mark.parametrize("host", HOSTS)
def test_the_printed_address_answers(host, served, capsys):
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    command, servers = served
    assert command("--host", host) == 0
    printed = re.search(r"60 images of .+: (http://\S+)$", capsys.readouterr().out.strip())
    assert printed is not None
    address = urlsplit(printed[1])
    with servers[0].sockets[0] as listener:  # type: ignore[attr-defined]
        assert address.port == listener.getsockname()[1]
        socket.create_connection((address.hostname or "", address.port), 10).close()
    # The server takes the name that a browser sends for it.
    client = TestClient(servers[0].config.app, base_url=f"http://{address.netloc}")  # type: ignore[arg-type]
    assert client.get(f"/?{address.query}").status_code == 200
    assert bool(address.query) == (host in ("0.0.0.0", "::", "::0"))


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("fd00::1", "[fd00::1]:8000"),
        ("fd00::1", "[fd00::1]"),
        ("FD00:0::0001", "[fd00::1]:8000"),
        ("[fd00::1]", "[fd00::1]:8000"),
        ("192.168.1.5", "192.168.1.5:8000"),
        ("Gallery.example", "gallery.EXAMPLE:80"),
        ("*.example", "a.example"),
        ("*", "anything"),
    ],
)
def test_names_of_a_server(name, header, finder):
    client = TestClient(build_app(finder, hosts=(name,)), base_url=HERE)
    assert client.get("/healthz", headers={"host": header}).status_code == 200
    if name != "*":
        for other in ("evil.example.com", "fd00::1", "[fd00::2]:8000", "[::1]"):
            assert client.get("/healthz", headers={"host": other}).status_code == 400
    assert url_name(url_name(name)) == url_name(name)


@pytest.mark.parametrize("name", ["none/a.log", ""])
def test_an_audit_file_that_cannot_be_written_is_an_error_at_once(
    name, finder, served, tmp_path: Path, capsys, monkeypatch
):
    # The second is a folder.
    audit = tmp_path / name
    with pytest.raises(OSError, match=f"--audit {audit} cannot be written: (No such file|Is a directory)"):
        build_app(finder, audit=audit)
    monkeypatch.setattr(embedders, "open_embedder", lambda *_, **__: 1 / 0)
    command, servers = served
    assert command("--audit", str(audit)) == 2 and not servers
    error = capsys.readouterr().err
    assert f"error: --audit {audit} cannot be written" in error and error.count("\n") == 1


def test_an_audit_file_is_appended_to(finder, served, tmp_path):
    audit = tmp_path / "a.log"
    audit.write_text("before\n")
    assert served[0]("--audit", str(audit)) == 0 and audit.read_text() == "before\n"
    client = TestClient(served[1][0].config.app, base_url=HERE)
    assert client.get("/api/search?q=red").status_code == 200
    assert audit.read_text().startswith("before\n{") and audit.read_text().count("\n") == 2
