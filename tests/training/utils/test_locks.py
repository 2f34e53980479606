"""Locks of folders: one process at a time, free when it dies, nothing left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ROOT
from training.synthetic.dataset import generate
from training.utils.locks import folder_lock

HOLD = """
import sys
from training.utils.locks import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_what_killed_processes_left_unfinished_is_removed_by_the_next_that_succeeds(tmp_path: Path) -> None:
    left, kept = tmp_path / ".eval.json.0a1b2c3d.tmp", tmp_path / ".mine.tmp"
    left.touch()
    kept.touch()
    with pytest.raises(ValueError), folder_lock(tmp_path):
        raise ValueError
    assert left.exists(), "a command that fails changes nothing"
    with folder_lock(tmp_path, tmp_path.with_name(".beside.lock")):
        pass
    assert left.exists()
    with folder_lock(tmp_path):
        pass
    assert sorted(tmp_path.iterdir()) == [kept]


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    (tmp_path / ".eval.json.0a1b2c3d.tmp").touch()
    monkeypatch.setattr("training.utils.locks.fcntl.lockf", refuse)
    with folder_lock(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".eval.json.0a1b2c3d.tmp"]


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        expected = (
            rf"{tmp_path}/run is in use by process {process.pid} on .*-c.*, which holds .*/run/\.lock; wait for it"
        )
        with pytest.raises(RuntimeError, match=expected), folder_lock(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / ".lock").exists()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        assert (tmp_path / ".lock").exists()
        with folder_lock(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_process_keeps_itself_out(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        with pytest.raises(RuntimeError, match="is in use by another part of this process"), folder_lock(tmp_path):
            pass
        # The failed attempt has not given the lock up.
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert "is in use by process" in second.stderr


@pytest.mark.parametrize("fails", [True, False])
def test_a_new_folder_stays_only_where_the_work_succeeds_or_leaves_something(fails: bool, tmp_path: Path) -> None:
    if fails:
        with pytest.raises(ValueError, match="wrong data"), folder_lock(tmp_path / "a" / "b"):
            raise ValueError("wrong data")
        assert not list(tmp_path.iterdir())
        with pytest.raises(ValueError, match="wrong data"), folder_lock(tmp_path / "a" / "b"):
            (tmp_path / "a" / "b" / "last.pt").touch()
            raise ValueError("wrong data")
    else:
        with folder_lock(tmp_path / "a" / "b"):
            (tmp_path / "a" / "b" / "last.pt").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["last.pt"]


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", refuse)
    with folder_lock(tmp_path):
        pass
    assert f"warning: the file system of {tmp_path} has no locks (No locks available)" in capsys.readouterr().err


def test_a_folder_that_nobody_can_write_to_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr("os.open", refuse)
        with folder_lock(tmp_path):
            pass
        with pytest.raises(OSError, match="Read-only"), folder_lock(tmp_path / "new" / "run"):
            pass
    assert not list(tmp_path.iterdir())


def test_what_a_killed_rendering_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".set.unfinished" / "imgs").mkdir(parents=True)
    (tmp_path / ".set.unfinished" / "half.jpg").touch()
    sizes = {"images_per_id": 2, "val_ids": 1, "test_ids": 1, "height": 160, "width": 64}
    with folder_lock(tmp_path / "set", tmp_path / ".set.lock"):
        with pytest.raises(RuntimeError, match="/set is in use by another part of this process"):
            generate(tmp_path / "set", 3, **sizes)
        assert (tmp_path / ".set.unfinished" / "half.jpg").exists()
    generate(tmp_path / "set", 3, **sizes)
    assert [path.name for path in tmp_path.iterdir()] == ["set"] and not (tmp_path / "set" / "half.jpg").exists()
