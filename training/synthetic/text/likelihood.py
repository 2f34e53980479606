"""Probability of each decision of an annotator, given the true factors of an image: the annotator's own words and rates."""

from collections.abc import Sequence
from functools import cache

from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.text import habits
from training.synthetic.text.vocabulary import (
    ACTIONS,
    BACKPACK_PLACES,
    BALD_WORDS,
    BEARD_WORDS,
    BUILD_WORDS,
    COLOUR_WORDS,
    GARMENT_WORDS,
    GENERIC_PEOPLE,
    HAIR_COLOURS,
    HAIR_WORDS,
    INNER_WORDS,
    LOGO_WORDS,
    NEIGHBOURS,
    PATTERN_NOUNS,
    PATTERN_WORDS,
    PEOPLE,
    PHONE_ACTIONS,
    SIDE_ACTIONS,
    SIDE_PLACES,
    UMBRELLA_ACTIONS,
    hair_phrase,
)

# Decisions about the person, about what is worn and carried, and about the pose.
IDENTITY_SLOTS = ("noun", "hair", "glasses", "beard", "build", "height", "skin")
COLOURED = ("upper", "pattern", "lower", "shoes", "hat", "scarf", "inner", "bag")
CLOTHING_SLOTS = (*COLOURED, *(f"{part}_colour" for part in COLOURED), "bag_place")
SLOTS = (*IDENTITY_SLOTS, *CLOTHING_SLOTS, "action")

# Probabilities of the outcomes of a decision, None for a part that is not mentioned.
Distribution = dict[str | None, float]


def decision_probabilities(identity: Identity, outfit: Outfit, pose: Pose, effort: int) -> dict[str, Distribution]:
    """Distribution of each decision of `Annotator.take_notes` in SLOTS, once the annotator comes to it.

    Decisions are independent, given the factors, so their product is the probability of the notes. A decision that cannot
    come up for these factors, such as the colour of a hat that is not worn, has no outcome.
    """
    rates = habits.mention_rates(identity, outfit, pose)
    words: dict[str, Distribution] = {
        "pattern": _pattern_words(outfit.pattern),
        "hair": _hair_words(identity.hair, identity.hair_colour),
        "scarf": {habits.MENTIONED: 1.0},
        "inner": _uniform(INNER_WORDS),
        "glasses": {habits.MENTIONED: 1.0},
        "beard": _uniform(BEARD_WORDS),
        "build": _uniform(BUILD_WORDS.get(identity.build, ())),
        "height": {identity.height: 1.0},
        "skin": {habits.MENTIONED: 1.0},
        "bag_place": _bag_places(outfit.bag, outfit.bag_side),
        "action": _actions(pose),
        **{part: _garment_words(getattr(outfit, part)) for part in ("lower", "shoes", "hat", "bag")},
    }
    result = {
        part: _mixture(habits.raised(rate, effort), words[part]) if rate else _UNMENTIONED
        for part, rate in rates.items()
    }
    if outfit.bag == "none":
        result["bag_place"] = {}
    result |= {f"{part}_colour": _colour_words(getattr(outfit, f"{part}_colour")) for part in COLOURED}
    result["noun"] = _nouns(identity.sex, identity.age, habits.generic_noun_rate(pose))
    result["upper"] = _garment_words(outfit.upper)
    result["upper_colour"] = _mixture(habits.UPPER_COLOUR, result["upper_colour"])
    if habits.may_lack_colour(outfit):
        result["lower_colour"] = _mixture(1.0 - habits.JEANS_WITHOUT_COLOUR, result["lower_colour"])
    return result


_UNMENTIONED: Distribution = {None: 1.0}


def _mixture(share: float, words: Distribution) -> Distribution:
    """The words with probability `share`, else None."""
    return {None: 1.0 - share} | {word: share * probability for word, probability in words.items()}


def _add(*parts: tuple[float, Distribution]) -> Distribution:
    """Sum of distributions, each times a weight."""
    total: Distribution = {}
    for weight, part in parts:
        for word, probability in part.items():
            total[word] = total.get(word, 0.0) + weight * probability
    return total


@cache
def _uniform(words: Sequence[str]) -> Distribution:
    """Share of each word; words may repeat."""
    total: Distribution = {}
    for word in words:
        total[word] = total.get(word, 0.0) + 1.0 / len(words)
    return total


@cache
def _garment_words(name: str) -> Distribution:
    return {name: 1.0} if name == "bare legs" else _uniform(GARMENT_WORDS.get(name, ()))


@cache
def _colour_words(name: str) -> Distribution:
    """Words for a colour, those of its neighbours by mistake included; none for "none"."""
    if name == "none":
        return {}
    wrong = [(habits.WRONG_COLOUR / len(NEIGHBOURS[name]), _uniform(COLOUR_WORDS[other])) for other in NEIGHBOURS[name]]
    return _add((1.0 - habits.WRONG_COLOUR, _uniform(COLOUR_WORDS[name])), *wrong)


@cache
def _nouns(sex: str, age: str, generic: float) -> Distribution:
    return _add((1.0 - generic, _uniform(PEOPLE[sex, age])), (generic, _uniform(GENERIC_PEOPLE)))


@cache
def _pattern_words(pattern: str) -> Distribution:
    if pattern == "plain":
        return {}
    if pattern == "logo":
        return _uniform(LOGO_WORDS)
    total = sum(habits.PATTERN_FORMS.values())
    parts = []
    for form, weight in habits.PATTERN_FORMS.items():
        words = _uniform((PATTERN_NOUNS if form == "with" else PATTERN_WORDS)[pattern])
        phrases: Distribution = {f"{form} {word}": p for word, p in words.items()}
        parts.append((weight / total, phrases))
    return _add(*parts)


@cache
def _hair_words(hair: str, colour: str) -> Distribution:
    if hair == "bald":
        return _uniform(BALD_WORDS)
    return _uniform(tuple(hair_phrase(t, c) for t in HAIR_WORDS[hair] for c in HAIR_COLOURS[colour]))


@cache
def _bag_places(bag: str, side: str) -> Distribution:
    if bag not in SIDE_PLACES:
        return _uniform(BACKPACK_PLACES)
    return _by_side(SIDE_PLACES[bag], side)


def _by_side(template: str, side: str) -> Distribution:
    right, wrong = template % side, template % habits.OTHER_SIDE[side]
    return {right: 1.0 - habits.WRONG_SIDE, wrong: habits.WRONG_SIDE}


def _actions(pose: Pose) -> Distribution:
    if pose.action == "umbrella":
        return _uniform(UMBRELLA_ACTIONS[pose.gait])
    if habits.shows_phone(pose):
        return _uniform(PHONE_ACTIONS)
    if pose.facing in habits.OTHER_SIDE:
        return _by_side(SIDE_ACTIONS[pose.gait], pose.facing)
    return _uniform(ACTIONS[pose.gait, pose.facing])
