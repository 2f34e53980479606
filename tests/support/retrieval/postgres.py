"""PostgreSQL servers for tests: of the package pgserver, which holds the extension `vector`, and the machine's own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# PostgreSQL refuses to run as root.
USER = "nobody" if os.geteuid() == 0 else None
OPTIONS = {"listen_addresses": "", "fsync": "off", "shared_buffers": "32MB", "max_connections": "10"}


def with_vector() -> Path | None:
    """Folder of the programs of pgserver; None where it is not installed, or where the user that has to run them may not go.
    It is not imported, which would make a user."""
    found = importlib.util.find_spec("pgserver")
    if found is None or found.origin is None:
        return None
    programs = Path(found.origin).resolve().parent / "pginstall" / "bin"
    return programs if USER is None or all(folder.stat().st_mode & 0o001 for folder in programs.parents) else None


def of_the_machine() -> Path | None:
    """Folder of the programs of an installed server that lacks the extension; None where there is none."""
    program = shutil.which("postgres")
    folder = Path(program).resolve().parent if program is not None else None
    if folder is None or not (folder / "initdb").is_file():
        return None
    shared = subprocess.run([folder / "pg_config", "--sharedir"], capture_output=True, text=True).stdout.strip()
    return None if not shared or (Path(shared) / "extension/vector.control").exists() else folder


@contextmanager
def server(programs: Path) -> Iterator[str]:
    """A new server on a socket; yields its location. Raises RuntimeError for one that does not start."""
    # Not a folder of pytest, which other users cannot enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if USER is not None:
            shutil.chown(folder, USER)
        data, log = folder / "data", folder / "log"
        words = [programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        made = subprocess.run(words, user=USER, cwd=folder, capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(made.stderr)
        options = [f"--{option}={value}" for option, value in OPTIONS.items()]
        words = [programs / "postgres", "-D", data, "-k", folder, *options]
        with open(log, "w") as output:
            process = subprocess.Popen(words, user=USER, cwd=folder, stdout=output, stderr=output)
        try:
            end = time.monotonic() + 60
            while "ready to accept connections" not in log.read_text():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(log.read_text())
                time.sleep(0.05)
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
