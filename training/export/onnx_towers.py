"""Image and text tower in ONNX Runtime, without PyTorch.

Files of an export folder: image.onnx, text.onnx, tokenizer.json, preprocess.json, parity.json, and fusion.pt2 for PyTorch
(fusion_package.py, to_fusion.py) where the run has a fusion.

Shapes: B images or texts, H, W pixels, T tokens, E embedding width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from training.config import MAX_PIXELS
from training.data.images.reading import DAMAGED, NoPluginError, TooManyPixelsError, read_rgb
from training.utils.io import read_record

IMAGE, TEXT, TOKENIZER, PREPROCESS, PARITY = (
    "image.onnx",
    "text.onnx",
    "tokenizer.json",
    "preprocess.json",
    "parity.json",
)
FUSION = "fusion.pt2"


@dataclass(frozen=True)
class Preprocess:
    """Contents of preprocess.json: what an image and a text go through before their towers."""

    # SHA-256 (hex) of the checkpoint: galleries of the run and of its export are the same.
    model: str
    # Height and width; RGB, bilinear with antialiasing, then (x / 255 - mean) / std.
    image_size: list[int]
    mean: float
    std: float
    # Longest text in tokens, and the id of padding.
    text_length: int
    pad_id: int
    # Embedding width, branches (1 identity, 2 identity and clothing), and the clothing weight of validation.
    width: int
    branches: int
    beta: float
    # Images of more pixels are not read.
    max_pixels: int = MAX_PIXELS


class OnnxTowers:
    """Both towers of an export folder. threads: of each call; 0 for as many as there are cores.

    Raises FileNotFoundError for a missing file, ValueError for a damaged one, RuntimeError without onnxruntime.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeError("an exported model needs onnxruntime: pip install 'bdam-fast[export]'") from error
        folder = Path(folder)
        for name in (IMAGE, TEXT, TOKENIZER, PREPROCESS):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} is no exported model: there is no {name}; `python -m training.export` makes one"
                )
        self.facts = read_record(folder / PREPROCESS, Preprocess)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.image, self.text = (
                onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
                for name in (IMAGE, TEXT)
            )
            self.tokenizer: Any = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:
            # Both libraries raise classes of their own.
            raise ValueError(f"{folder} is damaged: {str(error).splitlines()[0]}") from error
        self.tokenizer.no_padding()

    def read_image(self, content: bytes, name: str) -> np.ndarray:
        """The bytes of an image file -> uint8 (3, H, W). Raises ValueError naming an image that cannot be read."""
        height, width = self.facts.image_size
        try:
            small = read_rgb(content, self.facts.max_pixels).resize((width, height), Image.Resampling.BILINEAR)
        except (NoPluginError, TooManyPixelsError) as error:
            raise ValueError(f"{name} cannot be read: {error}") from error
        except DAMAGED as error:
            raise ValueError(f"{name} is truncated or not a readable image: {error}") from error
        return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))

    def normalised(self, pixels_B3HW: np.ndarray) -> np.ndarray:
        """uint8 (B, 3, H, W) -> float32, as the model reads images."""
        x_B3HW = np.subtract(pixels_B3HW, np.float32(255 * self.facts.mean), dtype=np.float32)
        x_B3HW /= np.float32(255 * self.facts.std)
        return x_B3HW

    def embed_images(self, pixels_B3HW: np.ndarray) -> np.ndarray:
        """uint8 (B, 3, H, W) -> float32 (B, E) or (B, 2 E): [v_id; v_clo]."""
        return self.image.run(None, {"images": self.normalised(pixels_B3HW)})[0]

    def __call__(self, texts: Sequence[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        """Token ids of texts, not cut, as a tokenizer of transformers gives them."""
        self.tokenizer.no_truncation()
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in found]}

    @cached_property
    def unk_token_id(self) -> int | None:
        """Id of the token for what the tokenizer does not know; None where it has none."""
        model = json.loads(self.tokenizer.to_str())["model"]
        unknown = model.get("unk_token")
        return model.get("unk_id") if unknown is None else self.tokenizer.token_to_id(unknown)

    def token_texts(self, text: str) -> list[str]:
        """Tokens of a text, not cut, without those that mark its ends."""
        self.tokenizer.no_truncation()
        return self.tokenizer.encode(text, add_special_tokens=False).tokens

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, int64 (B, T), padded to the longest text."""
        self.tokenizer.enable_truncation(self.facts.text_length)
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        tokens_BT = np.full((len(ids), max(map(len, ids))), self.facts.pad_id, np.int64)
        mask_BT = np.zeros_like(tokens_BT)
        for row, found in enumerate(ids):
            tokens_BT[row, : len(found)] = found
            mask_BT[row, : len(found)] = 1
        return tokens_BT, mask_BT

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (B, E)."""
        tokens_BT, mask_BT = self.tokens(texts)
        return self.text.run(None, {"input_ids": tokens_BT, "attention_mask": mask_BT})[0]
