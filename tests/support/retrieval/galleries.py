"""Galleries without a trained model: an embedder of colours, and clustered embeddings."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from training.retrieval.embedders import Embedder
from training.retrieval.gallery_writer import open_writer
from training.retrieval.store import About, Gallery, ImageRow

WIDTH = 16
# Address of the server in tests of its page, and markup that must never reach a page as such.
HERE = "http://127.0.0.1"
HOSTILE = '<img src=x onerror="alert(1)">'
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 200), "white": (235, 235, 235)}


class ColourEmbedder(Embedder):
    """Embeds an image by its mean colour and its upper half's, a text by the colours that it names."""

    def __init__(self, model: str = "a" * 64) -> None:
        self.about = About(model, WIDTH, 2, 0.5, "runs/colours")
        self.image_size, self.text_length, self.max_pixels = (8, 4), 16, 10**6
        self.projection = np.random.default_rng(0).standard_normal((3, WIDTH))
        self.embedded = 0

    def read_image(self, content: bytes, name: str) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(content)) as image:
                return np.asarray(image.convert("RGB").resize((4, 8))).transpose(2, 0, 1)
        except OSError as error:
            raise ValueError(f"{name} is not a readable image") from error

    def embed_images(self, pixels_N3HW: np.ndarray) -> np.ndarray:
        self.embedded += len(pixels_N3HW)
        whole, upper = pixels_N3HW.mean((2, 3)), pixels_N3HW[:, :, :4].mean((2, 3))
        return np.concatenate([self._unit(whole), self._unit(upper)], 1)

    def token_texts(self, text: str) -> list[str]:
        return [piece for word in text.lower().split() for piece in ([word] if word in COLOURS else list(word))]

    def unknown_words(self, words: Sequence[str]) -> list[str]:
        return [word for word in words if word not in COLOURS]

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        colours = [[COLOURS[w] for w in text.lower().split() if w in COLOURS] or [(90, 90, 90)] for text in texts]
        return self._unit(np.array([np.mean(found, 0) for found in colours]))

    def _unit(self, colours: np.ndarray) -> np.ndarray:
        x = (colours - 110) @ self.projection
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def paint(folder: Path, names: Sequence[str], seed: int = 0) -> list[Path]:
    """Small images under these names, each of other colours; returns their paths."""
    rng, paths = np.random.default_rng(seed), []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        halves = rng.integers(0, 255, (2, 1, 3), dtype=np.uint8)
        Image.fromarray(np.repeat(np.repeat(halves, 8, 0), 8, 1)).save(path)
        paths.append(path)
    return paths


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32."""
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def clustered(count: int, width: int, clusters: int = 64, seed: int = 0) -> np.ndarray:
    """Table (count, 2 width) of two unit embeddings, each near the centre of its cluster."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, 2, width))
    rows = centres[rng.integers(0, clusters, count)] + 0.5 * rng.standard_normal((count, 2, width))
    return unit(rows).reshape(count, 2 * width)


def fill(folder: Path, table_NW: np.ndarray, model: str = "a" * 64) -> Gallery:
    """A gallery of given embeddings; the paths do not exist. Cameras c0 to c3 in turn, image i at second i."""
    gallery = Gallery.create(folder, About(model, table_NW.shape[1] // 2, 2, 0.5, "runs/x"))
    rows = [image_row(f"/images/{i:07}.jpg", camera=f"c{i % 4}", time=float(i)) for i in range(len(table_NW))]
    with open_writer(gallery) as writer:
        writer.add(rows, table_NW)
    return gallery


def image_row(path: str, camera: str = "", time: float | None = None, **more: str) -> ImageRow:
    """A row for an image that need not exist."""
    return ImageRow(path, 1, 2, hashlib.sha256(path.encode()).hexdigest(), camera, time, more)
