"""Export to ONNX against the model in PyTorch, its use without PyTorch, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tests.support import ROOT
from training.data.datasets import read_dataset
from training.engine.checkpoint import load_run
from training.evaluation.calibration import calibrate
from training.evaluation.dual import embed_dual
from training.export import __main__ as command
from training.export import to_onnx
from training.export.onnx_towers import OnnxTowers
from training.retrieval.embedders import OnnxEmbedder, TorchEmbedder
from training.retrieval.store import Gallery
from training.utils import cli

# Adds a folder and searches it with PyTorch and transformers forbidden.
WITHOUT_TORCH = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from training import gallery, search
export, photos, folder = sys.argv[1:]
gallery.main(["add", folder, photos, "--onnx", export])
search.main([export, "a red shirt", "--gallery", folder, "--k", "3", "--json"])
"""


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    to_onnx.export_run(trained, out)
    return out


def test_both_towers_agree_with_pytorch(exported, trained, root):
    onnx, torch_ = OnnxEmbedder(exported), TorchEmbedder(trained)
    assert (onnx.about.model, onnx.about.beta, onnx.image_size) == (
        torch_.about.model,
        torch_.about.beta,
        torch_.image_size,
    )
    paths = sorted((root / "imgs/test").glob("*.jpg"))[:5]
    for count in (1, 5):
        pixels = np.stack([onnx.read_image(path.read_bytes(), str(path)) for path in paths[:count]])
        np.testing.assert_array_equal(pixels[0], torch_.read_image(paths[0].read_bytes(), ""))
        np.testing.assert_allclose(onnx.embed_images(pixels), torch_.embed_images(pixels), atol=to_onnx.TOLERANCE)
    texts = ["red", "a tall person in a red shirt and blue trousers, and so on for more tokens than are read", "x"]
    for some in (texts, texts[:1], texts[1:2]):
        np.testing.assert_allclose(onnx.embed_texts(some), torch_.embed_texts(some), atol=to_onnx.TOLERANCE)
    for text in texts:
        assert onnx.token_texts(text) == torch_.token_texts(text) and onnx.notes(text) == torch_.notes(text)
    parity = json.loads((exported / "parity.json").read_text())
    assert 0 < parity["image_difference"] < 1e-4 and 0 < parity["text_difference"] < 1e-4 and parity["images"] == 6


def test_gallery_and_search_without_pytorch(exported, trained, root, tmp_path):
    words = [sys.executable, "-c", WITHOUT_TORCH, str(exported), str(root / "imgs/test"), str(tmp_path / "g")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["results"]
    # The gallery is that of the run as well.
    from training.retrieval.finder import Finder, Wanted
    from training.retrieval.store import Gallery

    finder = Finder(Gallery(tmp_path / "g"), TorchEmbedder(trained))
    expected = finder.search(finder.query(Wanted([("a red shirt", 1.0)]), finder.beta), 3)
    assert [r["score"] for r in found] == pytest.approx([r.score for r in expected], abs=1e-3)


def test_an_export_that_differs_is_not_kept(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="the export differs from PyTorch by .*; nothing was kept"):
        to_onnx.export_run(trained, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said(trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    assert cli.run(command.main, [str(trained), str(tmp_path / "used")]) == 2
    assert "used already exists and is not an empty folder" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="the export needs a tokenizer of the library tokenizers, got int"):
        to_onnx._write_tokenizer(3, tmp_path / "x")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert cli.run(command.main, [str(trained), str(tmp_path / "new")]) == 2
    assert "the export needs onnx and onnxscript" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_folder_that_is_no_export(exported, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    with pytest.raises(ValueError, match=r"broken.jpg is truncated or not a readable image"):
        OnnxTowers(copy).read_image(b"x", "broken.jpg")
    (copy / "text.onnx").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="copy is damaged: "):
        OnnxTowers(copy)
    (copy / "image.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="is no exported model: there is no image.onnx"):
        OnnxTowers(copy)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeError, match="an exported model needs onnxruntime"):
        OnnxTowers(exported)


def test_words_calibration_and_bounds_are_those_of_the_run(exported, trained):
    onnx, torch_ = OnnxEmbedder(exported), TorchEmbedder(trained)
    words = ["red", "zzzyzx", "Shirt", "a", "q", "été", "Ω"]
    assert onnx.unknown_words(words) == torch_.unknown_words(words) and "zzzyzx" in onnx.unknown_words(words)
    assert onnx.max_pixels == torch_.max_pixels == 50_000_000
    assert onnx.calibration is not None and onnx.calibration.checkpoint == onnx.about.model
    run = load_run(trained, device="cpu")
    validation = embed_dual(run.model, read_dataset(run.config.data).splits["val"], run.tokenizer, run.config)
    assert onnx.calibration == calibrate(validation, run.beta, onnx.about.model)


def test_int8_is_a_model_of_its_own_and_says_what_it_loses(exported, trained, root, tmp_path, capsys):
    out = tmp_path / "small"
    assert cli.run(command.main, [str(trained), str(out), "--int8"]) == 0
    assert "int8: R-1 on the validation split" in capsys.readouterr().out
    stored = json.loads((out / "parity.json").read_text())
    run = load_run(trained, device="cpu")
    validation = embed_dual(run.model, read_dataset(run.config.data).splits["val"], run.tokenizer, run.config)
    assert stored["r1"] == pytest.approx(validation.metrics([run.beta])[run.beta].mean()["R1"], abs=9)
    assert 0 <= stored["r1_int8"] <= 100 and stored["image_difference"] <= to_onnx.TOLERANCE
    whole, small = OnnxEmbedder(exported), OnnxEmbedder(out)
    pixels = small.read_image(next((root / "imgs/test").glob("*.jpg")).read_bytes(), "")[None]
    difference = np.abs(small.embed_images(pixels) - whole.embed_images(pixels)).max()
    assert 1e-5 < difference < 0.3
    assert small.about.model != whole.about.model and small.calibration is not None
    gallery = Gallery.create(tmp_path / "g", whole.about)
    with pytest.raises(ValueError, match="was made with another model"):
        gallery.require_model(small.about.model, small.about.source)
    assert cli.run(command.main, [str(trained), str(tmp_path / "x"), "--int8", "--form", "weights"]) == 2
    assert "--int8 is for --form onnx, got --form weights" in capsys.readouterr().err
