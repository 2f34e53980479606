from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from training.engine import checkpoint
from training.utils.io import atomic, read_json, write_json

STATE = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "epoch": 3, "best": None, "betas": [0.0, 1.5], "name": "x"}


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", STATE)
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(loaded["model"]["weight"], STATE["model"]["weight"])  # type: ignore[index]
    assert {k: v for k, v in loaded.items() if k != "model"} == {k: v for k, v in STATE.items() if k != "model"}
    assert os.listdir(tmp_path) == ["last.pt"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_state_of_an_optimiser_is_plain(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint.save(tmp_path / "a.pt", {"model": layer.state_dict(), "optimizer": optimizer.state_dict()})
    optimizer.load_state_dict(checkpoint.load(tmp_path / "a.pt")["optimizer"])


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", STATE)
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "last.pt") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert checkpoint.load(tmp_path / "last.pt")["epoch"] == 3
    assert os.listdir(tmp_path) == ["last.pt"]


def test_only_plain_values_are_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.a\[1\]\.b must be a tensor or a plain value, got PosixPath"):
        checkpoint.save(tmp_path / "last.pt", {"a": [1, {"b": tmp_path}]})
    assert not os.listdir(tmp_path)


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*last\.pt does not exist"):
        checkpoint.load(tmp_path / "last.pt")


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", STATE)
    whole = (tmp_path / "last.pt").read_bytes()
    for damaged in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        (tmp_path / "last.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"last\.pt is not a checkpoint of this project: it is damaged"):
            checkpoint.load(tmp_path / "last.pt")


def test_checkpoint_of_another_kind_is_named(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt is not a checkpoint of this project: it holds a list"):
        checkpoint.load(tmp_path / "last.pt")


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "größe", "values": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"text": "größe", "values": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert read_json(tmp_path / "a.json")["values"] == [1, 2.5, None]
    with pytest.raises(FileNotFoundError, match=r"b\.json does not exist"):
        read_json(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json is not valid JSON"):
        read_json(tmp_path / "b.json")
