"""A disk that is full: the error names file and disk, the old file stays, and nothing half is left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import contents
from tests.support.files.damage import largest_file
from training.config import EncoderConfig
from training.data.tokenizer import build_tokenizer, save_tokenizer
from training.engine import checkpoint
from training.engine.metrics_log import MetricsLog
from training.synthetic.dataset import generate
from training.utils.io import atomic, write_bytes, write_json
from training.utils.terminal import make_console, make_progress


def write_arrays(path: Path) -> None:
    with atomic(path) as file:
        np.savez(file, ap=np.zeros(50_000))  # type: ignore[arg-type]


WRITERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": lambda path: checkpoint.save(path, {"weight": torch.zeros(100_000)}),
    "json": lambda path: write_json(path, ["x" * 100_000]),
    "arrays": write_arrays,
    "page": lambda path: write_bytes(path, b"x" * 100_000),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_file_and_disk_are_named_and_the_old_file_stays(writer: Callable[[Path], Any], tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "file[1]", b"old")
    expected = rf"{tmp_path}/file\[1\] cannot be written: .*; the disk of {tmp_path} has [\d.,]+ of [\d.,]+ MB free; the file as"
    with largest_file(50_000), pytest.raises(OSError, match=expected):
        writer(path)
    assert contents(tmp_path) == {"file[1]": b"old"}


def test_the_log_of_a_training_names_itself(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        line: dict[str, Any] = {"step": 1, "losses": {f"task {i}": 0.5 for i in range(3000)}}
        with largest_file(20_000), pytest.raises(OSError, match=r"metrics\.jsonl cannot be written: "):
            log._append(line)


def test_a_tokenizer_names_itself(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(EncoderConfig(), ["a man with a red coat"] * 2)
    with largest_file(500), pytest.raises(OSError, match=r"/tokenizer cannot be written: "):
        save_tokenizer(tokenizer, tmp_path / "tokenizer")
    assert not list((tmp_path / "tokenizer").iterdir())


def test_a_rendered_set_names_itself_and_leaves_nothing(tmp_path: Path) -> None:
    with largest_file(1000), pytest.raises(OSError, match=r"/set cannot be written: "):
        generate(tmp_path / "set", 3, images_per_id=2, val_ids=1, test_ids=1, height=160, width=64)
    assert not list(tmp_path.iterdir())


def test_names_with_brackets_and_colons_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    name = "runs/x[bold]y[/] :smile:"
    console = make_console()
    console.print(f"{name}: 5 epochs")
    table = Table("a", title=name)
    table.add_row(name)
    console.print(table)
    assert capsys.readouterr().out.count(name) == 3
    terminal = make_console(force_terminal=True, width=120, color_system=None)
    with make_progress(terminal) as bar:
        bar.add_task(name, total=2)
        bar.refresh()
    assert "x[bold]y[/] " in capsys.readouterr().out


def test_free_space_is_that_of_the_disk(tmp_path: Path) -> None:
    with largest_file(10), pytest.raises(OSError, match="cannot be written") as caught:
        write_bytes(tmp_path / "a", b"x" * 100)
    total = shutil.disk_usage(tmp_path).total / 1e6
    assert f"of {total:,.1f} MB free" in str(caught.value)
