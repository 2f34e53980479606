"""The oracle: its probabilities are the frequencies of the annotator, its scores their sums, and it finds who is described."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.config import DataConfig
from training.data.datasets import Record, read_dataset
from training.evaluation.bounds.oracle_metrics import IDENTITY_TEXTS, measure
from training.synthetic.attributes import Identity, Outfit, Pose, sample_identity, sample_outfit, sample_pose
from training.synthetic.dataset import generate
from training.synthetic.identity_oracle import IdentityOracle
from training.synthetic.oracle import FLOOR, Oracle, TrueImage, read_images
from training.synthetic.rng import KeyedRng
from training.synthetic.text.annotator import Annotator
from training.synthetic.text.captions import write_with_notes
from training.synthetic.text.descriptions import looks_of
from training.synthetic.text.likelihood import CLOTHING_SLOTS, IDENTITY_SLOTS, SLOTS, decision_probabilities

NOTES = 3000


def sample(*key: object, **changes: object) -> tuple[Identity, Outfit, Pose]:
    rng = KeyedRng("oracle", *key)
    identity = sample_identity(rng)
    outfit = sample_outfit(rng, identity)
    parts = (identity, outfit, sample_pose(rng, outfit))
    return tuple(replace(p, **{k: v for k, v in changes.items() if hasattr(p, k)}) for p in parts)  # type: ignore[return-value]


def people(count: int, outfits: int = 2, images: int = 2) -> list[TrueImage]:
    """Images of people in several outfits, with two captions each; nothing is rendered."""
    result = []
    for person in range(count):
        rng = KeyedRng("people", person)
        identity = sample_identity(rng)
        for number in range(outfits):
            outfit = sample_outfit(rng, identity)
            for image in range(images):
                pose = sample_pose(rng, outfit)
                written = write_with_notes(KeyedRng("captions", person, number, image), identity, outfit, pose)
                notes = tuple(notes for _, notes in written)
                result.append(TrueImage(person, number, identity, outfit, pose, notes))
    return result


# Each branch of the annotator that depends on the factors.
CASES = {
    "logo": {"upper": "T-shirt", "pattern": "logo", "pattern_colour": "white", "facing": "front", "glasses": True},
    "hidden logo": {"upper": "T-shirt", "pattern": "logo", "pattern_colour": "white", "facing": "back"},
    "pattern and blue jeans": {"pattern": "checked", "pattern_colour": "red", "lower": "jeans", "lower_colour": "blue"},
    "dress": {"sex": "woman", "upper": "dress", "lower": "bare legs", "lower_colour": "none", "facing": "left"},
    "bald": {"sex": "man", "age": "adult", "hair": "bald", "hat": "none", "hat_colour": "none", "beard": True},
    "hat, coat, scarf": {
        "hat": "cap",
        "hat_colour": "red",
        "upper": "coat",
        "inner_colour": "red",
        "scarf_colour": "blue",
    },
    "handbag": {"bag": "handbag", "bag_colour": "red", "build": "average", "height": "tall", "action": "umbrella"},
    "backpack": {"bag": "backpack", "bag_colour": "red", "facing": "front", "action": "phone"},
    "dark skin": {"build": "average", "height": "average", "skin": "dark", "facing": "back", "action": "phone"},
}


@pytest.mark.parametrize("effort", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_probabilities_are_the_frequencies_of_the_annotator(case: str, effort: int) -> None:
    factors = sample(case, **CASES[case])
    expected = decision_probabilities(*factors, effort)
    counts: dict[str, Counter[str | None]] = {slot: Counter() for slot in SLOTS}
    for number in range(NOTES):
        notes = Annotator(KeyedRng(case, effort, number), *factors, effort).take_notes()
        for slot, decision in notes.decisions.items():
            counts[slot][decision] += 1
    assert set(expected) == set(SLOTS)
    for slot, seen in counts.items():
        total = sum(seen.values())
        if total:
            assert math.isclose(sum(expected[slot].values()), 1.0, rel_tol=1e-12), slot
        for decision in {*seen, *(expected[slot] if total else ())}:
            p = expected[slot].get(decision, 0.0)
            # Five standard deviations of a binomial count: one false alarm in a million outcomes.
            assert abs(seen[decision] - total * p) <= 5 * math.sqrt(total * p * (1 - p)) + 1e-9, (slot, decision)


def test_decisions_are_what_the_notes_say() -> None:
    for number in range(300):
        notes = Annotator(KeyedRng(number), *sample(number), effort=number % 3).take_notes()
        said = notes.decisions
        assert set(said) <= set(SLOTS) and said["noun"] == notes.noun and said["hair"] == notes.hair
        for part in ("shoes", "hat", "bag"):
            assert getattr(notes, part) == (said[part] and f"{said[f'{part}_colour']} {said[part]}")
        assert (notes.scarf is None, notes.inner is None) == (said["scarf"] is None, said["inner"] is None)
        assert said["upper"] in notes.upper and (said["upper_colour"] or "") in notes.upper
        assert (notes.lower or "").endswith(said["lower"] or "") and (said["lower"] is None) == (notes.lower is None)
        assert notes.face == ["glasses"] * bool(said["glasses"]) + [said["beard"]] * bool(said["beard"])
        assert (notes.build is None) == (not any(said.get(slot) for slot in ("build", "height", "skin")))
        assert (notes.action is None) == (said["action"] is None)


def test_scores_are_sums_of_logarithms() -> None:
    images = people(5)
    oracle, queries = Oracle(images), [notes for image in images for notes in image.notes]
    for slots in (SLOTS, IDENTITY_SLOTS, CLOTHING_SLOTS):
        expected = np.zeros((len(queries), len(images)))
        for q, notes in enumerate(queries):
            for g, image in enumerate(images):
                table = decision_probabilities(image.identity, image.outfit, image.pose, notes.effort)
                found = [table[s].get(d, 0.0) for s, d in notes.decisions.items() if s in slots]
                expected[q, g] = sum(math.log(max(p, FLOOR)) for p in found)
        np.testing.assert_allclose(oracle.log_likelihood(slots), expected, rtol=1e-5)
        np.testing.assert_array_equal(oracle.log_likelihood(slots, slice(3, 9)), oracle.log_likelihood(slots)[3:9])
    assert not set(IDENTITY_SLOTS) & set(CLOTHING_SLOTS)


def test_it_finds_who_is_described() -> None:
    rows = measure(people(60))
    assert rows["oracle, all words"]["R1"] > 95
    # Clothes mislead where the person is looked for in another outfit, and the words about the person do not.
    other, identity = rows["oracle, all words, other outfits"], rows["oracle, identity words, other outfits"]
    assert other["R1"] < identity["R1"] < rows["oracle, identity words"]["R1"] < rows["oracle, all words"]["R1"]
    # Chance is 2 of 238.
    assert identity["R1"] > 20 * 2 / 238 * 100


def test_a_row_without_any_match_is_missing() -> None:
    assert set(measure(people(4, outfits=1))) == {"oracle, all words", "oracle, identity words", IDENTITY_TEXTS}


def test_an_identity_text_is_read_as_it_was_written() -> None:
    identity, outfit, pose = sample("face", beard=True, glasses=False, sex="man", age="adult", facing="front")
    shaven, taller = (
        replace(identity, beard=False),
        replace(identity, height="tall" if identity.height != "tall" else "short"),
    )
    images = [
        TrueImage(number, 0, who, outfit, replace(pose, facing=facing), ())
        for number, who in enumerate((identity, shaven, taller))
        for facing in ("front", "back", "back", "back")
    ]
    # Two texts of the bearded man, seen and from behind; three of four views hide a face.
    seen, behind = IdentityOracle(images).log_likelihood()[:2, ::4]
    wrong = math.log(FLOOR)
    np.testing.assert_allclose(seen, [math.log(0.25), wrong, math.log(0.25) + wrong], rtol=1e-5)
    np.testing.assert_allclose(behind, [math.log(0.75), 0.0, math.log(0.75) + wrong], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(IdentityOracle(images).log_likelihood(slice(1, 2))[0, ::4], behind)


def test_an_oracle_of_identity_texts_confuses_only_people_who_look_the_same() -> None:
    images = people(150, outfits=1)
    told = [(looks_of(image.identity, replace(image.pose, facing="front")), image.person) for image in images]
    alone = {p for look, p in told if sum(look == other for other, _ in told) == 2}
    twins = people(2, outfits=1)
    twins[2:] = [replace(image, person=1, identity=twins[0].identity) for image in twins[2:]]
    row = measure(images)[IDENTITY_TEXTS]
    assert 80 < row["R1"] <= 100 and len(alone) / 150 * 100 - 15 < row["R1"]
    assert measure(twins)[IDENTITY_TEXTS]["R1"] == pytest.approx(50)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "data"
    generate(folder, ids=4, images_per_id=2, val_ids=1, test_ids=2, height=160, width=64)
    return folder


def test_images_of_a_rendered_set(rendered: Path) -> None:
    records = read_dataset(DataConfig(root=str(rendered))).splits["test"][::-1]
    images = read_images(rendered, records)
    rows = {row["file_path"]: row for row in map(json.loads, (rendered / "factors.jsonl").read_text().splitlines())}
    for image, record in zip(images, records, strict=True):
        row = rows[record.file_path]
        assert (image.person, image.outfit_number) == (record.id, row["outfit_number"])
        assert image.outfit.upper == row["outfit"]["upper"] and len(image.notes) == len(record.captions)
        assert [notes.errors for notes in image.notes] == [
            [error for error in caption["errors"] if not error.startswith(("typo", "misspelling"))]
            for caption in row["captions"]
        ]


def test_a_set_of_a_different_version_must_be_rendered_again(rendered: Path, tmp_path: Path) -> None:
    records = read_dataset(DataConfig(root=str(rendered))).splits["test"]
    altered: list[Record] = [replace(records[0], captions=("A man.", "A woman."))]
    with pytest.raises(ValueError, match="rendered by a different version: .*needs the set rendered again"):
        read_images(rendered, altered)
    (tmp_path / "factors.jsonl").write_text((rendered / "factors.jsonl").read_text().replace('"bag_side"', '"side"'))
    with pytest.raises(ValueError, match="does not hold the seed that the set was rendered with; render the set again"):
        read_images(tmp_path, records)
    (tmp_path / "synthetic.json").write_bytes((rendered / "synthetic.json").read_bytes())
    with pytest.raises(ValueError, match="rendered by a different version"):
        read_images(tmp_path, records)
