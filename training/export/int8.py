"""Towers of an export with weights of 8 bits, and the R-1 that they lose on the validation split.

Shapes: N images or texts, E embedding width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.data.datasets import Record
from training.evaluation.calibration import CALIBRATION, calibrate
from training.evaluation.dual import DualEmbeddings
from training.export.onnx_towers import IMAGE, PREPROCESS, TEXT, OnnxTowers
from training.utils.io import write_record

BATCH = 64


def quantise(folder: Path, records: Sequence[Record]) -> tuple[float, float]:
    """Makes the towers of a folder int8: weights of matrix products, activations as they come; returns R-1 in percent on
    `records` before and after.

    The model has a digest of its own, so that its embeddings and those of the run are not in one gallery, and a calibration.
    """
    towers = OnnxTowers(folder, threads=1)
    before = _r1(embed(towers, records), towers.facts.beta)
    for name in (IMAGE, TEXT):
        _quantise_file(folder / name)
    towers = OnnxTowers(folder, threads=1)
    facts = replace(towers.facts, model=hashlib.sha256(f"{towers.facts.model} int8".encode()).hexdigest())
    dual = embed(towers, records)
    write_record(folder / PREPROCESS, facts)
    write_record(folder / CALIBRATION, calibrate(dual, facts.beta, facts.model))
    return before, _r1(dual, facts.beta)


def _quantise_file(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    temporary = path.with_name(f".{path.name}.tmp")
    # Not by channel, which onnxruntime refuses for the products of batches; convolutions become slower.
    quantize_dynamic(path, temporary, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    os.replace(temporary, path)


def embed(towers: OnnxTowers, records: Sequence[Record]) -> DualEmbeddings:
    """Embeddings of the images and captions of records."""
    paths = [record.path for record in records]
    captions = tuple(text for record in records for text in record.captions)
    pixels = np.stack([towers.read_image(path.read_bytes(), str(path)) for path in paths])
    image_NW, t_NE = _joined(towers.embed_images, pixels), _joined(towers.embed_texts, captions)
    width = towers.facts.width
    images = torch.tensor([i for i, record in enumerate(records) for _ in record.captions])
    ids = torch.tensor([record.id for record in records])
    clothing = image_NW[:, width:] if towers.facts.branches == 2 else None
    return DualEmbeddings(t_NE, image_NW[:, :width], clothing, None, captions, ids[images], images, ids)


def _joined(function: Callable[..., np.ndarray], values: np.ndarray | Sequence[str]) -> Tensor:
    parts = [function(values[start : start + BATCH]) for start in range(0, len(values), BATCH)]
    return torch.from_numpy(np.concatenate(parts))


def _r1(dual: DualEmbeddings, beta: float) -> float:
    return dual.metrics([beta])[beta].mean()["R1"]
