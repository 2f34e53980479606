"""Engine of Qdrant, for galleries that one machine does not hold; the same client runs in memory.

Shapes: N images, W width of the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from training.retrieval.engines.engine import Filter, Metadata

UPLOADED_AT_ONCE, LISTED_AT_ONCE = 512, 10_000
# Candidates beyond k, which are scored exactly.
LEAST_CANDIDATES = 64
TIME = "time"


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

    def add(self, ids_N: np.ndarray, table_NW: np.ndarray, metadata: Metadata) -> None:
        """Uploads images with their metadata as payload."""
        rows = np.flatnonzero(ids_N >= 0)
        for start in range(0, len(rows), UPLOADED_AT_ONCE):
            points = []
            for i in rows[start : start + UPLOADED_AT_ONCE].tolist():
                known = not np.isnan(metadata.times_N[i])
                payload: dict[str, Any] = {**metadata.row(i), **({TIME: float(metadata.times_N[i])} if known else {})}
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
        must = [
            models.FieldCondition(key=name, match=models.MatchAny(any=list(values)))
            for name, values in where.values.items()
        ]
        if where.start is not None or where.end is not None:
            must.append(models.FieldCondition(key=TIME, range=models.Range(gte=where.start, lte=where.end)))
        without = [models.HasIdCondition(has_id=sorted(where.without))] if where.without else []
        return models.Filter(must=must or None, must_not=without or None)

    def delete(self, ids_N: np.ndarray) -> None:
        """Removes points."""
        if len(ids_N):
            selector = self.models.PointIdsList(points=[int(i) for i in ids_N])
            self.client.delete(self.collection, points_selector=selector, wait=True)

    def ids(self) -> np.ndarray:
        """Ids of all points, int64."""
        found: list[int] = []
        start = None
        while True:
            points, start = self.client.scroll(
                self.collection, limit=LISTED_AT_ONCE, offset=start, with_payload=False, with_vectors=False
            )
            found += [int(point.id) for point in points]
            if start is None:
                return np.array(found, np.int64)

    def count(self) -> int:
        """Number of points."""
        return int(self.client.count(self.collection, exact=True).count)

    def close(self) -> None:
        """Closes the connection."""
        self.client.close()
