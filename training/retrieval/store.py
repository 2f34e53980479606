"""Index of a gallery and exact search in it by a text.

Shapes: Q queries, G gallery images, E embedding width, K results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.config import DataConfig
from training.data.datasets import Record
from training.data.loader import iterate_images
from training.engine import checkpoint
from training.models.retrieval_model import RetrievalModel

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# Gallery images scored at once: 16 MB of float64 scores at 256 queries.
CHUNK = 8192


@dataclass(frozen=True)
class Index:
    """Embeddings of a gallery, float32 (G, E) of unit length on the CPU."""

    v_id_GE: Tensor
    # None for a model without a clothing branch, whose beta is 0.
    v_clo_GE: Tensor | None
    # Path of each image.
    paths: tuple[str, ...]
    # Clothing weight of the score (reading 24).
    beta: float
    # What it was built from, as `index_key` says; "" if nobody asked.
    key: str = ""

    def search(self, text_QE: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores cos(t, v_id) + beta cos(t, v_clo), float32, and positions in the gallery, int64, of the best k images.

        text_QE: (Q, E), or (E,) for one query, floating; its length does not matter. Returns two (Q, K), or (K,), best
        first, K = min(k, G); of equal scores the earlier image comes first. Exact: every image is scored. Raises
        TypeError for a dtype and ValueError for a shape or a k that does not fit, or a text embedding that is zero or
        not finite.
        """
        queries_QE = self._checked(text_QE, k)
        scores_QK = torch.empty(len(queries_QE), 0)
        positions_QK = torch.empty(len(queries_QE), 0, dtype=torch.int64)
        for start in range(0, len(self.paths), CHUNK):
            part = slice(start, start + CHUNK)
            images_GE = self.v_id_GE[part].double()
            if self.v_clo_GE is not None:
                images_GE += self.beta * self.v_clo_GE[part].double()
            # Equal images differ in the last bit of a float64 product, by their place in the blocks that BLAS makes;
            # rounded to the precision of the embeddings they tie again.
            found_QG = (queries_QE @ images_GE.T).float()
            places_QG = torch.arange(start, start + len(images_GE)).expand(found_QG.shape)
            # What was found before stands first, so that a stable sort keeps equal scores in gallery order.
            scores_QK, order = torch.cat((scores_QK, found_QG), 1).sort(dim=1, descending=True, stable=True)
            positions_QK = torch.cat((positions_QK, places_QG), 1).gather(1, order)[:, :k]
            scores_QK = scores_QK[:, :k]
        return (scores_QK[0], positions_QK[0]) if text_QE.ndim == 1 else (scores_QK, positions_QK)

    def _checked(self, text_QE: Tensor, k: int) -> Tensor:
        if not text_QE.is_floating_point():
            raise TypeError(f"search: the text embedding must be floating, got {text_QE.dtype}")
        width = self.v_id_GE.shape[1]
        if text_QE.ndim not in (1, 2) or text_QE.shape[-1] != width:
            expected = f"({width},) or (Q, {width})"
            raise ValueError(f"search: the text embedding must have shape {expected}, got {tuple(text_QE.shape)}")
        if k < 1:
            raise ValueError(f"search: k must be at least 1, got {k}")
        queries_QE = text_QE.detach().cpu().double().reshape(-1, width)
        norm_Q1 = queries_QE.norm(dim=1, keepdim=True)
        if not bool(((norm_Q1 > 0) & norm_Q1.isfinite()).all()):
            raise ValueError("search: the text embedding is zero or not finite")
        return queries_QE / norm_Q1


@torch.inference_mode()
def build_index(
    model: RetrievalModel,
    records: Sequence[Record],
    data: DataConfig,
    *,
    beta: float,
    batch_size: int = 128,
    key: str = "",
) -> Index:
    """Embeds the images of `records` in evaluation mode; the model's mode is restored.

    Raises ValueError without any record or for an image that cannot be read, FileNotFoundError for one that has gone.
    """
    if not records:
        raise ValueError("build_index: the gallery holds no image")
    device, mode = next(model.parameters()).device, model.training
    model.eval()
    try:
        parts = [model.embed_images(images.to(device)) for images, _ in iterate_images(records, data, batch_size)]
    finally:
        model.train(mode)
    v_id_GE = torch.cat([part.v_id_BE for part in parts]).float().cpu()
    clothing = [part.v_clo_BE for part in parts if part.v_clo_BE is not None]
    v_clo_GE = torch.cat(clothing).float().cpu() if clothing else None
    return Index(v_id_GE, v_clo_GE, tuple(str(record.path) for record in records), beta, key)


def folder_records(folder: Path) -> list[Record]:
    """One record without texts for each image file below `folder`, in the order of their paths.

    Raises FileNotFoundError when there is no such folder, ValueError when it holds no image file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"gallery {folder}: no such folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"gallery {folder} holds no image file ({' '.join(IMAGE_SUFFIXES)})")
    return [Record(path.relative_to(folder).as_posix(), path, -1, "test", ()) for path in paths]


def index_key(checkpoint_path: Path, records: Sequence[Record]) -> str:
    """SHA-256 (hex) over the bytes of a checkpoint and the path, size and time of change of each image."""
    digest = hashlib.sha256(checkpoint_path.read_bytes())
    for record in records:
        stat = record.path.stat()
        digest.update(f"\0{record.path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def save_index(path: Path, index: Index) -> None:
    """Writes an index as one file, atomically."""
    checkpoint.save(path, {**vars(index), "paths": list(index.paths)})


def load_index(path: Path) -> Index:
    """Index that `save_index` wrote. Raises FileNotFoundError, or ValueError naming a file that is not an index."""
    state = checkpoint.load(path)
    if set(state) != set(Index.__dataclass_fields__):
        raise ValueError(f"{path} is not an index: it holds {', '.join(map(str, sorted(state)))}")
    return Index(**{**state, "paths": tuple(state["paths"])})
