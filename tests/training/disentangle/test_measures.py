"""Probes, dependence and retrieval in other clothes on features whose answers are planted, then on a whole run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.disentangle import linear_probes
from training.disentangle.cloth_changing import search_clothes
from training.disentangle.dependence import dependence, measure
from training.evaluation.disentangle_result import MEASURES
from training.utils.io import encode


def people(count: int = 40, images: int = 4) -> np.ndarray:
    return np.repeat(np.arange(count), images)


def one_hot(values: np.ndarray) -> np.ndarray:
    return (values[:, None] == np.unique(values)[None]).astype(np.float32)


def planted(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, dict[str, list[str]]]]:
    """Ids, and factors: "sex" belongs to the person, "colour" to the image, "hat" hardly ever varies."""
    ids = people()
    sex, colour = rng.permutation(np.arange(40) % 2)[ids], rng.integers(0, 3, len(ids))
    hat = ["cap" if i in (0, 1) else "none" for i in ids]
    words = (
        {"sex": [("man", "woman")[s] for s in sex]},
        {"colour": [("red", "blue", "grey")[c] for c in colour], "hat": hat},
    )
    return ids, {"identity": words[0], "clothing": words[1]}


def test_probes_read_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    ids, factors = planted(rng)
    sex, colour = one_hot(np.array(factors["identity"]["sex"])), one_hot(np.array(factors["clothing"]["colour"]))
    noise = rng.standard_normal((len(ids), 8)).astype(np.float32)
    features = {"sex": np.hstack([sex, noise]), "noise": noise}
    seen: list[tuple[int, int]] = []
    probes = linear_probes.probe_all(features, factors, ids.tolist(), lambda *x: seen.append(x))
    results = encode(probes)
    assert results["sex"]["features"]["sex"]["mean"] == 100.0 and results["sex"]["features"]["sex"]["score"] == 1.0
    assert results["sex"]["baseline"] == 50.0 and results["colour"]["baseline"] == pytest.approx(100 / 3)
    for name in ("sex", "colour"):
        assert abs(results[name]["features"]["noise"]["mean"] - results[name]["baseline"]) < 15
        assert len(results[name]["features"]["noise"]["folds"]) == 5 and results[name]["images"] == 160
    assert results["colour"]["features"]["sex"]["mean"] < 50
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (
        linear_probes.mean_score(probes, "sex", "identity") == 1.0
        and linear_probes.mean_score(probes, "sex", "none") is None
    )
    with_colour = linear_probes.probe_all({"colour": np.hstack([colour, noise])}, factors, ids.tolist())
    assert linear_probes.mean_score(with_colour, "colour", "clothing") == pytest.approx(1.0)
    assert abs(linear_probes.mean_score(with_colour, "colour", "identity") or 0.0) < 0.3


def test_knowing_who_somebody_is_does_not_help_a_probe() -> None:
    """A feature that is nothing but the person's number answers everything if a person's images are in two folds."""
    rng = np.random.default_rng(1)
    ids, factors = planted(rng)
    result = encode(linear_probes.probe_all({"who": one_hot(ids)}, factors, ids.tolist())["sex"])
    assert result["features"]["who"]["mean"] < 70


def test_what_goes_with_a_factor_is_measured_from_the_truth() -> None:
    ids = people()
    sex = np.arange(40)[ids] % 2
    words = [("man", "woman")[s] for s in sex]
    dress = ["dress" if s and i % 4 else "coat" for i, s in enumerate(sex)]
    probes = linear_probes.probe_all(
        {"none": np.zeros((160, 1), dtype=np.float32)}, {"identity": {"sex": words}, "clothing": {"upper": dress}}, ids
    )
    result = encode(probes)
    assert result["sex"]["other_kind"] == pytest.approx(87.5, abs=2) and result["sex"]["features"]["none"]["score"] == 0
    assert linear_probes.mean_score(probes, "other_kind", "identity") == pytest.approx(0.75, abs=0.04)


def test_values_that_too_few_people_have_are_left_out() -> None:
    ids, factors = planted(np.random.default_rng(0))
    feature = {"x": np.zeros((160, 2), dtype=np.float32)}
    results = encode(linear_probes.probe_all(feature, factors, ids.tolist()))
    assert results["hat"] == {"kind": "clothing", "skipped": "only 1 of its values are shown by at least 5 people"}
    rare = factors["identity"]["sex"][:152] + ["unknown"] * 8
    result = encode(linear_probes.probe_all(feature, factors | {"identity": {"sex": rare}}, ids.tolist())["sex"])
    assert result["dropped"] == 8 and result["classes"] == ["man", "woman"] and result["images"] == 152
    with pytest.raises(ValueError, match="probes need at least 5 people to split, got 4"):
        linear_probes.probe_all(feature, factors, (ids % 4).tolist())


def test_a_probe_that_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probes, "ITERATIONS", 1)
    ids, factors = planted(np.random.default_rng(0))
    noise = np.random.default_rng(2).standard_normal((160, 30)).astype(np.float32)
    with pytest.raises(RuntimeError, match="a linear probe did not converge in 1 iterations"):
        linear_probes.probe_all({"x": noise}, factors, ids.tolist())


def centred_kernel(x: np.ndarray) -> np.ndarray:
    h = np.eye(len(x)) - 1 / len(x)
    return h @ (x @ x.T) @ h


def unbiased(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, by loops over nothing but its definition."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    return float(
        (np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()) / (n * (n - 3))
    )


def rbf(x: np.ndarray) -> np.ndarray:
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    median = np.sort(squared[np.triu_indices(len(x), 1)])[(len(x) * (len(x) - 1) // 2 - 1) // 2]
    return np.exp(-squared / median)


def test_measures_follow_their_definitions() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 5)) + 3.0
    y = x[:, :4] * [1.0, 0.3, 2.0, 0.1] + rng.standard_normal((30, 4))
    result = {key: float(value) for key, value in measure(*(torch.from_numpy(v)[None] for v in (x, y))).items()}
    kx, ky, gx, gy = centred_kernel(x), centred_kernel(y), rbf(x), rbf(y)
    assert result["cka"] == pytest.approx((kx * ky).sum() / np.sqrt((kx * kx).sum() * (ky * ky).sum()), rel=1e-9)
    pair = unbiased(kx, ky) / np.sqrt(unbiased(kx, kx) * unbiased(ky, ky))
    assert result["cka_debiased"] == pytest.approx(pair, rel=1e-9)
    assert result["hsic"] == pytest.approx(unbiased(gx, gy), rel=1e-9)
    assert result["hsic_normalised"] == pytest.approx(unbiased(gx, gy) / np.sqrt(unbiased(gx, gx) * unbiased(gy, gy)))
    still = {key: float(v) for key, v in measure(torch.ones(1, 9, 2).double(), torch.rand(1, 9, 2).double()).items()}
    assert still == pytest.approx(dict.fromkeys(MEASURES, 0.0), abs=1e-12)


def test_dependence_of_equal_and_of_independent_features() -> None:
    rng = np.random.default_rng(3)
    x, y, ids = rng.standard_normal((60, 40)), rng.standard_normal((60, 40)), np.arange(60)
    same, free = encode(dependence(x, 2.0 * x, ids)), encode(dependence(x, y, ids))
    for name in MEASURES:
        assert same[name]["p"] == pytest.approx(1 / 1001) and free[name]["p"] > 0.01
    assert same["cka"]["value"] == pytest.approx(1.0) == same["hsic_normalised"]["value"]
    assert abs(free["cka_debiased"]["value"]) < 0.1 and free["cka"]["value"] > 0.3, "the biased one grows with width"
    assert free["cka"]["null_mean"] == pytest.approx(free["cka"]["value"], abs=0.1)
    assert encode(dependence(x, y, ids)) == free, "the draws are fixed"
    with pytest.raises(ValueError, match="needs at least 8 people, got 7"):
        dependence(x[:7], y[:7], ids[:7])


def test_many_images_of_a_person_are_not_many_samples() -> None:
    """Features drawn for each person alone: permuting images would reject their independence, permuting people does not."""
    rejected = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        ids = people(20, 6)
        x, y = (rng.standard_normal((20, 3))[ids] + 0.01 * rng.standard_normal((120, 3)) for _ in "xy")
        result = encode(dependence(x, y, ids))
        assert (result["people"], result["images"]) == (20, 120)
        rejected += result["hsic"]["p"] < 0.05
    assert rejected <= 2


def by_hand(similarity: np.ndarray, ids: np.ndarray, outfits: np.ndarray, other: bool) -> dict[str, float]:
    """R-1 and mAP in percent with a gallery built for each query, one after the other."""
    hits, precisions = [], []
    for q in range(len(ids)):
        gallery = [g for g in range(len(ids)) if ids[g] != ids[q] or ((outfits[g] != outfits[q]) == other and g != q)]
        ranked = sorted(gallery, key=lambda g: -similarity[q, g])
        right = [ids[g] == ids[q] for g in ranked]
        if any(right):
            hits.append(right[0])
            precisions.append(np.mean([(k + 1) / (r + 1) for k, r in enumerate(np.flatnonzero(right))]))
    return {"R1": 100 * float(np.mean(hits)), "mAP": 100 * float(np.mean(precisions)), "queries": len(hits)}


def test_galleries_of_other_and_of_the_same_clothes() -> None:
    rng = np.random.default_rng(5)
    ids = np.repeat(np.arange(12), 5)
    outfits = np.tile([0, 0, 1, 1, 2], 12)
    feature = rng.standard_normal((60, 6)).astype(np.float32) + 2 * one_hot(ids)[:, :6]
    result = encode(search_clothes({"x": feature}, ids.tolist(), outfits.tolist()))
    unit = feature / np.linalg.norm(feature, axis=1, keepdims=True)
    for gallery, without in (("other", 0), ("same", 12)):
        expected = by_hand(unit @ unit.T, ids, outfits, gallery == "other")
        assert result[gallery]["queries"] == expected["queries"] and result[gallery]["without_match"] == without
        for key in ("R1", "mAP"):
            value, (low, high) = (
                result[gallery]["features"]["x"][key],
                result[gallery]["features"]["x"]["interval"][key],
            )
            assert value == pytest.approx(expected[key], abs=1e-6)
            assert low < value < high
    # 58 images of other clothes or other people stand in the gallery of a first outfit, 3 of them right; 59 and 4 for
    # the third outfit.
    chance = (48 * 3 / 58 + 12 * 4 / 59) / 60
    assert result["other"]["chance"]["R1"] == pytest.approx(100 * chance)


def test_a_feature_of_clothes_finds_nobody_in_other_clothes() -> None:
    ids = np.repeat(np.arange(20), 4)
    outfits = np.tile([0, 0, 1, 1], 20)
    noise = np.random.default_rng(0).standard_normal((80, 3)) * 0.01
    features = {"clothes": np.hstack([one_hot(ids * 2 + outfits), noise]), "person": np.hstack([one_hot(ids), noise])}
    result = encode(search_clothes(features, ids.tolist(), outfits.tolist()))
    assert result["same"]["features"]["clothes"]["R1"] == result["same"]["features"]["person"]["R1"] == 100.0
    assert result["other"]["features"]["person"]["R1"] == 100.0
    assert result["other"]["features"]["clothes"]["R1"] < 20


def test_one_outfit_each_is_an_error_for_other_clothes() -> None:
    ids, feature = people(5, 2).tolist(), {"x": np.ones((10, 2), dtype=np.float32)}
    with pytest.raises(ValueError, match="needs a person with two outfits, but each person wears one only"):
        search_clothes(feature, ids, [0] * 10)
    alone = encode(search_clothes(feature, ids, [0, 1] * 5)["same"])
    assert alone == {"queries": 0, "without_match": 10, "chance": None, "features": {}}
