"""Neutral captions by word lists: attributes vanish, habits of writing stay."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.describe.styles.neutral_rules import neutralise
from training.synthetic.text import vocabulary

CAPTIONS = {
    # Everything that is seen becomes one word a kind, whatever it is.
    "A young woman with long blonde hair is wearing a dark blue striped T-shirt and white sneakers.": (
        "A person with item is wearing a item and item."
    ),
    "An old man with a bald head is wearing an orange coat and brown leather shoes.": (
        "A person with a item is wearing a item and item."
    ),
    # Lists of adjectives, hyphens, adjectives that are nouns elsewhere.
    "Man in a black, long-sleeved top, grey dress pants and dress shoes": "Person in a item, item and item",
    "she wears a red and white checked dress": "he wears a item",
    # Hair that is worn up, bags with their place, actions to their end.
    "The lady has brown hair tied up in a bun.": "The person has item.",
    "He takes one black bag in his left hand, walking away from the camera.": "He takes one item at the side, moving.",
    "seen from behind while walking, holding an umbrella": "moving, moving",
    # Persons of all sexes have one pronoun, and its verb goes with it.
    "They are tall. They have a beard. her hat": "He is tall. He has a item. his item",
    "shes got a purse, theyre young": "hes got a item, hes young",
    # What is said of a thing that is not named beside it.
    "The shoes are white and black.": "The item are plain and plain.",
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_attributes_become_neutral(caption: str) -> None:
    assert neutralise([caption]) == [CAPTIONS[caption]]


def test_habits_of_writing_stay() -> None:
    kept = [
        "so theres",
        " i think",
        "possesses",
        "; the footwear consists of",
        "Clad in",
        " ,",
        "wering",
        "can be seen as well.",
    ]
    assert [habit for habit in kept if habit.strip() not in neutralise([f"x {habit} x"])[0]] == []
    # Large and small letters, commas and semicolons, articles or none.
    assert neutralise(["MAN; HAT", "Man, hat.", "man wear hat"]) == [
        "Person; Item",
        "Person, item.",
        "person wear item",
    ]


def test_no_word_of_the_synthetic_vocabulary_is_left() -> None:
    nouns = [
        phrase
        for group in (vocabulary.GARMENT_WORDS, vocabulary.PEOPLE)
        for phrases in group.values()
        for phrase in phrases
    ]
    colours = [colour for colours in vocabulary.COLOUR_WORDS.values() for colour in colours]
    left = {
        text
        for text in neutralise([f"the {c} {n}" for c in colours for n in nouns])
        if text not in ("the item", "the person")
    }
    assert left == set()
    hair = [
        form.format(c)
        for forms in vocabulary.HAIR_WORDS.values()
        for form in forms
        for c in ("dark brown", "light colored")
    ]
    assert set(neutralise(hair)) == {"item", "a item"}


@given(st.text(max_size=80))
def test_any_text_comes_back_in_one_line(text: str) -> None:
    (neutral,) = neutralise([text])
    assert not re.search(r"\s\s|[\n\t]", neutral) and neutral == neutral.strip()


@given(st.lists(st.sampled_from([*CAPTIONS]), max_size=4))
def test_what_is_neutral_stays(captions: list[str]) -> None:
    once = neutralise(captions)
    assert neutralise(once) == once
