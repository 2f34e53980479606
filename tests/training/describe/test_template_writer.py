"""Texts in the manner of the caption writers, and whose captions some examples are like."""

from __future__ import annotations

import re

import pytest

from training.describe.template_writer import nearest_writer, write_texts
from training.synthetic.attributes import Identity, Outfit, Pose, sample_identity, sample_outfit, sample_pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.annotator import Annotator
from training.synthetic.text.captions import STYLES

GARMENTS = re.compile(
    r"\b(shirt|jacket|coat|hoodie|sweater|dress(?!ed)|trousers|jeans|shorts|skirt|leggings|sneakers|shoes|boots|sandals|heels|"
    r"backpack|handbag|bag|cap|beanie|scarf|wear\w*|attired|clad)\b",
    re.I,
)
PEOPLE = re.compile(
    r"\b(man|woman|boy|girl|he|she|his|her|hes|shes|young|elderly|middle aged|hair|skin|beard|glasses|build)\b", re.I
)


def scene(number: int) -> tuple[Identity, Outfit, Pose]:
    rng = KeyedRng("imitated", number)
    identity = sample_identity(rng)
    outfit = sample_outfit(rng, identity)
    return identity, outfit, sample_pose(rng, outfit)


@pytest.mark.parametrize("style", range(len(STYLES)))
def test_each_text_tells_its_own_half_whole(style: int) -> None:
    for number in range(60):
        identity, outfit, pose = scene(number)
        who, what = write_texts(identity, outfit, pose, KeyedRng(number), style)
        assert not GARMENTS.search(who) and not PEOPLE.search(what)
        sex = {"man": r"\b(man|boy|he|hes)\b", "woman": r"\b(woman|girl|she|shes)\b"}[identity.sex]
        assert re.search(sex, who, re.I) and f"{identity.build} build" in who.lower() and f"{identity.skin} skin" in who
        seen = pose.facing != "back"
        assert ("beard" in who, "glasses" in who.lower()) == (seen and identity.beard, seen and identity.glasses)
        parts = [f"{outfit.shoes_colour} {outfit.shoes}", outfit.upper]
        parts += [] if outfit.lower == "bare legs" else [f"{outfit.lower_colour} {outfit.lower}"]
        for kind in ("hat", "bag"):
            worn = getattr(outfit, kind)
            parts += [] if worn == "none" else [f"{getattr(outfit, f'{kind}_colour')} {worn}"]
        parts += [] if outfit.scarf_colour == "none" else [f"{outfit.scarf_colour} scarf"]
        assert [part for part in parts if part.lower() not in what.lower()] == []


def test_the_same_dice_give_the_same_texts_and_others_vary() -> None:
    texts = [write_texts(*scene(1), KeyedRng(seed), 2) for seed in (0, 0, 1, 2, 3, 4)]
    assert texts[0] == texts[1] and len(set(texts)) > 1


def test_captions_are_traced_to_their_writer() -> None:
    for style, write in enumerate(STYLES):
        captions = [
            write(Annotator(KeyedRng(style, n), *scene(n), 1).take_notes(), KeyedRng(style, n, "text"))
            for n in range(40)
        ]
        found = [nearest_writer(captions[start : start + 5]) for start in range(0, 40, 5)]
        assert found == [style] * 8


def test_imitations_are_most_like_the_writer_they_imitate() -> None:
    for style in range(len(STYLES)):
        pairs = [write_texts(*scene(number), KeyedRng(number), style) for number in range(10)]
        assert nearest_writer([what for _, what in pairs]) == style
        assert nearest_writer([who for who, _ in pairs]) == style


def test_bad_requests_are_named() -> None:
    with pytest.raises(ValueError, match="style must be a writer from 0 to 7, got 8"):
        write_texts(*scene(0), KeyedRng(0), 8)
    with pytest.raises(ValueError, match="nearest_writer needs at least one example caption, got none"):
        nearest_writer([])
