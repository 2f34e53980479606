"""SQLite database of a gallery: connections, and its errors as one sentence that names the file and a remedy."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.utils.io import naming_full_disk

DAMAGED = "restore it from a copy, or embed the images again in a new gallery"
# Seconds to wait for another program that has locked the database.
PATIENCE = 60


@contextmanager
def naming_database(path: Path) -> Iterator[None]:
    """Raises an OSError, RuntimeError or ValueError that names the database in place of one of SQLite."""
    with naming_full_disk(path):
        try:
            yield
        except sqlite3.Error as error:
            raise _translated(error, path) from error


def _translated(error: sqlite3.Error, path: Path) -> Exception:
    # By its text: Python 3.10 does not give the code.
    text = str(error)
    if "disk is full" in text:
        return OSError(errno.ENOSPC, text)
    if "disk I/O error" in text:
        # A quota and a limit on the size of files end so too.
        free = shutil.disk_usage(path.parent).free / 1e6
        return OSError(
            f"{path} cannot be read or written: the disk reports an error; it may be full or over a quota ({free:,.1f} MB free) "
            "or failing: make room or check it, and run the command again"
        )
    if "locked" in text:
        return RuntimeError(f"{path} is locked by another program; wait until it has ended, and run the command again")
    if "readonly" in text or "unable to open" in text:
        return OSError(f"{path} cannot be written ({text}); check the permissions of the file and its folder")
    if isinstance(error, sqlite3.IntegrityError):
        return ValueError(f"{path} refuses the change: {text}")
    return ValueError(f"{path} cannot be read: {text}; {DAMAGED}")


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that never writes; `immutable` where the folder forbids even the files that a WAL reader shares."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    for options in ("", "&immutable=1"):
        connection = sqlite3.connect(uri + options, uri=True, check_same_thread=False, timeout=PATIENCE)
        try:
            connection.execute("SELECT count(*) FROM about")
            return connection
        except sqlite3.OperationalError:
            connection.close()
        except sqlite3.DatabaseError:
            break
    return sqlite3.connect(uri, uri=True, check_same_thread=False)
