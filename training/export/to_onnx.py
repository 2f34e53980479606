"""Export of a run to ONNX, and of its fusion (to_fusion.py), compared with PyTorch on the validation split before anything is
kept.

Shapes: B images or texts, H, W pixels, T tokens, E embedding width.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.data.datasets import Record, read_dataset
from training.data.images.transforms import MEAN, STD, decode, normalise
from training.data.loader import TextBatch, tokenize
from training.engine import checkpoint
from training.engine.checkpoint import TrainedModel
from training.evaluation.calibration import CALIBRATION, calibrate
from training.evaluation.dual import embed_dual
from training.export.int8 import quantise
from training.export.onnx_towers import FUSION, IMAGE, PARITY, PREPROCESS, TEXT, TOKENIZER, OnnxTowers, Preprocess
from training.export.to_fusion import fusion_difference, has_fusion, write_fusion
from training.models.retrieval_model import RetrievalModel
from training.utils.io import file_digest, write_record

# Largest difference of an embedding's value from PyTorch's.
TOLERANCE = 1e-4
# Images and texts of the validation split that are compared at most, a batch at a time.
COMPARED, BATCH = 512, 64


@dataclass(frozen=True)
class Parity:
    """Contents of parity.json: largest difference of any value, and seconds of one image and one text on one thread."""

    images: int
    texts: int
    image_difference: float
    text_difference: float
    image_seconds: float
    image_seconds_torch: float
    text_seconds: float
    text_seconds_torch: float
    # R-1 on the whole validation split, percent, where the towers were then made int8; before and after.
    r1: float | None = None
    r1_int8: float | None = None
    # Pairs of image and text, and the largest difference of the match by fusion.pt2; None where the run has no fusion.
    pairs: int = 0
    fusion_difference: float | None = None


class _ImageTower(nn.Module):
    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        found = self.model.embed_images(images)
        return found.v_id_BE if found.v_clo_BE is None else torch.cat([found.v_id_BE, found.v_clo_BE], dim=1)


class _TextTower(nn.Module):
    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.embed_texts(TextBatch(input_ids, attention_mask))


def export_run(run_dir: Path, out: Path, int8: bool = False) -> Parity:
    """Writes the export of a run to a new folder; nothing is left of one that differs. int8: quantised after the comparison.

    Raises FileExistsError for a folder that is not empty, ValueError for an export that differs by more than TOLERANCE,
    RuntimeError without the libraries or for a tokenizer that is no `tokenizers` one, and what reading the run and its data
    raises.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; give a new folder")
    run = checkpoint.load_run(run_dir, device="cpu")
    records = read_dataset(run.config.data).splits["val"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        made = Path(temporary) / "export"
        made.mkdir()
        with torch.inference_mode(False), torch.no_grad():
            _write_towers(run, made)
        if has_fusion(run):
            write_fusion(run, made / FUSION)
        _write_tokenizer(run.tokenizer, made / TOKENIZER)
        facts = _preprocess(run, run_dir)
        write_record(made / PREPROCESS, facts)
        validation = embed_dual(run.model, records, run.tokenizer, run.config)
        write_record(made / CALIBRATION, calibrate(validation, run.beta, facts.model))
        parity = compare(run, made, records)
        if has_fusion(run):
            pairs, difference = fusion_difference(run, made, records)
            parity = replace(parity, pairs=pairs, fusion_difference=difference)
        # Not max, which passes over NaN.
        worst = float(np.max([parity.image_difference, parity.text_difference, parity.fusion_difference or 0.0]))
        if not worst <= TOLERANCE:
            raise ValueError(
                f"the export differs from PyTorch by {worst:.2g}, at most {TOLERANCE:g} is accepted; nothing was kept"
            )
        write_record(made / PARITY, parity)
        if int8:
            r1, r1_int8 = quantise(made, records)
            parity = replace(parity, r1=r1, r1_int8=r1_int8)
            write_record(made / PARITY, parity)
        out.mkdir(exist_ok=True)
        for file in sorted(made.iterdir()):
            shutil.move(str(file), out / file.name)
    return parity


def _write_towers(run: TrainedModel, folder: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RuntimeError("the export needs onnx and onnxscript: pip install 'bdam-fast[export]'") from error
    from torch.export import Dim

    size = run.config.data.image_size
    images = torch.randn(2, 3, *size)
    texts = tokenize(
        run.tokenizer, ["a man in a red coat", "a woman with a bag and a hat"], run.config.data.text_length
    )
    batch, length = Dim("batch", min=1), Dim("length", min=2, max=run.config.data.text_length)
    token_shape = {0: batch, 1: length}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _ImageTower(run.model).eval(),
            (images,),
            folder / IMAGE,
            input_names=["images"],
            output_names=["embeddings"],
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
        torch.onnx.export(
            _TextTower(run.model).eval(),
            (texts.input_ids_BT, texts.attention_mask_BT),
            folder / TEXT,
            input_names=["input_ids", "attention_mask"],
            output_names=["embeddings"],
            dynamo=True,
            external_data=False,
            dynamic_shapes=(token_shape, token_shape),
            verbose=False,
        )


def _write_tokenizer(tokenizer: Any, path: Path) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RuntimeError(f"the export needs a tokenizer of the library tokenizers, got {type(tokenizer).__name__}")
    backend.save(str(path))


def _preprocess(run: TrainedModel, run_dir: Path) -> Preprocess:
    data, model = run.config.data, run.config.model
    return Preprocess(
        model=file_digest(Path(run_dir) / "best.pt"),
        image_size=list(data.image_size),
        mean=MEAN,
        std=STD,
        text_length=data.text_length,
        pad_id=run.tokenizer.pad_token_id,
        width=model.embedding,
        branches=1 if model.architecture == "dual-encoder" else 2,
        beta=run.beta,
        max_pixels=data.max_pixels,
    )


def compare(run: TrainedModel, folder: Path, records: list[Record]) -> Parity:
    """Differences of an export from the run's model on images and captions, from file and text to embedding, and the time of one
    image and one text."""
    towers, size, most = OnnxTowers(folder, threads=1), run.config.data.image_size, run.config.data.max_pixels
    image_tower, text_tower = _ImageTower(run.model), _TextTower(run.model)
    paths = [record.path for record in records[:COMPARED]]
    texts = [text for record in records for text in record.captions][:COMPARED]
    image_worst, text_worst = 0.0, 0.0
    with torch.inference_mode():
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            expected = image_tower(normalise(torch.stack([decode(path, size, max_pixels=most) for path in part])))
            found = towers.embed_images(np.stack([towers.read_image(path.read_bytes(), str(path)) for path in part]))
            image_worst = np.maximum(image_worst, np.abs(expected.numpy() - found).max())
        for start in range(0, len(texts), BATCH):
            words = texts[start : start + BATCH]
            batch = tokenize(run.tokenizer, words, run.config.data.text_length)
            expected = text_tower(batch.input_ids_BT, batch.attention_mask_BT)
            text_worst = np.maximum(text_worst, np.abs(expected.numpy() - towers.embed_texts(words)).max())
        pixels = decode(paths[0], size, max_pixels=most)[None]
        one = tokenize(run.tokenizer, texts[:1], run.config.data.text_length)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        image, image_torch = (
            _seconds(lambda: towers.embed_images(pixels.numpy())),
            _seconds(lambda: image_tower(normalise(pixels))),
        )
        text, text_torch = (
            _seconds(lambda: towers.embed_texts(texts[:1])),
            _seconds(lambda: text_tower(one.input_ids_BT, one.attention_mask_BT)),
        )
        torch.set_num_threads(threads)
    worst = float(image_worst), float(text_worst)
    return Parity(len(paths), len(texts), *worst, image, image_torch, text, text_torch)


def _seconds(call: Callable[[], Any]) -> float:
    """The shortest of 20 calls: what others do on the machine only makes them longer."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
