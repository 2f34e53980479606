"""Calibration: shares are those that are counted, they follow the size of the gallery, and the threshold keeps what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.retrieval.galleries import unit
from training.evaluation.calibration import KEPT, Calibration, Curve, calibrate
from training.evaluation.dual import DualEmbeddings
from training.utils.io import read_record, write_record

WIDTH = 32


def split(persons: int, seed: int, noise: float = 0.8, branches: int = 2) -> DualEmbeddings:
    """Four images and two texts of each person, all near the person's point; texts have more noise."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((persons, WIDTH))
    ids = np.repeat(np.arange(persons), 4)
    images = [unit(points[ids] + noise * rng.standard_normal((len(ids), WIDTH))) for _ in range(branches)]
    first = np.repeat(np.arange(0, len(ids), 4), 2)
    texts = unit(points[ids[first]] + 2 * noise * rng.standard_normal((len(first), WIDTH)))
    tensors = [torch.from_numpy(x) for x in (texts, *images)]
    clothing = tensors[2] if branches == 2 else None
    query_ids, captions = torch.from_numpy(ids[first]), ("",) * len(first)
    return DualEmbeddings(
        tensors[0], tensors[1], clothing, None, captions, query_ids, torch.from_numpy(first), torch.from_numpy(ids)
    )


def pairs(dual: DualEmbeddings, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores (Q, G) in float64 without the code of the project, and True for right pairs."""
    t, v = dual.t_QE.double().numpy(), dual.v_id_GE.double().numpy()
    scores = t @ v.T
    if dual.v_clo_GE is not None:
        scores = scores + beta * (t @ dual.v_clo_GE.double().numpy().T)
    return scores, dual.query_ids_Q.numpy()[:, None] == dual.gallery_ids_G.numpy()


def expected_share(made: Calibration, scores: np.ndarray, beta: float, images: int) -> np.ndarray:
    return np.array([made.share(score, beta, images) for score in scores])


@pytest.mark.parametrize("beta", [0.0, 1.0, 0.6, 20.0])
def test_shares_are_those_of_other_persons_of_the_same_kind(beta: float) -> None:
    made = calibrate(split(60, 0), 0.6, "c" * 64)
    scores, right = pairs(split(60, 1), beta)
    shares = expected_share(made, scores.ravel(), beta, 240)
    for low, high in ((0.0, 0.01), (0.01, 0.1), (0.1, 0.4), (0.4, 1.0)):
        kind = (shares >= low) & (shares < high)
        assert kind.sum() > 30
        assert right.ravel()[kind].mean() == pytest.approx(shares[kind].mean(), abs=0.02 + 0.15 * shares[kind].mean())


@pytest.mark.parametrize("persons", [30, 400])
def test_shares_follow_the_size_of_the_gallery(persons: int) -> None:
    made = calibrate(split(120, 0), 1.0, "c" * 64)
    scores, right = pairs(split(persons, 2), 1.0)
    best = np.argsort(scores.ravel())[-8 * persons :]
    observed, scores = right.ravel()[best].mean(), scores.ravel()[best]
    shares, unscaled = (expected_share(made, scores, 1.0, images).mean() for images in (4 * persons, 480))
    assert abs(shares - observed) < 0.5 * abs(unscaled - observed)


def test_the_curve_is_the_isotonic_regression_of_all_pairs() -> None:
    dual = split(40, 3)
    made = calibrate(dual, 1.0, "c" * 64)
    curve = next(curve for curve in made.curves if curve.beta == 1.0)
    scores, right = pairs(dual, 1.0)
    assert (made.queries, made.right, made.wrong) == (80, 4.0, 156.0)
    assert (np.diff(curve.scores) >= 0).all() and (np.diff(curve.shares) >= 0).all()
    # It keeps the mean.
    shares = expected_share(made, scores.ravel(), 1.0, 160)
    assert shares.mean() == pytest.approx(right.mean(), rel=0.03)
    assert max(curve.shares) <= 0.99


def test_the_threshold_keeps_what_it_says_and_refuses_absent_persons() -> None:
    dual = split(60, 4)
    made = calibrate(dual, 1.0, "c" * 64)
    scores, right = pairs(dual, 1.0)
    least = made.least(1.0)
    assert (scores.max(1) >= least - 1e-6).mean() == pytest.approx(KEPT, abs=0.02)
    absent = np.where(right, -9, scores).max(1)
    curve = next(curve for curve in made.curves if curve.beta == 1.0)
    assert curve.refused == pytest.approx((absent < least).mean(), abs=0.02) and curve.refused > 0.2


def test_between_and_beyond_the_curves() -> None:
    curves = [
        Curve(beta, [-1.0, 1.0], [0.0, share], least, 0.5) for beta, share, least in ((0, 0.2, 0.1), (1, 0.6, 0.3))
    ]
    made = Calibration("c", 9, 1.0, 99.0, curves)
    assert made.share(1.0, 0.0, 100) == pytest.approx(0.2) and made.share(2.0, 1.0, 100) == pytest.approx(0.6)
    # beta / (1 + beta) is half way.
    assert made.share(4 / 3, 1 / 3, 100) == pytest.approx(0.4)
    assert made.least(1 / 3) == pytest.approx(0.2 * 4 / 3) and made.least(3.0) == pytest.approx(1.2)
    # Twice the wrong images, half the odds; and no gallery without wrong ones.
    assert made.share(2.0, 1.0, 199) == pytest.approx(0.75 / 1.75) and 0 < made.share(2.0, 1.0, 1) <= 1


def test_a_model_without_clothing_branch_has_one_curve_and_the_record_comes_back(tmp_path: Path) -> None:
    made = calibrate(split(10, 5, branches=1), 0.0, "c" * 64)
    assert [curve.beta for curve in made.curves] == [0.0]
    write_record(tmp_path / "calibration.json", made)
    assert read_record(tmp_path / "calibration.json", Calibration) == made
