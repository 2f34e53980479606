"""Fusion as a package of torch.export: what PyTorch finds, without the classes of the model, and where there is none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from bdam_fast import _native
from bdam_fast.nn import Mamba
from tests.support import ROOT
from training import search
from training.data.datasets import read_dataset
from training.engine import checkpoint
from training.export import __main__ as command
from training.export import to_fusion, to_onnx
from training.export.fusion_package import FusionPackage
from training.export.onnx_towers import IMAGE, TEXT, OnnxTowers
from training.retrieval.embedders import OnnxEmbedder, TorchEmbedder
from training.utils import cli

# Runs a package where neither the pipeline nor transformers can be imported.
WITHOUT_CLASSES = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("training", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import torch
import bdam_fast
bdam_fast.register_operators()
match = torch.export.load(sys.argv[1]).module()
tokens = torch.load(sys.argv[2])
found = match(*tokens)
assert not found.requires_grad
torch.save(found, sys.argv[3])
calls = {str(node.target) for node in match.graph.nodes if "bdam_fast." in str(node.target)}
assert {"bdam_fast.selective_scan_forward.default", "bdam_fast.causal_conv1d_forward.default"} <= calls, calls
"""
TEXTS = ("red", "a tall person in a red shirt", "a woman in a blue coat with a bag and a hat, and more than is read")


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    to_onnx.export_run(trained, out)
    return out


@pytest.fixture
def towers_are_there(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the towers of `exported`, which is most of their time."""

    def copy(run: Any, folder: Path) -> None:
        for name in (IMAGE, TEXT):
            shutil.copy(exported / name, folder)

    monkeypatch.setattr(to_onnx, "_write_towers", copy)


@pytest.fixture
def without_head(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs load as if they had been trained without a matching head."""
    loaded = checkpoint.load_run

    def load(*arguments: Any, **options: Any) -> Any:
        run = loaded(*arguments, **options)
        run.model.matching_head = None
        return replace(run)

    monkeypatch.setattr(checkpoint, "load_run", load)
    yield


def pixels(root: Path, towers: OnnxTowers, count: int) -> np.ndarray:
    paths = sorted((root / "imgs/test").glob("*.jpg"))[:count]
    return np.stack([towers.read_image(path.read_bytes(), str(path)) for path in paths])


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("text", TEXTS)
def test_it_finds_what_pytorch_finds_for_any_number_and_length(count, text, exported, trained, root):
    onnx, run = OnnxEmbedder(exported), TorchEmbedder(trained)
    images = pixels(root, onnx.towers, count)
    found = onnx.match(text, images)
    assert found.dtype == np.float32 and found.shape == (count,)
    np.testing.assert_allclose(found, run.match(text, images), rtol=0, atol=1e-6)
    assert count == 1 or np.ptp(found) > 1e-6


def test_it_loads_without_the_classes_of_the_model(exported, trained, root, tmp_path):
    towers = OnnxTowers(exported)
    images = pixels(root, towers, 3)
    tokens = [torch.from_numpy(values) for values in towers.tokens(TEXTS)]
    torch.save([torch.from_numpy(towers.normalised(images)), *tokens], tmp_path / "arguments.pt")
    paths = [str(exported / "fusion.pt2"), str(tmp_path / "arguments.pt"), str(tmp_path / "found.pt")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_CLASSES, *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = TorchEmbedder(trained)
    # Padded to the longest of the three, each text has the match that it has alone.
    expected = [float(run.match(text, image[None])[0]) for text, image in zip(TEXTS, images, strict=True)]
    np.testing.assert_allclose(torch.load(tmp_path / "found.pt").numpy(), expected, rtol=0, atol=1e-6)


def test_a_text_without_a_word_is_padded(exported):
    package = FusionPackage(exported)
    images = np.zeros((1, 3, 32, 16), np.float32)
    ids, mask, pad = np.array([[2, 3]]), np.ones((1, 2), np.int64), OnnxTowers(exported).facts.pad_id
    padded = package.match(images, np.array([[2, 3, pad]]), np.array([[1, 1, 0]]), pad)
    np.testing.assert_array_equal(package.match(images, ids, mask, pad), padded)


def test_parity_is_reported_and_a_package_that_differs_is_not_kept(
    exported, towers_are_there, trained, tmp_path, monkeypatch
):
    stored = json.loads((exported / "parity.json").read_text())
    assert stored["pairs"] == 12 and 0 <= stored["fusion_difference"] <= to_onnx.TOLERANCE
    logits, run = to_fusion.matching_logits, checkpoint.load_run(trained, device="cpu")
    records = read_dataset(run.config.data).splits["val"]
    for wrong, expected in ((1.0, float(run.model.temperature().detach())), (float("nan"), float("nan"))):
        monkeypatch.setattr(to_fusion, "matching_logits", lambda *args, wrong=wrong: logits(*args) + wrong)
        difference = to_fusion.fusion_difference(run, exported, records)[1]
        assert difference == pytest.approx(expected, abs=1e-5, nan_ok=True)
    with pytest.raises(ValueError, match="the export differs from PyTorch by nan, .*; nothing was kept"):
        to_onnx.export_run(trained, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_the_reference_is_exported_with_the_operators(exported, trained, tmp_path):
    folder, run = Path(shutil.copytree(exported, tmp_path / "export")), checkpoint.load_run(trained, device="cpu")
    layers = [part for part in run.model.modules() if isinstance(part, Mamba)]
    for layer in layers:
        layer.backend = "reference"
    (folder / "fusion.pt2").unlink()
    to_fusion.write_fusion(run, folder / "fusion.pt2")
    assert layers and all(layer.backend == "reference" for layer in layers)
    pairs, difference = to_fusion.fusion_difference(run, folder, read_dataset(run.config.data).splits["val"])
    assert pairs == 12 and difference < 1e-5


def test_search_by_an_export_ranks_as_by_the_run(exported, trained, root, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    orders = []
    for model in (tmp_path / "run", Path(shutil.copytree(exported, tmp_path / "export"))):
        words = [str(model), TEXTS[1], "--gallery", str(root / "imgs/test"), "--k", "24", "--rerank", "10", "--json"]
        assert cli.run(search.main, words) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        orders.append([(result["path"], result["match"] is not None) for result in results])
    assert orders[0] == orders[1] and sum(has_match for _, has_match in orders[0]) == 10


def test_a_run_without_a_fusion_has_no_package_and_says_so(without_head, towers_are_there, trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.run(command.main, [str(trained), str(out)]) == 0
    said = capsys.readouterr().out
    assert "no fusion.pt2: the run was trained without a fusion and a matching head" in said
    assert not (out / "fusion.pt2").exists()
    assert "fusion_difference" not in json.loads((out / "parity.json").read_text())
    with pytest.raises(ValueError, match=r"re-ranking needs a fusion, and .*out has no fusion.pt2"):
        OnnxEmbedder(out).match("red", np.zeros((1, 3, 32, 16), np.uint8))


def test_a_package_that_cannot_be_loaded_is_named(exported, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (copy / "fusion.pt2").write_bytes((copy / "fusion.pt2").read_bytes()[:1000])
    with pytest.raises(ValueError, match="fusion.pt2 is damaged: .*; copy the export again"):
        FusionPackage(copy)
    monkeypatch.setattr(_native, "available", lambda: False)
    with pytest.raises(ValueError, match="fusion.pt2 needs the operators of bdam_fast"):
        FusionPackage(copy)
    monkeypatch.setitem(sys.modules, "training.export.fusion_package", None)
    with pytest.raises(ValueError, match="re-ranking by an exported model needs PyTorch and bdam_fast"):
        OnnxEmbedder(copy).match("red", np.zeros((1, 3, 32, 16), np.uint8))
