"""Clusters of style features: DBSCAN in blocks against the library's, its radius, merging, and the seven methods."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import normalize

from training.config import STYLE_METHODS
from training.describe.styles import clustering
from training.describe.styles import dbscan as density
from training.describe.styles.clustering import StyleOptions, choose_examples, cluster, find_markers
from training.describe.styles.dbscan import dbscan, k_distances, knee, merge_small


def groups(sizes: list[int], spread: float = 0.08, dimensions: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of norm 1 around as many corners, and the group of each."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    points = np.eye(dimensions)[truth] + spread * rng.standard_normal((len(truth), dimensions))
    return normalize(points).astype(np.float32), truth


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(5, 120), st.integers(2, 6), st.floats(0.05, 1.2), st.sampled_from([1, 7, 256])
)
def test_dbscan_is_the_library_s_but_for_border_points(seed: int, count: int, k: int, eps: float, block: int) -> None:
    points = np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)
    distances = k_distances(points, min(k, count))
    # A distance that the two round to different sides of eps is no difference.
    pairs = np.linalg.norm(points[:, None].astype(float) - points, axis=-1)
    if np.abs(pairs - eps).min() < 1e-4 or not (distances <= eps).any():
        return
    expected = DBSCAN(eps=eps, min_samples=min(k, count)).fit(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density, "BLOCK", block)
        found = dbscan(points, eps, distances)
    core = np.zeros(count, bool)
    core[expected.core_sample_indices_] = True
    assert np.array_equal(distances <= eps, core) and np.array_equal(found.noise_N, expected.labels_ < 0)
    assert adjusted_rand_score(expected.labels_[core], found.labels_N[core]) == 1.0
    assert found.clusters == expected.labels_.max() + 1
    nearest = np.where(core, pairs, np.inf).argmin(1)
    assert np.array_equal(found.labels_N[~core], found.labels_N[nearest[~core]])


def test_order_does_not_matter() -> None:
    points, _ = groups([40, 60, 30], spread=0.3)
    distances = k_distances(points, 5)
    first = dbscan(points, 0.5, distances)
    order = np.random.default_rng(1).permutation(len(points))
    second = dbscan(points[order], 0.5, distances[order])
    assert adjusted_rand_score(first.labels_N[order], second.labels_N) == 1.0
    assert np.array_equal(first.noise_N[order], second.noise_N) and first.noise_N.any()


def test_no_dense_region_and_too_few_points_are_named() -> None:
    points, _ = groups([20])
    with pytest.raises(
        ValueError, match=r"eps = 1e-06 leaves no dense region, the smallest k-distance is 0\.\d+; raise eps"
    ):
        dbscan(points, 1e-6, k_distances(points, 5))
    with pytest.raises(
        ValueError, match=r"min_samples must be at most the number of different features \(20\), got 21"
    ):
        k_distances(points, 21)
    with pytest.raises(
        ValueError, match=r"min_samples must be at most the number of different features \(20\), got 30"
    ):
        cluster(points, "hdbscan", StyleOptions(min_samples=30))
    with pytest.raises(ValueError, match=r"clusters must be at most the number of different captions \(20\), got 21"):
        cluster(points, "kmeans", StyleOptions(clusters=21))
    with pytest.raises(ValueError, match=r"StyleOptions.min_share must be within \[0, 0.5\], got 0.6"):
        StyleOptions(min_share=0.6)


def test_the_knee_is_where_the_curve_turns() -> None:
    flat, steep = np.linspace(1, 1.2, 90), np.linspace(1.2, 5, 11)[1:]
    curve = np.concatenate([flat, steep])
    assert knee(np.random.default_rng(0).permutation(curve)) == 89
    assert knee(np.concatenate([curve[:-3], [50, 70, 90]])) == 89
    assert knee(np.ones(7)) == 5


def test_k_distance_counts_the_point_itself() -> None:
    assert k_distances(np.array([[0.0], [1.0], [3.0]]), 2).tolist() == [1, 1, 2]


def test_small_clusters_join_the_nearest_smallest_first() -> None:
    points = np.array([[0.0], [0.1], [0.2], [5.0], [5.2], [6.0], [9.0]])
    labels = np.array([4, 4, 4, 7, 7, 1, 2])
    assert merge_small(points, labels, 0.0).tolist() == labels.tolist()
    # 6.0 goes to the pair at 5.1; 9.0 to what that pair has become.
    assert merge_small(points, labels, 0.2).tolist() == [4, 4, 4, 7, 7, 7, 7]
    assert set(merge_small(points, labels, 0.5).tolist()) == {7}


@pytest.mark.parametrize("method", STYLE_METHODS)
def test_methods_find_clear_groups_and_number_them_by_size(method: str) -> None:
    features, truth = groups([120, 100, 80, 60])
    found = cluster(features, method, StyleOptions())
    sizes = np.bincount(found.styles_N)
    assert (np.diff(sizes) <= 0).all() and sizes.min() > 0 and found.styles_N.dtype == np.int64
    again = cluster(features, method, StyleOptions())
    assert np.array_equal(found.styles_N, again.styles_N) and found.details == again.details
    expected = {"none": 0.0, "random": 0.0}.get(method, 1.0)
    assert adjusted_rand_score(truth, found.styles_N) == pytest.approx(expected, abs=0.02)
    assert len(sizes) == (1 if method == "none" else 4) and (method == "dbscan") == bool(len(found.k_distances_P))


@pytest.mark.parametrize("method", ["agglomerative", "hdbscan", "gmm", "kmeans"])
def test_a_sample_stands_for_many_captions(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, truth = groups([300, 250, 200], dimensions=40)
    monkeypatch.setattr(clustering, "MAX_SAMPLE", 150)
    found = cluster(features, method, StyleOptions(min_samples=5))
    assert adjusted_rand_score(truth, found.styles_N) > 0.99


def test_options_do_what_they_say() -> None:
    features, _ = groups([120, 100, 6], spread=0.1)
    options = StyleOptions(min_samples=5, eps=0.5)
    assert np.bincount(cluster(features, "dbscan", options).styles_N).tolist() in ([120, 106], [126, 100])
    kept = cluster(features, "dbscan", StyleOptions(min_samples=5, eps=0.5, min_share=0.0))
    assert np.bincount(kept.styles_N).tolist() == [120, 100, 6] and kept.details["eps"] == 0.5
    assert len(set(cluster(features, "random", StyleOptions(clusters=3)).styles_N)) == 3
    draws = [cluster(features, "random", StyleOptions(clusters=3, seed=seed)).styles_N for seed in (0, 1)]
    assert not np.array_equal(*draws)


def test_equal_captions_are_one_point() -> None:
    """A caption that many wrote alike is not a dense region of its own."""
    features, truth = groups([60, 60])
    copies = np.concatenate([features, np.repeat(features[:1], 200, axis=0)])
    found = cluster(copies, "dbscan", StyleOptions(min_samples=10))
    assert found.details["points"] == 120 and len(found.k_distances_P) == 120 and found.k_distances_P[0] > 0
    assert adjusted_rand_score([*truth, *[truth[0]] * 200], found.styles_N) == 1.0


def test_noise_alone_is_one_style() -> None:
    features = normalize(np.random.default_rng(0).standard_normal((60, 30))).astype(np.float32)
    found = cluster(features, "hdbscan", StyleOptions(min_samples=25))
    assert found.noise_share == 1.0 and set(found.styles_N) == {0}
    single = cluster(np.ones((3, 4), np.float32) / 2, "kmeans", StyleOptions())
    assert set(single.styles_N) == {0} and single.details == {"clusters": 1}


def test_examples_are_near_the_prototype_and_differ() -> None:
    features = np.array([[1.0, 0], [0.9, 0.1], [0.9, 0.1], [0, 1], [0.5, 0.5]], np.float32)
    neutral = ["a", "b", "b", "c", "d"]
    assert choose_examples(features, np.array([0, 0, 0, 1, 0]), neutral) == [[1, 0, 4], [3]]


def test_markers_are_what_others_do_not_write() -> None:
    neutral = ["the person wear item", "the person wear item .", "item , item", "item , item , item ."]
    first, second = find_markers(np.array([0, 0, 1, 1]), neutral)
    assert all(phrase in "the person wear item" for phrase in first) and all("," in phrase for phrase in second)
    assert not set(first) & set(second) and max(len(phrase.split()) for phrase in first) == 3 and "." not in first
