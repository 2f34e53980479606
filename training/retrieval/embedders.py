"""Models that embed images and texts for a gallery: the model of a run in PyTorch, or its export in ONNX.

Shapes: N images or texts, H, W pixels, E embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.checks import BROKEN
from training.data.known_words import WORD, unknown_words
from training.evaluation.calibration import CALIBRATION, Calibration
from training.retrieval.store import About
from training.utils.io import file_digest, read_record

if TYPE_CHECKING:
    from training.engine.checkpoint import TrainedModel

# A text is that of a person, not a book: longer ones are refused before they are tokenized.
MOST_CHARACTERS = 2000


class Embedder(ABC):
    """A model with its tokenizer; its texts and images are of one space."""

    # Model of the galleries that it makes.
    about: About
    # Height and width of the images that it reads.
    image_size: tuple[int, int]
    # Longest text in tokens.
    text_length: int
    # Images of more pixels are not read.
    max_pixels: int
    # None for a run that was not evaluated, or only by an earlier version.
    calibration: Calibration | None = None

    @abstractmethod
    def embed_images(self, pixels_N3HW: np.ndarray) -> np.ndarray:
        """uint8 (N, 3, H, W), RGB -> float32 (N, E) or (N, 2 E): [v_id; v_clo], each of unit length."""

    @abstractmethod
    def read_image(self, content: bytes, name: str) -> np.ndarray:
        """The bytes of an image file -> uint8 (3, H, W). Raises ValueError naming an image that cannot be read."""

    @abstractmethod
    def token_texts(self, text: str) -> list[str]:
        """Tokens of a text, not cut, without those that mark its ends."""

    @abstractmethod
    def unknown_words(self, words: Sequence[str]) -> list[str]:
        """Those of `words` that the tokenizer does not know (data/known_words.py)."""

    def match(self, text: str, pixels_N3HW: np.ndarray) -> np.ndarray:
        """Log-odds that the fusion of the text with each image adds to its score, in units of the score; float32 (N,). Raises
        ValueError for a model that has no fusion with a matching head."""
        raise ValueError("re-ranking needs a model with a fusion, which this one has not")

    @abstractmethod
    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, E)."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, E) of unit length. Raises ValueError for an empty or overlong text and for values that are not finite."""
        for text in texts:
            if not text.strip():
                raise ValueError("TEXT is empty, expected a description of a person")
            if len(text) > MOST_CHARACTERS:
                raise ValueError(f"TEXT has {len(text)} characters, at most {MOST_CHARACTERS} are read")
            if BROKEN.search(text):
                raise ValueError(
                    "TEXT has a NUL character or bytes that are not UTF-8, expected a description of a person"
                )
        t_NE = self._embed(texts)
        norms_N1 = np.linalg.norm(t_NE.astype(np.float64), axis=1, keepdims=True)
        if not (np.isfinite(norms_N1).all() and (norms_N1 > 0).all()):
            raise ValueError("the model gives a text embedding that is zero or not finite: its weights are damaged")
        return (t_NE / norms_N1).astype(np.float32)

    def is_familiar(self, text: str) -> bool:
        """True for a text of words that the tokenizer knows, as those of the validation split are."""
        words = WORD.findall(text)
        return bool(words) and not self.unknown_words(words)

    def notes(self, text: str) -> list[str]:
        """Remarks on a text for its author: the part that the model does not read, and words that it has never seen."""
        tokens = self.token_texts(text)
        found = []
        # [CLS] and [SEP].
        if len(tokens) > self.text_length - 2:
            found.append(
                f"the model reads the first {self.text_length - 2} tokens of this text, which has {len(tokens)}"
            )
        words = list(dict.fromkeys(WORD.findall(text)))
        unknown = self.unknown_words(words)
        if unknown:
            some = f"words that the model has not learned: {', '.join(unknown[:8])}"
            none = "no word of this text was in the texts that the model learned from"
            found.append(none if len(unknown) == len(words) else some)
        elif not words:
            found.append("this text has no words")
        return found


class TorchEmbedder(Embedder):
    """The model of a run. Raises what `checkpoint.load_run` raises."""

    def __init__(
        self, run_dir: Path, run: TrainedModel | None = None, data_root: Path | None = None, device: str = "auto"
    ) -> None:
        from training.engine import checkpoint

        self.run = run or checkpoint.load_run(run_dir, data_root, device)
        config = self.run.config
        self.image_size, self.text_length = config.data.image_size, config.data.text_length
        self.max_pixels = config.data.max_pixels
        branches = 1 if config.model.architecture == "dual-encoder" else 2
        self.about = About(
            file_digest(Path(run_dir) / "best.pt"), config.model.embedding, branches, self.run.beta, str(run_dir)
        )
        self.calibration = _read_calibration(Path(run_dir), self.about.model)

    def embed_images(self, pixels_N3HW: np.ndarray) -> np.ndarray:
        """See `Embedder`."""
        import torch

        from training.data.images.transforms import normalise

        with torch.inference_mode():
            found = self.run.model.embed_images(normalise(torch.from_numpy(pixels_N3HW)).to(self.run.device))
        parts = [found.v_id_BE] + ([] if found.v_clo_BE is None else [found.v_clo_BE])
        return torch.cat(parts, dim=1).float().cpu().numpy()

    def read_image(self, content: bytes, name: str) -> np.ndarray:
        """See `Embedder`."""
        from training.data.images.transforms import decode

        return decode(name, self.image_size, content, self.max_pixels).numpy()

    def match(self, text: str, pixels_N3HW: np.ndarray) -> np.ndarray:
        """See `Embedder`."""
        import torch

        from training.data.images.transforms import normalise
        from training.data.loader import tokenize

        model = self.run.decoupling_model
        if model.matching_head is None:
            raise ValueError(
                "re-ranking needs a model with a fusion and a matching head, which this run was trained without"
            )
        tokens = tokenize(self.run.tokenizer, [text], self.text_length).to(self.run.device)
        with torch.inference_mode():
            text_1TC = model.text(tokens.input_ids_BT, tokens.attention_mask_BT)
            t_1E = model.embed_tokens(text_1TC, tokens.attention_mask_BT)
            images = normalise(torch.from_numpy(pixels_N3HW).to(self.run.device))
            image_NPC, count = model.fused_tokens(model.bdam(model.visual(images))), len(images)
            text_NTC = text_1TC.expand(count, -1, -1)
            fused = model.fuse_parts(image_NPC, text_NTC, tokens.attention_mask_BT.expand(count, -1))
            logits_N = model.matching_head(fused.f_final_BE, t_1E.expand(count, -1))
            # Protocol `rerank` adds the logit to score / temperature.
            return (logits_N * model.temperature()).float().cpu().numpy()

    def token_texts(self, text: str) -> list[str]:
        """See `Embedder`."""
        return self.run.tokenizer.tokenize(text)

    def unknown_words(self, words: Sequence[str]) -> list[str]:
        """See `Embedder`."""
        return unknown_words(self.run.tokenizer, words)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        from training.data.loader import tokenize

        tokens = tokenize(self.run.tokenizer, texts, self.text_length).to(self.run.device)
        with torch.inference_mode():
            return self.run.model.embed_texts(tokens).float().cpu().numpy()


class OnnxEmbedder(Embedder):
    """The export of a run (training.export), without PyTorch but for `match`. threads, errors: as of `OnnxTowers`."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        from training.export.onnx_towers import OnnxTowers

        self.folder, self.threads = Path(folder), threads
        self.towers: Any = OnnxTowers(folder, threads)
        facts = self.towers.facts
        self.image_size, self.text_length = (facts.image_size[0], facts.image_size[1]), facts.text_length
        self.about = About(facts.model, facts.width, facts.branches, facts.beta, str(folder))
        self.max_pixels = facts.max_pixels
        self.calibration = _read_calibration(Path(folder), facts.model)

    def embed_images(self, pixels_N3HW: np.ndarray) -> np.ndarray:
        """See `Embedder`."""
        return self.towers.embed_images(pixels_N3HW)

    def read_image(self, content: bytes, name: str) -> np.ndarray:
        """See `Embedder`."""
        return self.towers.read_image(content, name)

    def match(self, text: str, pixels_N3HW: np.ndarray) -> np.ndarray:
        """See `Embedder`. Raises ValueError without PyTorch too."""
        tokens = [np.repeat(values, len(pixels_N3HW), 0) for values in self.towers.tokens([text])]
        return self._fusion.match(self.towers.normalised(pixels_N3HW), *tokens, self.towers.facts.pad_id)

    @cached_property
    def _fusion(self) -> Any:
        # When the first results are re-ranked: everything else needs no PyTorch.
        try:
            from training.export.fusion_package import FusionPackage
        except ImportError as error:
            raise ValueError(f"re-ranking by an exported model needs PyTorch and bdam_fast ({error})") from error
        return FusionPackage(self.folder, self.threads)

    def token_texts(self, text: str) -> list[str]:
        """See `Embedder`."""
        return self.towers.token_texts(text)

    def unknown_words(self, words: Sequence[str]) -> list[str]:
        """See `Embedder`."""
        return unknown_words(self.towers, words)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        return self.towers.embed_texts(texts)


def _read_calibration(folder: Path, checkpoint: str) -> Calibration | None:
    """The calibration in a folder; None without one, or for one of another checkpoint."""
    path = folder / CALIBRATION
    found = read_record(path, Calibration) if path.is_file() else None
    return found if found is not None and found.checkpoint == checkpoint else None


def open_embedder(run: Path | None, onnx: Path | None, device: str = "auto", threads: int = 0) -> Embedder:
    """The embedder of a run folder, on a device (see `select_device`), or of an export folder, with so many threads a call (0
    for as many as there are cores). Raises ValueError for both or none."""
    if (run is None) == (onnx is None):
        raise ValueError("expected one of --run RUN and --onnx FOLDER")
    if onnx is not None:
        return OnnxEmbedder(onnx, threads)
    assert run is not None
    if threads:
        import torch

        torch.set_num_threads(threads)
    return TorchEmbedder(run, device=device)
