"""Atomic writes with the user's umask, and dataclasses as the schema of JSON files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from tests.support.tiny_run import tiny_options
from training import evaluate, prepare, search, train
from training.report import __main__ as report
from training.utils import cli
from training.utils.io import Keys, decode, encode, nullable, read_record, write_bytes, write_json, write_record


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o077], indirect=True, ids=oct)
def test_every_command_creates_files_with_the_umask_of_the_user(umask: int, tmp_path: Path) -> None:
    data, run = tmp_path / "data", str(tmp_path / "run")
    size = "--ids 8 --val-ids 2 --test-ids 2 --images-per-id 2 --height 160 --width 64 --workers 1".split()
    for command, words in (
        (prepare, ["synthetic", str(data), *size]),
        (prepare, ["validate", "cuhk-pedes", str(data), "--allow-counts", "--html", str(tmp_path / "validation.html")]),
        (train, ["synthetic", *tiny_options(data), "--optim.epochs", "1", "--optim.warmup-epochs", "0", "--out", run]),
        (evaluate, [run]),
        (report, [run]),
        (search, [run, "a man"]),
    ):
        assert cli.run(command.main, words) == 0, words
    paths = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    assert {"imgs", "validation.html", "best.pt", "metrics.jsonl", "tokenizer.json", "eval.json", "report.html"} <= {
        path.name for path in paths
    }
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert {
        path: oct(mode) for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~umask
    } == {}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bytes(tmp_path / "a", b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


@dataclass(frozen=True, kw_only=True)
class Inner:
    number: int
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Other:
    share: float


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    either: dict[str, Inner | Other]
    values: Annotated[dict[str, float], Keys(("a", "b"))]
    null: float | None = nullable()
    several: list[Inner] = field(default_factory=list)
    anything: Any = None


VALUES: dict[str, Any] = {
    "inner": {"number": 1},
    "either": {"x": {"share": 0.5}, "y": {"number": 2, "text": "t"}},
    "values": {"a": 1.0, "b": 2},
    "null": None,
    "several": [{"number": 3}],
}


def test_a_record_is_what_was_written(tmp_path: Path) -> None:
    record = decode(Outer, VALUES, "file")
    assert record.either == {"x": Other(share=0.5), "y": Inner(number=2, text="t")}
    write_record(tmp_path / "file", record)
    assert encode(record) == VALUES and read_record(tmp_path / "file", Outer) == record
    assert decode(Outer, {key: value for key, value in VALUES.items() if key != "null"}, "file") == record


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"inner": 1}, "file: inner must be an object, got 1"),
        ({"inner": {}}, "file: inner lacks the fields number"),
        ({"inner": {"number": True}}, "file: inner.number must be an integer, got True"),
        ({"inner": {"number": 1, "text": 2}}, "file: inner.text must be a string, got 2"),
        ({"either": {"x": {}}}, "file: either.x lacks the fields number"),
        ({"values": {"a": 1.0}}, "file: values lacks the fields b"),
        ({"values": {"a": 1.0, "b": float("inf")}}, "file: values.b must be a finite number, got inf"),
        ({"several": [{"number": 1}, {"number": "1"}]}, r"file: several\[1\].number must be an integer, got '1'"),
        ({"several": {}}, "file: several must be a list, got {}"),
    ],
)
def test_the_field_that_does_not_fit_is_named(values: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{match}$"):
        decode(Outer, VALUES | values, "file")


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(ValueError, match=r"a\.json must be an object, got \[1\]$"):
        read_record(tmp_path / "a.json", Outer)
    with pytest.raises(FileNotFoundError, match="b.json does not exist"):
        read_record(tmp_path / "b.json", Outer)
