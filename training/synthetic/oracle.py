"""Ceiling of retrieval in a rendered set: likelihood of what a caption says under the true factors of each image.

The oracle ranks images by the probability that the annotator of a caption makes the same decisions about them, with the
annotator's own words and rates: it errs only where the caption does not tell images apart. Shapes: Q captions, G images,
B captions of a block, K distinct decisions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.data.datasets import Record
from training.data.ground_truth import read_factor_rows
from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.annotator import Notes
from training.synthetic.text.captions import write_with_notes
from training.synthetic.text.likelihood import SLOTS, decision_probabilities

# Probability of a decision that the factors rule out: images that contradict a caption are ranked by the number of
# contradictions.
FLOOR = 1e-4


@dataclass(frozen=True)
class TrueImage:
    """An image by its factors, and the notes that its captions were written from."""

    person: int
    outfit_number: int
    identity: Identity
    outfit: Outfit
    pose: Pose
    notes: tuple[Notes, ...]


def read_images(root: Path, records: Sequence[Record]) -> list[TrueImage]:
    """The images of `records` from factors.jsonl; notes are taken again with the seed in synthetic.json.

    Raises FileNotFoundError without factors.jsonl, ValueError for a set whose captions this version would not write.
    """
    rows = read_factor_rows(root, (record.file_path for record in records), "an oracle needs the true factors")
    seed, images = _seed(root), []
    for record, row in zip(records, rows, strict=True):
        try:
            identity, outfit = Identity(**row["identity"]), Outfit(**row["outfit"])
            pose = Pose(**row["pose"])
            person, image = map(int, Path(record.file_path).stem.split("_"))
            written = write_with_notes(KeyedRng(seed, "captions", person, image), identity, outfit, pose)
        except (KeyError, TypeError, ValueError) as error:
            raise _outdated(root, record) from error
        if [caption.text for caption, _ in written] != list(record.captions):
            raise _outdated(root, record)
        notes = tuple(notes for _, notes in written)
        images.append(TrueImage(record.id, row["outfit_number"], identity, outfit, pose, notes))
    return images


def _seed(root: Path) -> int:
    path = root / "synthetic.json"
    try:
        seed = json.loads(path.read_text(encoding="utf-8"))["parameters"]["seed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold the seed that the set was rendered with; render the set again"
        ) from error
    return int(seed)


def _outdated(root: Path, record: Record) -> ValueError:
    return ValueError(
        f"{root} was rendered by a different version: its captions of {record.file_path} are not those of its seed; an "
        "oracle needs the set rendered again"
    )


class Oracle:
    """Log-likelihoods of the captions of images, all captions in the order of the images, under the factors of each image."""

    def __init__(self, images: Sequence[TrueImage]) -> None:
        self.notes = [notes for image in images for notes in image.notes]
        rows: dict[str, dict[tuple[int, str | None], int]] = {slot: {} for slot in SLOTS}
        self._row_of_query = {slot: np.zeros(len(self.notes), np.int64) for slot in SLOTS}
        for query, notes in enumerate(self.notes):
            for slot, decision in notes.decisions.items():
                known = rows[slot]
                # Row 0 is that of captions whose annotator did not come to the decision.
                self._row_of_query[slot][query] = known.setdefault((notes.effort, decision), len(known) + 1)
        self._table = {slot: np.zeros((len(known) + 1, len(images)), np.float32) for slot, known in rows.items()}
        efforts = sorted({notes.effort for notes in self.notes})
        for column, image in enumerate(images):
            self._fill(column, image, rows, efforts)

    def _fill(self, column: int, image: TrueImage, rows: dict[str, Any], efforts: Iterable[int]) -> None:
        """Log-probabilities of all distinct decisions for one image."""
        probabilities = {e: decision_probabilities(image.identity, image.outfit, image.pose, e) for e in efforts}
        for slot, known in rows.items():
            values = [probabilities[effort][slot].get(decision, 0.0) for effort, decision in known]
            self._table[slot][1:, column] = np.log(np.maximum(values, FLOOR))

    def log_likelihood(self, slots: Sequence[str] = SLOTS, queries: slice = slice(None)) -> np.ndarray:
        """(B, G) float32, natural logarithm: of the decisions in `slots`, each at least log FLOOR."""
        total_BG = np.zeros((len(self.notes[queries]), self._table[SLOTS[0]].shape[1]), np.float32)
        for slot in slots:
            total_BG += self._table[slot][self._row_of_query[slot][queries]]
        return total_BG
