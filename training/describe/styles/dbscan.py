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
# Share of the k-distance curve in which the knee is searched for, so that outliers do not move it. On the whole curve the
# radius is 4 to 6 % larger, and a few per cent more merge two synthetic writers.
KNEE_SHARE = 0.95


@dataclass(frozen=True)
class DbscanResult:
    """Result of DBSCAN."""

    # Cluster of each point, int64 (N,); noise is assigned to the cluster of the nearest core point.
    labels_N: np.ndarray
    # Points that are neither core points nor within the radius of one, bool (N,).
    noise_N: np.ndarray
    # Number of clusters.
    clusters: int


def k_distances(points_ND: np.ndarray, k: int) -> np.ndarray:
    """Distance of each point to its k-th nearest neighbour, itself included, (N,).

    A point is a core point of DBSCAN with min_samples = k where this is at most the radius. Raises ValueError for fewer than
    k points.
    """
    if len(points_ND) < k:
        raise ValueError(f"min_samples must be at most the number of different features ({len(points_ND)}), got {k}")
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points_ND)
    return search.kneighbors(points_ND)[0][:, -1]


def knee(distances_N: np.ndarray) -> int:
    """Index into the *sorted* distances where their curve turns upwards: the point furthest below the straight line between
    its ends, both axes scaled to [0, 1]; the curve ends at KNEE_SHARE of the points."""
    curve_N = np.sort(distances_N)[: max(2, int(KNEE_SHARE * len(distances_N)))]
    rise = curve_N[-1] - curve_N[0]
    if rise == 0:
        return len(curve_N) - 1
    return int(np.argmax(np.linspace(0, 1, len(curve_N)) - (curve_N - curve_N[0]) / rise))


def dbscan(points_ND: np.ndarray, eps: float, distances_N: np.ndarray) -> DbscanResult:
    """Clusters points; core points are those whose k-distance (`distances_N`) is at most eps.

    Equals DBSCAN except for border points, which belong to the nearest core point and not to the first one found, so that the
    order of the points does not matter. Memory is that of one block of distances: the N x N matrix never exists. Raises
    ValueError when there is no core point.
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
    return DbscanResult(labels_N, noise_N, clusters)


def _components(points_MD: np.ndarray, eps: float) -> tuple[int, np.ndarray]:
    """Returns (number of connected components, component of each point (M,)) of the graph that joins points at most eps apart.

    Blocks are joined one after the other, with the components so far as nodes, so that edges need not be kept.
    """
    squares_M = np.einsum("md,md->m", points_MD, points_MD)
    count, labels_M = len(points_MD), np.arange(len(points_MD))
    for start in range(0, len(points_MD), BLOCK):
        rows = slice(start, start + BLOCK)
        distances = squares_M[rows, None] + squares_M[start:] - 2 * (points_MD[rows] @ points_MD[start:].T)
        row, column = np.nonzero(distances <= eps * eps)
        edges = coo_array((np.ones(len(row), bool), (labels_M[start + row], labels_M[start + column])), (count, count))
        count, joined = connected_components(edges, directed=False)
        labels_M = joined[labels_M]
    return count, labels_M.astype(np.int64)


def merge_small(points_ND: np.ndarray, labels_N: np.ndarray, min_share: float) -> np.ndarray:
    """Merges every cluster with less than min_share of the points into the one whose mean is nearest, the smallest first,
    until all are large enough or one remains; returns labels (N,), which keep their numbers."""
    names, labels_N, sizes = np.unique(labels_N, return_inverse=True, return_counts=True)
    sums_SD = np.zeros((len(names), points_ND.shape[1]))
    np.add.at(sums_SD, labels_N, points_ND)
    merged_into = np.arange(len(names))
    alive = np.ones(len(names), dtype=bool)
    while alive.sum() > 1:
        small = int(np.argmin(np.where(alive, sizes, np.iinfo(np.int64).max)))
        if sizes[small] >= min_share * len(labels_N):
            break
        means_SD = sums_SD / np.maximum(sizes, 1)[:, None]
        distances = np.where(alive, ((means_SD - means_SD[small]) ** 2).sum(1), np.inf)
        distances[small] = np.inf
        target = int(np.argmin(distances))
        sums_SD[target] += sums_SD[small]
        sizes[target] += sizes[small]
        alive[small] = False
        merged_into[merged_into == small] = target
    return names[merged_into[labels_N]]
