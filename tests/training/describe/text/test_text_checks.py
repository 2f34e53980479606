"""Checks of generated texts: on true texts, on hand-written ones with traps, on damaged ones, on anything."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.pipeline import text_checks
from bench.pipeline.corrupted_texts import DAMAGES, FOREIGN, INSTRUCTIONS, REFUSALS, Good
from tests.support.generated_texts import INVALID_TEXTS, VALID_TEXTS
from training.describe.text.phrase_index import PhraseIndex, plural, tokenize
from training.describe.text.prompts import load_schema
from training.describe.text.text_checks import Limits, NearDuplicates, check_text, check_texts
from training.synthetic.attributes import sample_identity, sample_outfit, sample_pose
from training.synthetic.dataset import generate
from training.synthetic.rng import KeyedRng
from training.synthetic.text.descriptions import write_descriptions

NAMES = ("syntax", "length", "language", "refusal", "instruction", "repetition", "coverage", "leak")
STRICT = Limits(hedging=True)
# Share of damaged texts that the named check must find. A text cut off between two words is often a whole one.
FOUND = dict.fromkeys(DAMAGES, 0.97) | {"cut off anywhere": 0.3}


@pytest.fixture(scope="module")
def schema():
    return load_schema()


def failures(checks: dict[str, str]) -> dict[str, str]:
    return {name: why for name, why in checks.items() if why}


def drawn(number: int) -> dict:
    """The texts of a person as the renderer writes them, without the picture."""
    rng = KeyedRng("texts", number)
    identity = sample_identity(rng)
    outfit = sample_outfit(rng, identity)
    return write_descriptions(rng, identity, outfit, sample_pose(rng, outfit))


@pytest.fixture(scope="module")
def good() -> list[Good]:
    texts = [drawn(number) for number in range(300)]
    return [
        Good(
            text["identity"],
            text["clothing"],
            (f"The pedestrian, whose hair is dark, is wearing {text['clothing'][:1].lower() + text['clothing'][1:]}",),
            (other["identity"], other["clothing"]),
        )
        for text, other in zip(texts, texts[1:] + texts[:1], strict=True)
    ]


def test_names_of_the_checks(schema):
    plain = check_texts(*VALID_TEXTS[0], schema, Limits())
    assert list(plain) == [f"{kind}.{name}" for kind in ("identity", "clothing") for name in NAMES]
    assert set(check_text("identity", "x", schema, STRICT)) == {*NAMES, "hedging"}
    assert set(check_text("identity", "x", schema.without(["skin"]), Limits())) == {*NAMES, "left_out"}


@pytest.mark.parametrize(("identity", "clothing"), VALID_TEXTS)
def test_honest_texts_pass(schema, identity, clothing):
    assert failures(check_texts(identity, clothing, schema, STRICT)) == {}


@pytest.mark.parametrize(("kind", "text", "name", "why"), INVALID_TEXTS)
def test_what_is_wrong_is_found_and_said(schema, kind, text, name, why):
    assert why in check_text(kind, text, schema, STRICT)[name]


@pytest.mark.parametrize("text", INSTRUCTIONS)
def test_injected_instructions(schema, text):
    inside = f"A young woman with long dark hair. {text} She is of medium build."
    for words in (text, text.lower(), text.upper(), inside):
        assert re.match("instructs a model: |has a sentence that describes nothing: ", instruction(words, schema))


def instruction(text, schema):
    return check_text("identity", text, schema, Limits())["instruction"]


def test_captions_of_people_are_no_instructions(schema, tmp_path):
    """No false alarm among rendered captions and texts, nor where words of the patterns stand in a harmless sentence."""
    generate(out=tmp_path / "set", ids=40, val_ids=4, test_ids=4)
    rows = json.loads((tmp_path / "set" / "reid_raw.json").read_text())
    texts = [caption for row in rows for caption in row["captions"]]
    texts += [text for number in range(600) for text in (drawn(number)["identity"], drawn(number)["clothing"])]
    assert len(texts) > 1500 and not [text for text in texts if instruction(text, schema)]
    harmless = (
        "The woman ignores the camera and follows a sign with directions to the station.",
        "He has a new bag with a printed phrase and says nothing.",
        "A man in a shirt with the text ANSWER on it, the system of straps above his waist.",
        "She shows her phone to the man who will cross the road, the rules of the game printed on her top.",
        "As you can see, a man in a blue coat gives a token to a girl. He is walking away.",
    )
    assert not [text for text in harmless if instruction(text, schema)]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(schema, text):
    assert check_text("identity", text, schema, Limits())["refusal"].startswith("refuses: ")


@pytest.mark.parametrize(("identity", "clothing"), FOREIGN)
def test_other_languages(schema, identity, clothing):
    checks = check_texts(identity, clothing, schema, Limits())
    assert checks["identity.language"] and checks["clothing.language"]


def test_true_texts_pass(good):
    assert not text_checks.false_alarms(good)


@pytest.fixture(scope="module")
def found(good):
    return text_checks.detection(good[:120], seed=0)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(found, name):
    expected, share, by_any = found[name]
    assert expected == DAMAGES[name][0] and FOUND[name] <= share <= by_any <= 1


def test_what_is_left_out_is_in_neither_text(schema):
    less = schema.without(["skin", "sex"])
    checks = check_texts(
        "A tall adult with dark skin and short hair.", "Her coat is red, with grey jeans.", less, Limits()
    )
    assert failures(checks) == {
        "identity.left_out": "mentions attributes to be left out: skin (skin)",
        "clothing.left_out": "mentions attributes to be left out: her (sex)",
    }
    texts = "A tall adult of slim build with short hair.", "A red coat of skin-tight fabric, with grey jeans."
    assert failures(check_texts(*texts, less, Limits())) == {}
    assert "does not cover sex" in check_text("identity", texts[0], schema, Limits())["coverage"]


def test_limits_are_obeyed(schema):
    text = "A woman with long hair."
    assert check_text("identity", text, schema, Limits())["coverage"] == ""
    assert (
        "covers 2 attributes, expected at least 3"
        in check_text("identity", text, schema, Limits(attributes=3))["coverage"]
    )
    assert check_text("identity", text, schema, Limits(words=(5, 5)))["length"] == ""
    assert check_text("identity", text, schema, Limits(words=(6, 9)))["length"] == "has 5 words, expected 6 to 9"
    assert "hedging" not in check_text("identity", text, schema, Limits())
    everything = load_schema().without(["age"])
    every = "A tall slim man, short hair, fair skin, round face, a beard, glasses and a tattoo."
    assert check_text("identity", every, everything, Limits(attributes=99))["coverage"] == ""


def test_limits_that_are_none():
    with pytest.raises(ValueError, match=r"limits.words must be a range, the lower number first, got \(9, 3\)"):
        Limits(words=(9, 3))
    with pytest.raises(ValueError, match="limits.attributes must be at least 1, got 0"):
        Limits(attributes=0)


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(
        st.text(), st.text("ab .,\"'()-\n"), st.lists(st.sampled_from("a man red hair coat and".split())).map(" ".join)
    )
)
def test_any_text_is_judged(text):
    schema = load_schema()
    for checks in (check_text("identity", text, schema, STRICT), check_text("clothing", text, schema, STRICT)):
        assert all(isinstance(why, str) and "\n" not in why[:3] for why in checks.values())


def test_words_and_plurals():
    assert tokenize("The man\u2019s T-shirt, size 12; it's RED!") == [
        "the",
        "man",
        "t",
        "shirt",
        "size",
        "12",
        "it",
        "red",
    ]
    assert [plural(word) for word in ("cap", "dress", "lady", "boy", "watch")] == [
        "caps",
        "dresses",
        "ladies",
        "boys",
        "watches",
    ]


def test_phrases_are_found_whole_and_longest_first():
    phrases = PhraseIndex({"hat": ["cap", "bucket hat"], "bag": ["cap", "hat box"]}, neutral=["cap of hair"])
    assert phrases.find(tokenize("two bucket-hats and a capsule")) == [("hat", "bucket hats")]
    assert phrases.find(tokenize("a cap")) == [("hat", "cap"), ("bag", "cap")]
    assert phrases.find(tokenize("a cap of hair, hat boxes")) == [("bag", "hat boxes")]
    assert phrases.by_name(tokenize("caps, a cap and bucket hats")) == {"hat": {"cap", "bucket hat"}, "bag": {"cap"}}
    assert phrases.count(tokenize("a bucket hat, a cap")) == 3
    assert PhraseIndex({}).find(["cap"]) == []


LONG = (
    "A tall woman with long black hair and fair skin. A red coat over a white shirt, with blue jeans and brown boots."
)


def test_near_duplicates_of_other_people_are_found():
    near = NearDuplicates()
    assert near.add("a.jpg", LONG, 1) is None
    assert near.add("b.jpg", LONG, 1) is None, "the same person"
    assert near.add("a.jpg", LONG, 2) is None, "the same image"
    assert near.add("c.jpg", LONG, 2) == "a.jpg"
    assert near.add("d.jpg", LONG.upper().replace(".", ";"), 3) == "a.jpg", "case and punctuation"
    assert near.add("e.jpg", LONG.replace("red", "green"), 4) == "a.jpg", "one word"
    assert (
        near.add("f.jpg", "An old man with a beard, in a grey suit, black shoes and a hat, holding a stick.", 5) is None
    )


def test_images_are_of_different_people_unless_said():
    near = NearDuplicates()
    assert near.add("a.jpg", LONG) is None and near.add("b.jpg", LONG) == "a.jpg"


def test_short_texts_are_no_near_duplicates():
    near = NearDuplicates(min_words=6)
    assert near.add("a.jpg", "Black coat, blue jeans.", 1) is near.add("b.jpg", "Black coat, blue jeans.", 2) is None
    text = "Black coat, blue jeans, white shoes."
    assert near.add("c.jpg", text, 1) is None and near.add("d.jpg", text, 2) == "c.jpg"
    assert NearDuplicates(min_words=1).add("e.jpg", "a", 1) is None


def test_similarity_is_the_share_of_common_runs():
    words = [f"w{i}" for i in range(40)]
    changed = [*words[:20], "other", *words[21:]]
    # 35 of the 38 trigrams are in both, 41 in one of them.
    for similarity, expected in ((35 / 41, "a.jpg"), (35.1 / 41, None)):
        near = NearDuplicates(similarity)
        assert near.add("a.jpg", " ".join(words), 1) is None
        assert near.add("b.jpg", " ".join(changed), 2) == expected


@pytest.mark.parametrize("similarity", [0, 1.5])
def test_similarity_that_is_none(similarity):
    with pytest.raises(ValueError, match="similarity must be above 0 and at most 1, got"):
        NearDuplicates(similarity)


def test_many_texts_of_one_template_stay_few(monkeypatch):
    """Texts that share all their bands are kept up to the size of a bucket, so that one template cannot fill the memory."""
    near = NearDuplicates(similarity=1.0)
    monkeypatch.setattr(near, "_keys", lambda runs: [0] * 8)
    draws = np.random.default_rng(0)
    for i in range(30):
        assert near.add(f"{i}.jpg", " ".join(map(str, draws.integers(0, 10**6, 20))), i) is None
    assert len(near._entries) == 8


def test_the_measuring_command(tmp_path, monkeypatch, capsys):
    generate(tmp_path / "data", ids=12, seed=0, images_per_id=3)
    monkeypatch.setattr(text_checks, "ALL_IMAGES", 50)
    text_checks.main(text_checks.Arguments(str(tmp_path / "data"), sample=10))
    out = " ".join(capsys.readouterr().out.split())
    lines = (tmp_path / "data" / "descriptions.jsonl").read_text().splitlines()
    assert f"{len(lines)} true pairs of texts: none fails a check" in out
    assert "texts exchanged" in out and "50 images: checks" in out
    paths = {json.loads(line)["file_path"] for line in lines}
    everything = text_checks.read_good(str(tmp_path / "data"))
    assert {path for path, _, _ in everything} == paths
    shares = text_checks.duplicates(everything, 0)
    assert shares["false alarms"] == 0 and shares["found"] > 0.9
