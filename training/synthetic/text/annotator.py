"""Notes of one annotator about an image, in words: with omissions and with typical human errors."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.rng import KeyedRng
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
    with_article,
)


@dataclass
class Notes:
    """Phrases without articles; None or empty where the annotator mentions nothing."""

    noun: str
    he: str
    his: str
    upper: str
    lower: str | None
    shoes: str | None = None
    hat: str | None = None
    scarf: str | None = None
    inner: str | None = None
    bag: str | None = None
    bag_place: str | None = None
    hair: str | None = None
    face: list[str] = field(default_factory=list)  # glasses, a beard
    build: str | None = None
    action: str | None = None
    errors: list[str] = field(default_factory=list)
    # What the annotator decided, by slot (`likelihood.SLOTS`): a word, or None for a part that is not mentioned. A slot that a
    # decision before it ruled out is missing, such as the colour of a hat that is not mentioned.
    decisions: dict[str, str | None] = field(default_factory=dict)
    effort: int = 0

    def worn(self) -> list[str]:
        """Upper and lower garment with articles."""
        phrases = [with_article(self.upper)]
        if self.lower:
            phrases.append(with_article(self.lower) if "skirt" in self.lower else self.lower)
        return phrases

    def looks(self) -> list[str]:
        """Hair and face."""
        return ([self.hair] if self.hair else []) + self.face

    def extras(self) -> list[str]:
        """Hat and scarf with articles."""
        return [with_article(phrase) for phrase in (self.hat, self.scarf) if phrase]


class Annotator:
    """Describes one image; `effort` 0, 1, 2 raises the share of the attributes that are mentioned."""

    def __init__(self, rng: KeyedRng, identity: Identity, outfit: Outfit, pose: Pose, effort: int = 0) -> None:
        self.rng, self.identity, self.outfit, self.pose, self.effort = rng, identity, outfit, pose, effort
        self.rates = habits.mention_rates(identity, outfit, pose)
        self.errors: list[str] = []
        self.decisions: dict[str, str | None] = {}

    def mentions(self, part: str) -> bool:
        """True if a part is mentioned, with the probability of `habits.mention_rates` at effort 0."""
        rate = self.rates[part]
        mentioned = rate > 0 and self.rng.chance(habits.raised(rate, self.effort))
        self.decisions[part] = habits.MENTIONED if mentioned else None
        return mentioned

    def choose(self, slot: str, words: Sequence[str]) -> str:
        """One of the words, all equally likely."""
        word = self.rng.choice(words)
        self.decisions[slot] = word
        return word

    def colour(self, part: str) -> str:
        """A word for the colour of a part of the outfit; with probability WRONG_COLOUR for a neighbouring colour."""
        name: str = getattr(self.outfit, f"{part}_colour")
        if self.rng.chance(habits.WRONG_COLOUR):
            self.errors.append(f"colour:{part}")
            name = self.rng.choice(NEIGHBOURS[name])
        return self.choose(f"{part}_colour", COLOUR_WORDS[name])

    def garment(self, part: str) -> str:
        """Colour and name of a part of the outfit."""
        colour = self.colour(part)
        return f"{colour} {self.choose(part, GARMENT_WORDS[getattr(self.outfit, part)])}"

    def take_notes(self) -> Notes:
        """Everything that this annotator writes about the image."""
        noun, he, his = self._noun()
        notes = Notes(noun, he, his, upper=self._upper(), lower=self._lower())
        if self.mentions("shoes"):
            notes.shoes = self.garment("shoes")
        if self.mentions("hat"):
            notes.hat = self.garment("hat")
        if self.mentions("scarf"):
            notes.scarf = f"{self.colour('scarf')} scarf"
        if self.mentions("inner"):
            colour = self.colour("inner")
            notes.inner = f"{colour} {self.choose('inner', INNER_WORDS)}"
        self._bag(notes)
        self._person(notes)
        if self.mentions("action"):
            notes.action = self._action().format(his=his)
        notes.errors, notes.decisions, notes.effort = self.errors, self.decisions, self.effort
        return notes

    def _noun(self) -> tuple[str, str, str]:
        """Noun and pronouns."""
        he, his = ("he", "his") if self.identity.sex == "man" else ("she", "her")
        noun = self.choose("noun", PEOPLE[self.identity.sex, self.identity.age])
        if self.rng.chance(habits.generic_noun_rate(self.pose)):
            return self.choose("noun", GENERIC_PEOPLE), "they", "their"
        return noun, he, his

    def _upper(self) -> str:
        rng, outfit = self.rng, self.outfit
        garment = self.choose("upper", GARMENT_WORDS[outfit.upper])
        if not rng.chance(habits.UPPER_COLOUR):
            self.decisions["upper_colour"] = None
            return garment
        colour = self.colour("upper")
        if not self.mentions("pattern"):
            return f"{colour} {garment}"
        other = self.colour("pattern")
        if outfit.pattern == "logo":
            design = self.choose("pattern", LOGO_WORDS)
            return f"{colour} {garment} with {with_article(f'{other} {design}')} on the front"
        pattern = rng.choice(PATTERN_WORDS[outfit.pattern])
        form = rng.weighted_choice(habits.PATTERN_FORMS)
        if form == "with":
            pattern = rng.choice(PATTERN_NOUNS[outfit.pattern])
        self.decisions["pattern"] = f"{form} {pattern}"
        if form == "both":
            return f"{colour} and {other} {pattern} {garment}"
        if form == "with":
            return f"{colour} {garment} with {other} {pattern}"
        # The second colour is not written.
        del self.decisions["pattern_colour"]
        return f"{pattern} {colour} {garment}"

    def _lower(self) -> str | None:
        if not self.mentions("lower"):
            return None
        outfit = self.outfit
        if outfit.lower == "bare legs":
            self.decisions["lower"] = outfit.lower
            return outfit.lower
        garment = self.choose("lower", GARMENT_WORDS[outfit.lower])
        if habits.may_lack_colour(outfit) and self.rng.chance(habits.JEANS_WITHOUT_COLOUR):
            self.decisions["lower_colour"] = None
            return garment
        return f"{self.colour('lower')} {garment}"

    def _bag(self, notes: Notes) -> None:
        outfit, rng = self.outfit, self.rng
        if not self.mentions("bag"):
            return
        notes.bag = self.garment("bag")
        if not self.mentions("bag_place"):
            return
        if outfit.bag == "backpack":
            place = self.choose("bag_place", BACKPACK_PLACES)
        else:
            side = outfit.bag_side
            if rng.chance(habits.WRONG_SIDE):
                self.errors.append("side:bag")
                side = habits.OTHER_SIDE[side]
            place = self.decisions["bag_place"] = SIDE_PLACES[outfit.bag] % side
        notes.bag_place = place.format(his=notes.his)

    def _person(self, notes: Notes) -> None:
        identity, rng = self.identity, self.rng
        if self.mentions("hair"):
            if identity.hair == "bald":
                notes.hair = self.choose("hair", BALD_WORDS)
            else:
                template = rng.choice(HAIR_WORDS[identity.hair])
                notes.hair = hair_phrase(template, rng.choice(HAIR_COLOURS[identity.hair_colour]))
                self.decisions["hair"] = notes.hair
        if self.mentions("glasses"):
            notes.face.append("glasses")
        if self.mentions("beard"):
            notes.face.append(self.choose("beard", BEARD_WORDS))
        # At most one of the three.
        if self.mentions("build"):
            notes.build = self.choose("build", BUILD_WORDS[identity.build])
        elif self.mentions("height"):
            notes.build = self.decisions["height"] = identity.height
        elif self.mentions("skin"):
            notes.build = "dark skinned"

    def _action(self) -> str:
        """Phrase for the action or the pose, with a place for the pronoun."""
        pose = self.pose
        if pose.action == "umbrella":
            return self.choose("action", UMBRELLA_ACTIONS[pose.gait])
        if habits.shows_phone(pose):
            return self.choose("action", PHONE_ACTIONS)
        if pose.facing in ("front", "back"):
            return self.choose("action", ACTIONS[pose.gait, pose.facing])
        side = pose.facing
        if self.rng.chance(habits.WRONG_SIDE):
            self.errors.append("side:facing")
            side = habits.OTHER_SIDE[side]
        action = SIDE_ACTIONS[pose.gait] % side
        self.decisions["action"] = action
        return action
