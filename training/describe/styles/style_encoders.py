"""Style features of neutral captions (lexicon.py): from counts of words and characters, or from a pretrained text model.

Shapes: N captions, V n-grams, D features. Features are float32 with Euclidean norm 1, so that Euclidean distances order
pairs as cosines do.
"""

from __future__ import annotations

import hashlib
import os
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

# Called with (captions done, captions in all).
Progress = Callable[[int, int], None]
STYLOMETRIC = "stylometric"
# Words with their apostrophes, and every punctuation mark.
TOKEN = r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]"
# Principal components that features are projected on.
DIMENSIONS = 32
# Captions at a time: bounds the dense block of the projection, and what an interrupted text model computes again.
BLOCK = 1024


class StylometricEncoder:
    """Frequencies of the most frequent n-grams of words (1 to 3, punctuation marks are words) and of characters (2 to 4),
    projected on their principal components.

    No inverse document frequencies: rare n-grams are what a lexicon has missed and slips of the pen, frequent ones are
    function words and punctuation. Logarithmic counts, since a longer caption repeats its habits.
    """

    def __init__(self, dimensions: int = DIMENSIONS, ngrams: int = 600) -> None:
        """dimensions: D, fewer where the captions have no more; ngrams: how many of words, and of characters."""
        shared = {"max_features": ngrams, "sublinear_tf": True, "use_idf": False, "dtype": np.float32}
        words = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 3), **shared)
        characters = TfidfVectorizer(analyzer="char", ngram_range=(2, 4), lowercase=False, **shared)
        self.vectorizers = (words, characters)
        self.dimensions = dimensions

    def fit_transform(self, captions: Sequence[str]) -> np.ndarray:
        """Learns n-grams and components from neutral captions and returns their features (N, D).

        Raises ValueError for fewer than two different captions or captions without a word.
        """
        if len(set(captions)) < 2:
            raise ValueError(f"style features need at least two different captions, got {len(set(captions))}")
        counts_NV = self._joined([vectorizer.fit_transform(captions) for vectorizer in self.vectorizers])
        components = min(self.dimensions, *counts_NV.shape)
        self.projection = PCA(components, svd_solver="covariance_eigh").fit(counts_NV.toarray())
        return self._projected(counts_NV)

    def transform(self, captions: Sequence[str]) -> np.ndarray:
        """Features (N, D) of other neutral captions."""
        return self._projected(self._joined([vectorizer.transform(captions) for vectorizer in self.vectorizers]))

    def _joined(self, parts: list[csr_matrix]) -> csr_matrix:
        return normalize(hstack(parts, format="csr"))

    def _projected(self, counts_NV: csr_matrix) -> np.ndarray:
        starts = range(0, counts_NV.shape[0], BLOCK)
        parts = [self.projection.transform(counts_NV[start : start + BLOCK].toarray()) for start in starts]
        return normalize(np.concatenate(parts)).astype(np.float32)


class TextModelEncoder:
    """Features of a pretrained text model of `transformers`: the projected text of a CLIP model, the mean of the last
    layer's tokens of any other.
    """

    def __init__(self, name: str, batch_size: int = 64) -> None:
        """name: a name of the Hugging Face hub or a local folder. Raises RuntimeError when it cannot be loaded."""
        # Importing transformers takes seconds, which the other encoder does not need.
        from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

        try:
            self.is_clip = AutoConfig.from_pretrained(name).model_type in ("clip", "clip_text_model")
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            self.model: Any = (CLIPTextModelWithProjection if self.is_clip else AutoModel).from_pretrained(name)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise RuntimeError(
                f"--encoder {name}: the text model cannot be loaded; give {STYLOMETRIC}, a local folder that holds one, "
                f"or a Hugging Face name while online ({type(error).__name__})"
            ) from error
        self.model.eval()
        self.batch_size = batch_size
        # CLIP has 77 positions, BERT 512; a caption that is longer than that is cut. RoBERTa has two that no word takes.
        config = getattr(self.model.config, "text_config", self.model.config)
        self.max_length = min(getattr(config, "max_position_embeddings", 512), self.tokenizer.model_max_length)

    def transform(self, captions: Sequence[str]) -> np.ndarray:
        """Features (N, D) of neutral captions."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(captions), self.batch_size):
                parts.append(self._encoded(list(captions[start : start + self.batch_size])))
        return normalize(np.concatenate(parts)).astype(np.float32)

    def _encoded(self, texts: list[str]) -> np.ndarray:
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        output = self.model(**inputs)
        if self.is_clip:
            return output.text_embeds.float().numpy()
        mask_BT1 = inputs["attention_mask"][..., None]
        return ((output.last_hidden_state * mask_BT1).sum(1) / mask_BT1.sum(1)).float().numpy()


def encode(
    captions: Sequence[str], encoder: str, folder: Path, progress: Progress = lambda done, total: None
) -> np.ndarray:
    """Style features (N, DIMENSIONS) of neutral captions by the encoder STYLOMETRIC, or a text model by name or folder.

    Those of a text model are projected on their principal components too: as they are, all point in much the same direction,
    and most of what tells them apart is no style (docs/descriptions.md has numbers).

    What a text model has computed lies in `folder`, BLOCK different captions a file, and is not computed again after an
    interruption; equal captions are computed once. Raises what the encoders raise.
    """
    if encoder == STYLOMETRIC:
        return StylometricEncoder().fit_transform(captions)
    model = TextModelEncoder(encoder)
    # Captions of one length share a batch without padding.
    distinct = sorted(set(captions), key=lambda text: (len(text), text))
    # Features of one caption tell weights apart that have the same name.
    probe = model.transform(distinct[:1]).round(2).tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(distinct), BLOCK):
        texts = distinct[start : start + BLOCK]
        name = hashlib.sha256(probe + "\0".join(texts).encode()).hexdigest()[:16]
        parts.append(_kept(folder / f"{name}.npy", partial(model.transform, texts)))
        progress(min(start + BLOCK, len(distinct)), len(distinct))
    row = {text: number for number, text in enumerate(distinct)}
    features_ND = np.concatenate(parts)[[row[text] for text in captions]]
    components = PCA(min(DIMENSIONS, *features_ND.shape), svd_solver="covariance_eigh")
    return normalize(components.fit_transform(features_ND)).astype(np.float32)


def _kept(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in a file, computed and written in one move where there is none."""
    if path.is_file():
        return np.load(path)
    values = compute()
    unfinished = path.with_suffix(".tmp")
    with open(unfinished, "wb") as file:
        np.save(file, values)
    os.replace(unfinished, path)
    return values
