"""Ceiling of retrieval by identity texts in a rendered set: likelihood of what such a text says under the factors of each image.

Shapes: B texts of a block, G images, each with one identity text.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from training.synthetic.attributes import Identity
from training.synthetic.oracle import FLOOR, TrueImage
from training.synthetic.text.descriptions import looks_of
from training.synthetic.text.habits import face_visible

# Phrases about a person that every identity text has, whatever the view.
ALWAYS = ("person", "build", "height", "hair", "skin")


class IdentityOracle:
    """Log-likelihoods of the identity texts of images, under the factors of each image.

    A text names every phrase of `looks_of`; without a beard and glasses it may be of a person who has both and is seen from
    behind, with the share of such views among the images.
    """

    def __init__(self, images: Sequence[TrueImage]) -> None:
        looks = [looks_of(image.identity, image.pose) for image in images]
        self._said = [_codes([getattr(x, name) for x in looks]) for name in ALWAYS]
        faces = [tuple(x.face) for x in looks] + [_face(image.identity) for image in images]
        self._said_face, self._true_face = np.split(_codes([(), *faces])[1:], 2)
        self._hidden = float(np.mean([not face_visible(image.pose) for image in images]))

    def log_likelihood(self, texts: slice = slice(None)) -> np.ndarray:
        """(B, G) float32, natural logarithm: of the phrases of each text, each at least log FLOOR."""
        total_BG = np.zeros((len(self._said_face[texts]), len(self._true_face)), np.float32)
        for codes in self._said:
            total_BG += np.where(codes[texts, None] == codes, 0.0, np.log(FLOOR))
        said_B1, true_G = self._said_face[texts, None], self._true_face
        # Code 0 is that of no beard and no glasses.
        face_BG = (1 - self._hidden) * (said_B1 == true_G) + self._hidden * (said_B1 == 0)
        return total_BG + np.log(np.maximum(face_BG, FLOOR)).astype(np.float32)


def _face(identity: Identity) -> tuple[str, ...]:
    return ("a full beard",) * identity.beard + ("glasses",) * identity.glasses


def _codes(values: Sequence[Hashable]) -> np.ndarray:
    """Numbers of the distinct values in the order of their first appearance."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in values])
