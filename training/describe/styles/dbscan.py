"""DBSCAN of many features at once in bounded memory, its radius from the knee of the k-distance curve, and the merging of
small clusters (Ester et al., A Density-Based Algorithm for Discovering Clusters, KDD 1996).

Shapes: N points, M core points, S clusters, D features; float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

# Core points compared with all others at a time: the block's distances are 70 MB at 68,126 points, its pairs, if all are
# near, 16 times as many bytes as points.
BLOCK = 256
# Share of the k-distance curve that its knee is looked for in: how far away the loneliest points are must not move it.
# With all of it the radius is 4 to 6 % larger, where a few more per cent join two synthetic writers.
CURVE = 0.95


@dataclass(frozen=True)
class Dense:
    """What DBSCAN found."""

    # Cluster of each point, int64 (N,); noise belongs to the cluster of the nearest core point.
    labels_N: np.ndarray
    # Points that are neither core points nor within the radius of one, bool (N,).
    noise_N: np.ndarray
    clusters: int


def k_distances(points_ND: np.ndarray, k: int) -> np.ndarray:
    """Distance of each point to its k-th nearest, itself counted (N,): a point is a core point of DBSCAN with
    min_samples = k where that is at most the radius. Raises ValueError when there are fewer than k points."""
    if len(points_ND) < k:
        raise ValueError(f"min_samples must be at most the number of different features ({len(points_ND)}), got {k}")
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points_ND)
    return search.kneighbors(points_ND)[0][:, -1]


def knee(distances_N: np.ndarray) -> int:
    """Index into the *sorted* distances where their curve turns upwards: the point furthest below the straight line between
    its ends, both axes scaled to [0, 1]; its end is at the share CURVE."""
    curve_N = np.sort(distances_N)[: max(2, int(CURVE * len(distances_N)))]
    rise = curve_N[-1] - curve_N[0]
    if rise == 0:
        return len(curve_N) - 1
    return int(np.argmax(np.linspace(0, 1, len(curve_N)) - (curve_N - curve_N[0]) / rise))


def dbscan(points_ND: np.ndarray, eps: float, distances_N: np.ndarray) -> Dense:
    """Clusters of the core points: those whose k-distance is at most eps, connected by steps of at most eps.

    Equal to DBSCAN but for border points, which here belong to the nearest core point and not to the first one found, so
    that the order of the points does not matter. Memory is that of one block of distances: N^2 never exists.

    Raises ValueError when there is no core point.
    """
    core_N = distances_N <= eps
    if not core_N.any():
        raise ValueError(
            f"eps = {eps:g} leaves no dense region, the smallest k-distance is {distances_N.min():g}; "
            "raise eps or lower min_samples"
        )
    clusters, labels_M = _components(points_ND[core_N], eps)
    labels_N, noise_N = np.empty(len(points_ND), dtype=np.int64), np.zeros(len(points_ND), dtype=bool)
    labels_N[core_N] = labels_M
    if not core_N.all():
        search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(points_ND[core_N])
        distance, nearest = search.kneighbors(points_ND[~core_N])
        labels_N[~core_N], noise_N[~core_N] = labels_M[nearest[:, 0]], distance[:, 0] > eps
    return Dense(labels_N, noise_N, clusters)


def _components(points_MD: np.ndarray, eps: float) -> tuple[int, np.ndarray]:
    """(number, component of each point) of the graph that joins points at most eps apart.

    The components so far are the nodes of the graph of each block, so that edges need not be kept.
    """
    squares_M = np.einsum("md,md->m", points_MD, points_MD)
    count, labels_M = len(points_MD), np.arange(len(points_MD))
    for start in range(0, len(points_MD), BLOCK):
        rows = slice(start, start + BLOCK)
        distances = squares_M[rows, None] + squares_M[start:] - 2 * (points_MD[rows] @ points_MD[start:].T)
        one, other = np.nonzero(distances <= eps * eps)
        edges = coo_array((np.ones(len(one), bool), (labels_M[start + one], labels_M[start + other])), (count, count))
        count, joined = connected_components(edges, directed=False)
        labels_M = joined[labels_M]
    return count, labels_M.astype(np.int64)


def merge_small(points_ND: np.ndarray, labels_N: np.ndarray, min_share: float) -> np.ndarray:
    """Labels with every cluster of less than min_share of the points merged into the one whose mean is nearest, the
    smallest first, until all are large enough or one is left; labels keep their numbers (N,)."""
    names, labels_N, sizes = np.unique(labels_N, return_inverse=True, return_counts=True)
    sums_SD = np.zeros((len(names), points_ND.shape[1]))
    np.add.at(sums_SD, labels_N, points_ND)
    goes_to = np.arange(len(names))
    alive = np.ones(len(names), dtype=bool)
    while alive.sum() > 1:
        small = int(np.argmin(np.where(alive, sizes, np.iinfo(np.int64).max)))
        if sizes[small] >= min_share * len(labels_N):
            break
        means_SD = sums_SD / np.maximum(sizes, 1)[:, None]
        apart = np.where(alive, ((means_SD - means_SD[small]) ** 2).sum(1), np.inf)
        apart[small] = np.inf
        target = int(np.argmin(apart))
        sums_SD[target] += sums_SD[small]
        sizes[target] += sizes[small]
        alive[small] = False
        goes_to[goes_to == small] = target
    return names[goes_to[labels_N]]
