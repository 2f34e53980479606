"""Engine of Qdrant, for galleries that one machine does not hold; the same client runs in memory.

Shapes: N images, W width of the table.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from training.retrieval.engines.engine import Filter, Metadata
from training.retrieval.engines.server import NO_CHECKSUM

UPLOADED_AT_ONCE, LISTED_AT_ONCE = 512, 10_000
# Candidates beyond k, which are scored exactly.
LEAST_CANDIDATES = 64
# Keys of a payload; those of metadata columns begin with COLUMN.
TIME, CRC, COLUMN = "time", "crc", "column-"


class QdrantEngine:
    """A collection of a Qdrant server, made when it does not exist.

    location: "http://host:6333" or ":memory:". Raises RuntimeError without the client or the server.
    """

    def __init__(self, width: int, location: str, collection: str) -> None:
        try:
            from qdrant_client import QdrantClient, models
        except ImportError as error:
            raise RuntimeError("the engine qdrant needs qdrant-client: pip install 'bdam-fast[search]'") from error
        self.models: Any = models
        self.collection = collection
        self.client = (
            QdrantClient(":memory:")
            if location == ":memory:"
            else QdrantClient(url=location, check_compatibility=False)
        )
        try:
            if not self.client.collection_exists(collection):
                vectors = models.VectorParams(size=width, distance=models.Distance.DOT)
                self.client.create_collection(collection, vectors_config=vectors)
        except Exception as error:
            # The client wraps every error of the network in classes of its own.
            raise RuntimeError(f"Qdrant at {location} does not answer: {error}") from error

    def add(
        self, ids_N: np.ndarray, table_NW: np.ndarray, metadata: Metadata, crcs_N: np.ndarray | None = None
    ) -> None:
        """Uploads images with their metadata and checksums as payload, in place of those of the same ids."""
        rows = np.flatnonzero(ids_N >= 0)
        for start in range(0, len(rows), UPLOADED_AT_ONCE):
            points = []
            for i in rows[start : start + UPLOADED_AT_ONCE].tolist():
                payload: dict[str, Any] = {_key(name): value for name, value in metadata.row(i).items()}
                if not np.isnan(metadata.times_N[i]):
                    payload[TIME] = float(metadata.times_N[i])
                if crcs_N is not None:
                    payload[CRC] = int(crcs_N[i])
                points.append(self.models.PointStruct(id=int(ids_N[i]), vector=table_NW[i].tolist(), payload=payload))
            self.client.upsert(self.collection, points=points, wait=True)

    def search(self, query_W: np.ndarray, k: int, where: Filter) -> np.ndarray:
        """Ids of the nearest; the server applies the filter while searching."""
        found = self.client.query_points(
            self.collection,
            query=query_W.tolist(),
            limit=max(LEAST_CANDIDATES, 2 * k),
            query_filter=self._filter(where),
            with_payload=False,
        )
        return np.array([point.id for point in found.points], np.int64)

    def _filter(self, where: Filter) -> Any:
        models = self.models
        must = [self._condition(_key(name), values) for name, values in where.values.items()]
        if where.start is not None or where.end is not None:
            must.append(models.FieldCondition(key=TIME, range=models.Range(gte=where.start, lte=where.end)))
        without = [models.HasIdCondition(has_id=sorted(where.without))] if where.without else []
        return models.Filter(must=must or None, must_not=without or None)

    def _condition(self, key: str, values: tuple[str, ...]) -> Any:
        models = self.models
        among = models.FieldCondition(key=key, match=models.MatchAny(any=[value for value in values if value]))
        if "" not in values:
            return among
        # "" is kept as no value at all, as of a column that is newer than the image.
        return models.Filter(should=[among, models.IsEmptyCondition(is_empty=models.PayloadField(key=key))])

    def delete(self, ids_N: np.ndarray) -> None:
        """Removes points."""
        if len(ids_N):
            selector = self.models.PointIdsList(points=[int(i) for i in ids_N])
            self.client.delete(self.collection, points_selector=selector, wait=True)

    def held(self) -> tuple[np.ndarray, np.ndarray]:
        """Id and checksum of each point, int64 (N,) each; NO_CHECKSUM where there is none."""
        found: list[tuple[int, int]] = []
        start = None
        while True:
            points, start = self.client.scroll(
                self.collection, limit=LISTED_AT_ONCE, offset=start, with_payload=[CRC], with_vectors=False
            )
            found += [(int(point.id), (point.payload or {}).get(CRC, NO_CHECKSUM)) for point in points]
            if start is None:
                ids_N, crcs_N = np.array(found, np.int64).reshape(-1, 2).T
                return ids_N, crcs_N

    def count(self) -> int:
        """Number of points."""
        return int(self.client.count(self.collection, exact=True).count)

    def close(self) -> None:
        """Closes the connection."""
        self.client.close()


def _key(name: str) -> str:
    """Key of a metadata column. Qdrant reads a key as a path: dots, brackets and spaces would be part of its language."""
    return COLUMN + re.sub(rb"[^A-Za-z0-9_]", lambda found: b"-%02x" % found[0][0], name.encode()).decode()
