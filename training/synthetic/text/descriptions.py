"""Identity texts and clothing texts from templates, in the place of those that a language model would generate.

An identity text never names clothing, a clothing text never says who wears it, and neither tells what the view hides.
"""

import hashlib
from typing import NamedTuple

from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.rng import Dice
from training.synthetic.text.vocabulary import PLURALS, listed, sentence, with_article

VERSION = 1
STYLES = 4
_HAIR = {
    "bald": "a bald head",
    "buzzed": "very short {} hair",
    "short": "short {} hair",
    "curly": "curly {} hair",
    "bob": "chin length {} hair",
    "long": "long {} hair",
    "ponytail": "{} hair in a ponytail",
    "bun": "{} hair in a bun",
}
_SKIN = {"fair": "fair skin", "tan": "tan skin", "brown": "brown skin", "dark": "dark skin"}
_NOUNS = {("man", "child"): "boy", ("woman", "child"): "girl"}


def prompt_hash(style: int) -> str:
    """Sixteen hex digits that name the pair of templates behind a style."""
    return hashlib.sha256(f"pedestrians/template/{VERSION}/{style}".encode()).hexdigest()[:16]


class Looks(NamedTuple):
    """What a picture tells about the person, in phrases."""

    person: str
    build: str
    height: str
    hair: str
    skin: str
    face: list[str]  # a beard, glasses; empty from behind


class Clothes(NamedTuple):
    """What is worn and carried in a picture, in phrases, with articles where they take one."""

    upper: str
    lower: str  # "" under a dress
    shoes: str
    extras: list[str]  # hat, scarf
    bags: list[str]

    @property
    def worn(self) -> list[str]:
        """Upper garment, lower garment, shoes."""
        return [phrase for phrase in (self.upper, self.lower, self.shoes) if phrase]


def looks_of(identity: Identity, pose: Pose) -> Looks:
    """The phrases about the person, as far as the view shows it."""
    face = []
    if pose.facing != "back":
        face = ["a full beard"] * identity.beard + ["glasses"] * identity.glasses
    hair, height = _HAIR[identity.hair].format(identity.hair_colour), identity.height
    height = "medium height" if height == "average" else f"{height} height"
    return Looks(_person(identity), f"{identity.build} build", height, hair, _SKIN[identity.skin], face)


def clothes_of(outfit: Outfit, pose: Pose) -> Clothes:
    """The phrases about the clothes, as far as the view shows them."""
    lower = "" if outfit.lower == "bare legs" else f"{outfit.lower_colour} {outfit.lower}"
    if lower and outfit.lower not in PLURALS:
        lower = with_article(lower)
    extras = [with_article(f"{outfit.hat_colour} {outfit.hat}")] if outfit.hat != "none" else []
    extras += [with_article(f"{outfit.scarf_colour} scarf")] if outfit.scarf_colour != "none" else []
    bags = [with_article(f"{outfit.bag_colour} {outfit.bag}")] if outfit.bag != "none" else []
    return Clothes(with_article(_upper(outfit, pose)), lower, f"{outfit.shoes_colour} {outfit.shoes}", extras, bags)


def _person(identity: Identity) -> str:
    noun = _NOUNS.get((identity.sex, identity.age), identity.sex)
    age = {"child": "", "young": "young", "adult": "middle aged", "elderly": "elderly"}[identity.age]
    return " ".join(filter(None, (age, noun)))


def _upper(outfit: Outfit, pose: Pose) -> str:
    colour, other = outfit.upper_colour, outfit.pattern_colour
    if outfit.pattern == "logo":
        print_ = f" with a {other} print on the front" if pose.facing == "front" else ""
        return f"{colour} {outfit.upper}{print_}"
    if outfit.pattern != "plain":
        return f"{colour} and {other} {outfit.pattern} {outfit.upper}"
    inner = outfit.inner_colour
    return f"{colour} {outfit.upper}" + (f" over a {inner} shirt" if inner != "none" and pose.facing != "back" else "")


def identity_text(identity: Identity, pose: Pose, style: int) -> str:
    """Who is seen: sex, age, build, height, skin, hair and, unless seen from behind, beard and glasses."""
    person, build, height, hair, skin, face = looks_of(identity, pose)
    if style == 0:
        subject = person if identity.build == "average" else f"{identity.build} {person}"
        return f"{sentence(with_article(subject))} of {height} with {listed([hair, skin, *face])}."
    if style == 1:
        return f"{', '.join([sentence(person), build, height, hair, skin, *face])}."
    he, his = ("He", "His") if identity.sex == "man" else ("She", "Her")
    if style == 2:
        text = (
            f"The person is {with_article(person)} with {with_article(build)} and {height}. {he} has {hair} and {skin}."
        )
        return text + (f" {his} face shows {listed(face)}." if face else "")
    text = f"{sentence(hair)} and {skin} mark this {person}, who is of {build} and {height}"
    return text + (f" and has {listed(face)}." if face else ".")


def clothing_text(outfit: Outfit, pose: Pose, style: int) -> str:
    """What is worn and carried, as far as it is seen."""
    clothes = clothes_of(outfit, pose)
    upper, lower, shoes, worn = clothes.upper, clothes.lower, clothes.shoes, clothes.worn
    extras = clothes.extras + clothes.bags
    if style == 0:
        return f"Wearing {listed(worn)}{', with ' + listed(extras) if extras else ''}."
    if style == 1:
        return f"{sentence(', '.join(worn + extras))}."
    if style == 2:
        text = f"The clothes are {listed(worn[:-1])}. The shoes are {shoes}."
        return text + (f" There is also {listed(extras)}." if extras else "")
    text = f"Upper body: {upper}. {f'Lower body: {lower}. ' if lower else ''}Feet: {shoes}."
    return text + (f" Accessories: {listed(extras)}." if extras else "")


def describe(dice: Dice, identity: Identity, outfit: Outfit, pose: Pose) -> dict[str, object]:
    """The generated texts of one picture, in the fields of `descriptions.jsonl` but for its file path."""
    style = dice.integer(0, STYLES - 1)
    return {
        "identity": identity_text(identity, pose, style),
        "clothing": clothing_text(outfit, pose, style),
        "style": style,
        "model": "template",
        "prompt_hash": prompt_hash(style),
        "params": {"version": VERSION},
        "status": "ok",
    }
