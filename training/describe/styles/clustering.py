"""Clustering of captions into styles by the methods of Table 4, and examples and marker phrases of each style.

Shapes: N captions, D features, S styles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from training.describe.styles.dbscan import dbscan, k_distances, knee, merge_small
from training.describe.styles.style_encoders import TOKEN
from training.describe.styles.style_options import StyleOptions

# Captions used by methods of quadratic memory and by the choice of the number of styles; the others get the style of the
# nearest mean (agglomerative) or caption (hdbscan). 6,000^2 distances are 290 MB.
MAX_SAMPLE = 6000
# Candidate numbers of styles, of which the silhouette chooses one.
CLUSTER_COUNTS = range(2, 21)
# A Gaussian with full covariance has as many parameters as this squared.
GAUSSIAN_DIMENSIONS = 32
MAX_EXAMPLES = 10
MAX_MARKERS = 8


@dataclass(frozen=True)
class Clustering:
    """Result of a clustering."""

    # Style of each caption, int64 (N,), from 0, the most frequent style first.
    styles_N: np.ndarray
    # Share of the captions that belonged to no cluster and were assigned to the nearest.
    noise_share: float
    # Parameters that the method chose itself, such as its radius and the number of clusters before merging.
    details: dict[str, Any] = field(default_factory=dict)
    # Sorted k-distances of the P distinct features (dbscan), float32 (P,); else empty.
    k_distances_P: np.ndarray = field(default_factory=lambda: np.empty(0))


def cluster(features_ND: np.ndarray, method: str, options: StyleOptions) -> Clustering:
    """Clusters captions by their style features (N, D) (norm 1, float32); method: one of config.STYLE_METHODS.

    Equal arguments give equal styles. Raises ValueError when there are fewer distinct captions than requested styles or than
    min_samples, and what `dbscan.dbscan` raises.
    """
    found = _CLUSTERERS[method](features_ND, options)
    # The most frequent first; of equally frequent ones the one whose first caption comes first.
    names, first, labels_N, sizes = np.unique(
        found.styles_N, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((first, -sizes))
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    return Clustering(rank[labels_N], found.noise_share, found.details, found.k_distances_P)


def _none(features_ND: np.ndarray, options: StyleOptions) -> Clustering:
    return Clustering(np.zeros(len(features_ND), dtype=np.int64), 0.0)


def _random(features_ND: np.ndarray, options: StyleOptions) -> Clustering:
    count = _cluster_count(features_ND, options)
    draws = np.random.default_rng(options.seed).integers(count, size=len(features_ND))
    return Clustering(draws, 0.0, {"clusters": count})


def _kmeans(features_ND: np.ndarray, options: StyleOptions) -> Clustering:
    count = _cluster_count(features_ND, options)
    labels_N = KMeans(count, n_init=10, random_state=options.seed).fit_predict(features_ND)
    return Clustering(labels_N, 0.0, {"clusters": count})


def _gmm(features_ND: np.ndarray, options: StyleOptions) -> Clustering:
    count = _cluster_count(features_ND, options)
    if features_ND.shape[1] > GAUSSIAN_DIMENSIONS:
        features_ND = PCA(GAUSSIAN_DIMENSIONS, random_state=options.seed).fit_transform(features_ND)
    # The smallest variance keeps a component of equal captions from collapsing into a point.
    model = GaussianMixture(count, reg_covar=1e-3, n_init=3, random_state=options.seed).fit(
        _sample(features_ND, options)
    )
    return Clustering(model.predict(features_ND), 0.0, {"clusters": count})


def _agglomerative(features_ND: np.ndarray, options: StyleOptions) -> Clustering:
    count = _cluster_count(features_ND, options)
    sample = _sample(features_ND, options)
    labels = AgglomerativeClustering(count, linkage="ward").fit_predict(sample)
    means_SD = np.stack([sample[labels == label].mean(0) for label in range(count)])
    return Clustering(_nearest(means_SD, features_ND)[0], 0.0, {"clusters": count})


def _hdbscan(features_ND: np.ndarray, options: StyleOptions) -> Clustering:
    sample = np.unique(_sample(features_ND, options), axis=0)
    least = max(options.min_samples, round(options.min_share * len(sample)))
    if len(sample) < least:
        raise ValueError(f"min_samples must be at most the number of different features ({len(sample)}), got {least}")
    model = HDBSCAN(min_cluster_size=least, min_samples=options.min_samples, algorithm="brute", copy=True)
    labels = model.fit_predict(sample.astype(np.float64))
    inside = labels >= 0
    if not inside.any():
        return Clustering(np.zeros(len(features_ND), dtype=np.int64), 1.0, {"clusters": 0})
    nearest, _ = _nearest(sample, features_ND)
    noise = float((~inside)[nearest].mean())
    labels_N = labels[inside][_nearest(sample[inside], features_ND)[0]]
    return Clustering(merge_small(features_ND, labels_N, options.min_share), noise, {"clusters": int(labels.max()) + 1})


def _dbscan(features_ND: np.ndarray, options: StyleOptions) -> Clustering:
    # Captions whose neutral forms are equal are one point: counted singly they would be a cluster of their own, with
    # k-distance 0. Rounded, since the last digits of a text model's features depend on the batch.
    points_PD, which_N = np.unique(features_ND.round(5), axis=0, return_inverse=True)
    distances_P = k_distances(points_PD, options.min_samples)
    curve_P = np.sort(distances_P)
    at = knee(distances_P)
    dense = dbscan(points_PD, options.eps or float(curve_P[at]), distances_P)
    labels_N = merge_small(features_ND, dense.labels_N[which_N], options.min_share)
    found = {"eps": options.eps or float(curve_P[at]), "knee": at, "points": len(points_PD), "clusters": dense.clusters}
    return Clustering(labels_N, float(dense.noise_N[which_N].mean()), found, curve_P)


_CLUSTERERS: dict[str, Callable[[np.ndarray, StyleOptions], Clustering]] = {
    "none": _none,
    "random": _random,
    "kmeans": _kmeans,
    "gmm": _gmm,
    "agglomerative": _agglomerative,
    "hdbscan": _hdbscan,
    "dbscan": _dbscan,
}


def _sample(features_ND: np.ndarray, options: StyleOptions) -> np.ndarray:
    """At most MAX_SAMPLE of the features, in their order."""
    if len(features_ND) <= MAX_SAMPLE:
        return features_ND
    chosen = np.random.default_rng(options.seed).choice(len(features_ND), MAX_SAMPLE, replace=False)
    return features_ND[np.sort(chosen)]


def _cluster_count(features_ND: np.ndarray, options: StyleOptions) -> int:
    """Number of styles: as requested, or by the silhouette."""
    different = len(np.unique(features_ND.round(5), axis=0))
    if options.clusters > different:
        raise ValueError(
            f"clusters must be at most the number of different captions ({different}), got {options.clusters}"
        )
    if options.clusters:
        return options.clusters
    sample = _sample(features_ND, options)
    scores = {}
    for count in CLUSTER_COUNTS:
        if count < min(different, len(sample)):
            labels = KMeans(count, n_init=3, random_state=options.seed).fit_predict(sample)
            scores[count] = silhouette_score(
                sample, labels, sample_size=min(2000, len(sample)), random_state=options.seed
            )
    return max(scores, key=lambda count: scores[count]) if scores else 1


def _nearest(points_MD: np.ndarray, features_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (index of the nearest of M points, distance to it) for each feature, both (N,)."""
    distance, index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(points_MD).kneighbors(features_ND)
    return index[:, 0], distance[:, 0]


def prototypes(features_ND: np.ndarray, styles_N: np.ndarray) -> np.ndarray:
    """Mean feature of each style, (S, D)."""
    return np.stack([features_ND[styles_N == style].mean(0) for style in range(styles_N.max() + 1)])


def choose_examples(features_ND: np.ndarray, styles_N: np.ndarray, neutral: Sequence[str]) -> list[list[int]]:
    """Indices of up to MAX_EXAMPLES captions for each style: the nearest to its prototype, with distinct neutral forms."""
    chosen = []
    for style, prototype_D in enumerate(prototypes(features_ND, styles_N)):
        members = np.flatnonzero(styles_N == style)
        ordered = members[np.argsort(((features_ND[members] - prototype_D) ** 2).sum(1), kind="stable")]
        # The nearest of several captions with the same neutral form.
        nearest: dict[str, int] = {}
        for index in ordered:
            nearest.setdefault(neutral[index], int(index))
        chosen.append(list(nearest.values())[:MAX_EXAMPLES])
    return chosen


def find_markers(styles_N: np.ndarray, neutral: Sequence[str]) -> list[list[str]]:
    """Up to MAX_MARKERS phrases (1 to 3 words) for each style whose share of captions exceeds that of the others the most."""
    vectorizer = CountVectorizer(
        token_pattern=TOKEN, ngram_range=(1, 3), binary=True, max_features=5000, dtype=np.int32
    )
    contains_NV, phrases = vectorizer.fit_transform(neutral), vectorizer.get_feature_names_out()
    total_V = np.asarray(contains_NV.sum(0)).ravel()
    found = []
    for style in range(int(styles_N.max()) + 1):
        inside = styles_N == style
        inside_V = np.asarray(contains_NV[np.flatnonzero(inside)].sum(0)).ravel()
        size, rest = int(inside.sum()), len(styles_N) - int(inside.sum())
        excess_V = inside_V / size - (total_V - inside_V) / max(rest, 1)
        best = np.argsort(-excess_V, kind="stable")[:MAX_MARKERS]
        found.append([str(phrases[index]) for index in best if excess_V[index] > 0])
    return found
