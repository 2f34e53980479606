"""Protocol of engines outside this process, which keep the images from one start to the next, and how they follow a gallery.

Shapes: N images, P positions of the table, W its width.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from training.retrieval.engines.engine import Engine, Metadata
from training.retrieval.snapshot import Snapshot

# In place of a checksum that is not known, as of images that an earlier version has sent.
NO_CHECKSUM = -1


class ServerEngine(Engine, Protocol):
    """An engine that keeps a checksum of each image."""

    def add(
        self, ids_N: np.ndarray, table_NW: np.ndarray, metadata: Metadata, crcs_N: np.ndarray | None = None
    ) -> None:
        """Adds images with their checksums, int64, or without; of ids that it has everything is replaced. -1: as in `Engine`."""

    def held(self) -> tuple[np.ndarray, np.ndarray]:
        """Id and checksum of each image that it has, int64 (N,) each; NO_CHECKSUM where there is none."""


def follow(server: ServerEngine, held: tuple[np.ndarray, np.ndarray], snapshot: Snapshot) -> None:
    """Makes a server that holds images of these ids and checksums, int64 (N,) each, hold those of the snapshot.

    Only what differs is sent. The checksums tell, not the ids alone: metadata change, and a gallery that is made again in the
    same place counts from 1 again.
    """
    ids_N, crcs_N = held
    server.delete(np.setdiff1d(ids_N, snapshot.ids_P))
    _, there, here = np.intersect1d(ids_N, snapshot.ids_P, return_indices=True)
    sent_P = snapshot.ids_P.copy()
    sent_P[here[crcs_N[there] == snapshot.crcs_P[here]]] = -1
    server.add(sent_P, snapshot.table_PW, snapshot.metadata(), snapshot.crcs_P)
