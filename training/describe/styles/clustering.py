"""Styles of captions: clusters of their style features by one of the methods of Table 4, and what shows a style.

Shapes: N captions, D features, S styles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from training.config.fields import Stage, Within
from training.describe.styles.dbscan import dbscan, k_distances, knee, merge_small
from training.describe.styles.style_encoders import TOKEN

# Captions that methods of quadratic memory, and the choice of the number of styles, look at; the others get the style of
# the nearest mean (agglomerative) or caption (hdbscan). 6,000^2 distances are 290 MB.
SAMPLE = 6000
# Numbers of styles among which the silhouette chooses.
CHOICES = range(2, 21)
# A Gaussian with a full covariance has as many parameters as this squared.
GAUSSIAN_DIMENSIONS = 32
EXAMPLES = 10
MARKERS = 8


@dataclass(frozen=True)
class StyleOptions(Stage):
    """How captions are put into styles (readings 19 and 20)."""

    # Captions within reach that make one the core of a cluster, itself counted (dbscan, hdbscan).
    min_samples: Annotated[int, Within(2)] = 20
    # Reach (dbscan), a distance between features of norm 1; 0: the knee of the k-distance curve, k = min_samples.
    eps: Annotated[float, Within(0, 2)] = 0.0
    # Clusters of a smaller share of the captions are merged into the nearest (dbscan, hdbscan).
    min_share: Annotated[float, Within(0, 0.5)] = 0.05
    # Number of styles (random, kmeans, gmm, agglomerative); 0: the one from 2 to 20 with the largest mean
    # silhouette of K-means.
    clusters: Annotated[int, Within(0)] = 0
    # Of random, the starts of kmeans and gmm, and the samples.
    seed: Annotated[int, Within(0)] = 0


@dataclass(frozen=True)
class Styles:
    """Styles of captions."""

    # int64 (N,), from 0, the most frequent style first.
    styles_N: np.ndarray
    # Share of the captions that belonged to no cluster and got the nearest.
    noise_share: float
    # What the method chose for itself: its radius, how many clusters there were before merging.
    found: dict[str, Any] = field(default_factory=dict)
    # Sorted k-distances of the different features (dbscan), else empty.
    curve: np.ndarray = field(default_factory=lambda: np.empty(0))


def cluster(features_ND: np.ndarray, method: str, options: StyleOptions) -> Styles:
    """The styles of captions with these features (norm 1, float32) by one of config.STYLE_METHODS.

    Equal arguments give equal styles.

    Raises ValueError when there are fewer captions than styles asked for or than min_samples, and what `density.dbscan`
    raises.
    """
    found = _CLUSTERERS[method](features_ND, options)
    # The most frequent first; of equally frequent ones the one whose first caption comes first.
    names, first, labels_N, sizes = np.unique(
        found.styles_N, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((first, -sizes))
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    return Styles(rank[labels_N], found.noise_share, found.found, found.curve)


def _none(features_ND: np.ndarray, options: StyleOptions) -> Styles:
    return Styles(np.zeros(len(features_ND), dtype=np.int64), 0.0)


def _random(features_ND: np.ndarray, options: StyleOptions) -> Styles:
    count = _number(features_ND, options)
    draws = np.random.default_rng(options.seed).integers(count, size=len(features_ND))
    return Styles(draws, 0.0, {"clusters": count})


def _kmeans(features_ND: np.ndarray, options: StyleOptions) -> Styles:
    count = _number(features_ND, options)
    labels_N = KMeans(count, n_init=10, random_state=options.seed).fit_predict(features_ND)
    return Styles(labels_N, 0.0, {"clusters": count})


def _gmm(features_ND: np.ndarray, options: StyleOptions) -> Styles:
    count = _number(features_ND, options)
    if features_ND.shape[1] > GAUSSIAN_DIMENSIONS:
        features_ND = PCA(GAUSSIAN_DIMENSIONS, random_state=options.seed).fit_transform(features_ND)
    # The smallest variance keeps a component of equal captions from collapsing into a point.
    model = GaussianMixture(count, reg_covar=1e-3, n_init=3, random_state=options.seed).fit(
        _sample(features_ND, options)
    )
    return Styles(model.predict(features_ND), 0.0, {"clusters": count})


def _agglomerative(features_ND: np.ndarray, options: StyleOptions) -> Styles:
    count = _number(features_ND, options)
    sample = _sample(features_ND, options)
    labels = AgglomerativeClustering(count, linkage="ward").fit_predict(sample)
    means_SD = np.stack([sample[labels == label].mean(0) for label in range(count)])
    return Styles(_nearest(means_SD, features_ND)[0], 0.0, {"clusters": count})


def _hdbscan(features_ND: np.ndarray, options: StyleOptions) -> Styles:
    sample = np.unique(_sample(features_ND, options), axis=0)
    least = max(options.min_samples, round(options.min_share * len(sample)))
    if len(sample) < least:
        raise ValueError(f"min_samples must be at most the number of different features ({len(sample)}), got {least}")
    model = HDBSCAN(min_cluster_size=least, min_samples=options.min_samples, algorithm="brute", copy=True)
    labels = model.fit_predict(sample.astype(np.float64))
    inside = labels >= 0
    if not inside.any():
        return Styles(np.zeros(len(features_ND), dtype=np.int64), 1.0, {"clusters": 0})
    nearest, _ = _nearest(sample, features_ND)
    noise = float((~inside)[nearest].mean())
    labels_N = labels[inside][_nearest(sample[inside], features_ND)[0]]
    return Styles(merge_small(features_ND, labels_N, options.min_share), noise, {"clusters": int(labels.max()) + 1})


def _dbscan(features_ND: np.ndarray, options: StyleOptions) -> Styles:
    # Captions that are equal without their attributes are one point: counted each, they would be a cluster of their own,
    # with k-distance 0. The last digits of a text model's features depend on the batch.
    points_PD, which_N = np.unique(features_ND.round(5), axis=0, return_inverse=True)
    distances_P = k_distances(points_PD, options.min_samples)
    curve_P = np.sort(distances_P)
    at = knee(distances_P)
    dense = dbscan(points_PD, options.eps or float(curve_P[at]), distances_P)
    labels_N = merge_small(features_ND, dense.labels_N[which_N], options.min_share)
    found = {"eps": options.eps or float(curve_P[at]), "knee": at, "points": len(points_PD), "clusters": dense.clusters}
    return Styles(labels_N, float(dense.noise_N[which_N].mean()), found, curve_P)


_CLUSTERERS: dict[str, Callable[[np.ndarray, StyleOptions], Styles]] = {
    "none": _none,
    "random": _random,
    "kmeans": _kmeans,
    "gmm": _gmm,
    "agglomerative": _agglomerative,
    "hdbscan": _hdbscan,
    "dbscan": _dbscan,
}


def _sample(features_ND: np.ndarray, options: StyleOptions) -> np.ndarray:
    """At most SAMPLE of the features, in their order."""
    if len(features_ND) <= SAMPLE:
        return features_ND
    chosen = np.random.default_rng(options.seed).choice(len(features_ND), SAMPLE, replace=False)
    return features_ND[np.sort(chosen)]


def _number(features_ND: np.ndarray, options: StyleOptions) -> int:
    """How many styles: as asked for, or by the silhouette."""
    different = len(np.unique(features_ND.round(5), axis=0))
    if options.clusters > different:
        raise ValueError(
            f"clusters must be at most the number of different captions ({different}), got {options.clusters}"
        )
    if options.clusters:
        return options.clusters
    sample = _sample(features_ND, options)
    scores = {}
    for count in CHOICES:
        if count < min(different, len(sample)):
            labels = KMeans(count, n_init=3, random_state=options.seed).fit_predict(sample)
            scores[count] = silhouette_score(
                sample, labels, sample_size=min(2000, len(sample)), random_state=options.seed
            )
    return max(scores, key=lambda count: scores[count]) if scores else 1


def _nearest(points_MD: np.ndarray, features_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index of the nearest of some points, distance to it) for each feature, both (N,)."""
    distance, index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(points_MD).kneighbors(features_ND)
    return index[:, 0], distance[:, 0]


def prototypes(features_ND: np.ndarray, styles_N: np.ndarray) -> np.ndarray:
    """Mean feature of each style, (S, D)."""
    return np.stack([features_ND[styles_N == style].mean(0) for style in range(styles_N.max() + 1)])


def examples(features_ND: np.ndarray, styles_N: np.ndarray, neutral: Sequence[str]) -> list[list[int]]:
    """For each style up to EXAMPLES captions, as indices, that are nearest to its prototype and differ in more than their
    attributes."""
    chosen = []
    for style, prototype_D in enumerate(prototypes(features_ND, styles_N)):
        members = np.flatnonzero(styles_N == style)
        ordered = members[np.argsort(((features_ND[members] - prototype_D) ** 2).sum(1), kind="stable")]
        # The nearest of several that are equal without their attributes.
        nearest: dict[str, int] = {}
        for index in ordered:
            nearest.setdefault(neutral[index], int(index))
        chosen.append(list(nearest.values())[:EXAMPLES])
    return chosen


def markers(styles_N: np.ndarray, neutral: Sequence[str]) -> list[list[str]]:
    """For each style up to MARKERS phrases (1 to 3 words) that most more of its captions hold than of all others."""
    vectorizer = CountVectorizer(
        token_pattern=TOKEN, ngram_range=(1, 3), binary=True, max_features=5000, dtype=np.int32
    )
    holds_NV, phrases = vectorizer.fit_transform(neutral), vectorizer.get_feature_names_out()
    total_V = np.asarray(holds_NV.sum(0)).ravel()
    found = []
    for style in range(int(styles_N.max()) + 1):
        inside = styles_N == style
        here_V = np.asarray(holds_NV[np.flatnonzero(inside)].sum(0)).ravel()
        size, rest = int(inside.sum()), len(styles_N) - int(inside.sum())
        more_V = here_V / size - (total_V - here_V) / max(rest, 1)
        best = np.argsort(-more_V, kind="stable")[:MARKERS]
        found.append([str(phrases[index]) for index in best if more_V[index] > 0])
    return found
