"""Style features of neutral captions: from counts of words and characters, or from a pretrained text model.

Shapes: N captions, V n-grams, D features, B batch, T tokens. Features are float32 with Euclidean norm 1, so that Euclidean
distances rank pairs as cosines do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from training.describe.styles.style_options import STYLOMETRIC
from training.engine.device import select_device
from training.utils.io import atomic

# Called with (captions done, captions in total).
ProgressCallback = Callable[[int, int], None]
# Words with their apostrophes, and every punctuation mark.
TOKEN = r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]"
# Principal components that features are projected on.
DIMENSIONS = 32
# Captions at a time: bounds the dense block of the projection, and the work that an interrupted text model repeats.
BLOCK = 1024


class StylometricEncoder:
    """Frequencies of the most frequent n-grams of words (1 to 3, punctuation marks are words) and of characters (2 to 4),
    projected on their principal components.

    No inverse document frequencies: rare n-grams are content that the word lists missed and typing errors, frequent ones are
    function words and punctuation. Logarithmic counts, since a longer caption repeats its habits.
    """

    def __init__(self, dimensions: int = DIMENSIONS, ngrams: int = 600) -> None:
        """dimensions: upper bound of D; ngrams: number of n-grams of words, and of characters."""
        shared = {"max_features": ngrams, "sublinear_tf": True, "use_idf": False, "dtype": np.float32}
        words = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 3), **shared)
        characters = TfidfVectorizer(analyzer="char", ngram_range=(2, 4), lowercase=False, **shared)
        self.vectorizers = (words, characters)
        self.dimensions = dimensions

    def fit_transform(self, captions: Sequence[str]) -> np.ndarray:
        """Fits n-grams and components to neutral captions and returns their features (N, D).

        Raises ValueError for fewer than two different captions or captions without a word.
        """
        if len(set(captions)) < 2:
            raise ValueError(f"style features need at least two different captions, got {len(set(captions))}")
        counts_NV = self._join([vectorizer.fit_transform(captions) for vectorizer in self.vectorizers])
        components = min(self.dimensions, *counts_NV.shape)
        self.projection = PCA(components, svd_solver="covariance_eigh").fit(counts_NV.toarray())
        return self._project(counts_NV)

    def transform(self, captions: Sequence[str]) -> np.ndarray:
        """Features (N, D) of further neutral captions."""
        return self._project(self._join([vectorizer.transform(captions) for vectorizer in self.vectorizers]))

    def _join(self, parts: list[csr_matrix]) -> csr_matrix:
        return normalize(hstack(parts, format="csr"))

    def _project(self, counts_NV: csr_matrix) -> np.ndarray:
        starts = range(0, counts_NV.shape[0], BLOCK)
        parts = [self.projection.transform(counts_NV[start : start + BLOCK].toarray()) for start in starts]
        return normalize(np.concatenate(parts)).astype(np.float32)


class TextModelEncoder:
    """Features of a pretrained text model of `transformers`: the projected text embedding of a CLIP model, the mean of the
    last layer's tokens of any other.
    """

    def __init__(self, name: str, batch_size: int = 64, device: str = "auto") -> None:
        """name: model name on the Hugging Face hub or a local folder; device: as in `select_device`. Raises ValueError for a
        device that does not exist, RuntimeError when the model cannot be loaded."""
        # Importing transformers takes seconds, which the other encoder does not need.
        from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

        self.device = select_device(device)
        try:
            self.is_clip = AutoConfig.from_pretrained(name).model_type in ("clip", "clip_text_model")
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            model: Any = (CLIPTextModelWithProjection if self.is_clip else AutoModel).from_pretrained(name)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise RuntimeError(
                f"--encoder {name}: the text model cannot be loaded; give {STYLOMETRIC}, a local folder that holds one, "
                f"or a Hugging Face name while online ({type(error).__name__})"
            ) from error
        self.model = model.to(self.device).eval()
        self.batch_size = batch_size
        # CLIP has 77 positions, BERT 512; a longer caption is truncated. RoBERTa has two positions that no token occupies.
        config = getattr(self.model.config, "text_config", self.model.config)
        self.max_length = min(getattr(config, "max_position_embeddings", 512), self.tokenizer.model_max_length)

    def transform(self, captions: Sequence[str]) -> np.ndarray:
        """Features (N, D) of neutral captions."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(captions), self.batch_size):
                parts.append(self._encode_batch(list(captions[start : start + self.batch_size])))
        return normalize(np.concatenate(parts)).astype(np.float32)

    def _encode_batch(self, texts: list[str]) -> np.ndarray:
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        inputs = inputs.to(self.device)
        output = self.model(**inputs)
        if self.is_clip:
            return output.text_embeds.float().cpu().numpy()
        mask_BT1 = inputs["attention_mask"][..., None]
        return ((output.last_hidden_state * mask_BT1).sum(1) / mask_BT1.sum(1)).float().cpu().numpy()


def encode(
    captions: Sequence[str],
    encoder: str,
    folder: Path,
    progress: ProgressCallback = lambda done, total: None,
    device: str = "auto",
) -> np.ndarray:
    """Style features (N, D), D at most DIMENSIONS, of neutral captions; encoder: STYLOMETRIC, or a text model by name or folder,
    on `device`.

    Features of a text model are projected on their principal components too: unprojected, all point in much the same
    direction, and most of what distinguishes them is not style (docs/descriptions.md has numbers). They are cached in
    `folder`, BLOCK distinct captions a file, so that an interrupted run continues; equal captions are encoded once. Raises
    what the encoders raise.
    """
    if encoder == STYLOMETRIC:
        return StylometricEncoder().fit_transform(captions)
    model = TextModelEncoder(encoder, device=device)
    # Sorted by length, so that the captions of a batch need little padding.
    distinct = sorted(set(captions), key=lambda text: (len(text), text))
    # The features of one caption distinguish different weights under the same name.
    probe = model.transform(distinct[:1]).round(2).tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(distinct), BLOCK):
        texts = distinct[start : start + BLOCK]
        name = hashlib.sha256(probe + "\0".join(texts).encode()).hexdigest()[:16]
        parts.append(_load_or_compute(folder / f"{name}.npy", partial(model.transform, texts)))
        progress(min(start + BLOCK, len(distinct)), len(distinct))
    row = {text: number for number, text in enumerate(distinct)}
    features_ND = np.concatenate(parts)[[row[text] for text in captions]]
    components = PCA(min(DIMENSIONS, *features_ND.shape), svd_solver="covariance_eigh")
    return normalize(components.fit_transform(features_ND)).astype(np.float32)


def _load_or_compute(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Loads the array in a file; where there is none, computes it and writes it atomically."""
    if path.is_file():
        return np.load(path)
    values = compute()
    with atomic(path) as file:
        np.save(file, values)
    return values
