"""Locks of folders that one process at a time may write to; imports nothing slow.

A lock is a POSIX record lock on a file. The system releases it when the process ends, however it ends, and worker processes
do not inherit it (a lock of `flock` would outlive a killed process in its workers).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.utils.io import remove_temporary

LOCK = ".lock"
# Errors of a file system that has no locks: NFS without its lock service, some FUSE and Lustre mounts.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Lock files of this process: a record lock does not keep out the process that holds it.
_held: set[Path] = set()


@contextmanager
def folder_lock(folder: Path, file: Path | None = None) -> Iterator[None]:
    """Keeps other processes out of `folder`, by FOLDER/.lock or `file`, which exists only as long as the lock.
    A block that succeeds with FOLDER/.lock ends with the removal of what killed processes have left of unfinished files.

    Creates the folder of the lock file, and removes it again if the block fails and leaves it empty. A folder that cannot be
    written to needs no lock; one whose file system has none gets a warning on stderr. Raises RuntimeError naming the holder.
    """
    path = Path(os.path.abspath(file or Path(folder) / LOCK))
    created = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    descriptor, alone = None, False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, alone = _acquire(path, folder, new=bool(created))
        yield
        if file is None and alone:
            with suppress(OSError):
                remove_temporary(path.parent)
    except BaseException:
        _release(path, descriptor)
        descriptor = None
        with suppress(OSError):
            for parent in created:
                parent.rmdir()
        raise
    finally:
        _release(path, descriptor)


def _acquire(path: Path, folder: Path, new: bool) -> tuple[int | None, bool]:
    """(descriptor of the lock file, True if it is locked); no descriptor for a folder that cannot be written to."""
    while True:
        if path in _held:
            raise RuntimeError(f"{folder} is in use by another part of this process")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if not new and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                return None, False
            raise
        try:
            locked = _lock(descriptor, path, folder)
            if _is_current(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _holder().encode(), 0)
                _held.add(path)
                return descriptor, locked
        except BaseException:
            os.close(descriptor)
            raise
        # The previous holder removed the file between our opening and our locking it.
        os.close(descriptor)


def _lock(descriptor: int, path: Path, folder: Path) -> bool:
    """False where the file system has no locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            print(
                f"warning: the file system of {folder} has no locks ({error.strerror}): nothing keeps a second process out "
                "of this folder; start no other one in it",
                file=sys.stderr,
            )
            return False
        if error.errno in (errno.EACCES, errno.EAGAIN):
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            raise RuntimeError(
                f"{folder} is in use by {holder}, which holds {path}; wait for it to end, or choose another folder"
            ) from None
        raise
    return True


def _is_current(descriptor: int, path: Path) -> bool:
    ours = os.fstat(descriptor)
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _holder() -> str:
    command = shlex.join(Path(word).name if i == 0 else word for i, word in enumerate(sys.argv))
    return f"process {os.getpid()} on {socket.gethostname()} ({command[:500]})\n"


def _release(path: Path, descriptor: int | None) -> None:
    """Removes the file before it unlocks it, so that nobody locks a file that is about to go."""
    if descriptor is not None:
        _held.discard(path)
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)
