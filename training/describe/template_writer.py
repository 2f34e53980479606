"""Identity and clothing texts by templates in the styles of the eight caption writers, and attribution of captions to a writer.

An offline substitute for a language model that imitates example captions: the texts follow the writer of `captions.STYLES`
whose captions are most similar to the examples.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from training.describe.styles.neutral_rules import neutralise
from training.describe.styles.style_encoders import StylometricEncoder
from training.synthetic.attributes import Identity, Outfit, Pose, sample_identity, sample_outfit, sample_pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.annotator import Annotator
from training.synthetic.text.captions import STYLES
from training.synthetic.text.descriptions import Clothes, Looks, clothes_of, looks_of
from training.synthetic.text.vocabulary import capitalise, join_phrases, with_article

# Captions of each writer to compare examples with: with 64, all examples of 2,000 renderings get the right writer.
_RENDERINGS = 64


class _IdentityTemplates:
    """Templates of identity texts, in the order of captions.STYLES; pronoun: "he" or "she"."""

    @staticmethod
    def terse(looks: Looks, pronoun: str, rng: KeyedRng) -> str:
        parts = [looks.person, looks.build, looks.height, looks.hair, looks.skin, *looks.face]
        return capitalise(rng.choice((", ", ", ", "; ")).join(parts)) + "."

    @staticmethod
    def sentences(looks: Looks, pronoun: str, rng: KeyedRng) -> str:
        text = f"{capitalise(with_article(looks.person))} with {looks.hair} is of {looks.build} and {looks.height}."
        return f"{text} {pronoun.capitalize()} has {join_phrases([looks.skin, *looks.face])}."

    @staticmethod
    def narrative(looks: Looks, pronoun: str, rng: KeyedRng) -> str:
        opening = rng.choice(("This picture shows", "In this image we see", "The photo shows", "Here we can see"))
        text = f"{opening} {with_article(looks.person)}. {pronoun.capitalize()} is of {looks.build} and {looks.height}."
        text += f" {pronoun.capitalize()} has {looks.hair} and {looks.skin}."
        return text + (f" {capitalise(join_phrases(looks.face))} can be seen as well." if looks.face else "")

    @staticmethod
    def repetitive(looks: Looks, pronoun: str, rng: KeyedRng) -> str:
        who = f"The {looks.person}"
        parts = [f"{who} has {with_article(looks.build)} and {looks.height}.", f"{who} has {looks.hair}."]
        parts.append(f"{who} has {looks.skin}.")
        return " ".join(parts + [f"{who} also has {join_phrases(looks.face)}."] * bool(looks.face))

    @staticmethod
    def pedantic(looks: Looks, pronoun: str, rng: KeyedRng) -> str:
        text = f"{capitalise(with_article(looks.person))}, of {looks.build} and {looks.height}, possesses {looks.hair}"
        text += f"; the complexion consists of {looks.skin}."
        opening = rng.choice(("Features include", "Also visible:", "In addition there is"))
        return text + (f" {opening} {join_phrases(looks.face)}." if looks.face else "")

    @staticmethod
    def casual(looks: Looks, pronoun: str, rng: KeyedRng) -> str:
        text = f"{rng.choice(('', 'just ', 'so theres '))}{with_article(looks.person)} with {looks.hair}"
        text += f", {pronoun}s got {join_phrases([looks.skin, *looks.face])} and {with_article(looks.build)}"
        return f"{text}, looks like {looks.height}{rng.choice(('', ' i think'))}"

    @staticmethod
    def learner(looks: Looks, pronoun: str, rng: KeyedRng) -> str:
        hair = re.sub("^an? ", "", looks.hair)
        text = f"The {looks.person} have {looks.build} and {looks.height}. {pronoun.capitalize()} have {hair}."
        text += f" The skin is {looks.skin}."
        return text + (
            f" {pronoun.capitalize()} have {join_phrases([re.sub('^an? ', '', f) for f in looks.face])}."
            * bool(looks.face)
        )

    @staticmethod
    def build_first(looks: Looks, pronoun: str, rng: KeyedRng) -> str:
        text = f"Having {with_article(looks.build)} and {looks.height}, {rng.choice(('this', 'the'))} {looks.person}"
        text += f" with {looks.hair} and {looks.skin} was caught on camera."
        return text + (f" There is {join_phrases(looks.face)} to be seen." if looks.face else "")


class _ClothingTemplates:
    """Templates of clothing texts, in the order of captions.STYLES, about "the person"."""

    @staticmethod
    def terse(clothes: Clothes, rng: KeyedRng) -> str:
        parts = [*clothes.extras, *clothes.worn, *clothes.bags]
        bare = [re.sub("^an? ", "", part) for part in parts]
        return capitalise(rng.choice((", ", ", ", "; ")).join(bare)) + "."

    @staticmethod
    def sentences(clothes: Clothes, rng: KeyedRng) -> str:
        text = (
            f"A person is wearing {join_phrases([*clothes.worn[:-1], *clothes.extras])}. They have {clothes.shoes} on"
        )
        return text + (f" and are carrying {join_phrases(clothes.bags)}." if clothes.bags else ".")

    @staticmethod
    def narrative(clothes: Clothes, rng: KeyedRng) -> str:
        opening = rng.choice(("This picture shows", "In this image we see", "The photo shows", "Here we can see"))
        text = f"{opening} a person dressed in {join_phrases(clothes.worn[:-1])}. On the feet are {clothes.shoes}."
        text += f" They have {join_phrases(clothes.extras)}." if clothes.extras else ""
        return text + (f" {capitalise(join_phrases(clothes.bags))} can be seen as well." if clothes.bags else "")

    @staticmethod
    def repetitive(clothes: Clothes, rng: KeyedRng) -> str:
        parts = [f"The person is wearing {join_phrases(clothes.worn[:-1])}.", f"The person is wearing {clothes.shoes}."]
        parts += [f"The person is also wearing {join_phrases(clothes.extras)}."] * bool(clothes.extras)
        return " ".join(parts + [f"The person is carrying {join_phrases(clothes.bags)}."] * bool(clothes.bags))

    @staticmethod
    def pedantic(clothes: Clothes, rng: KeyedRng) -> str:
        text = f"A person is attired in {clothes.upper}"
        text += f", paired with {clothes.lower}" if clothes.lower else ""
        text += f"; the footwear consists of {clothes.shoes}."
        opening = rng.choice(("Accessories include", "Also visible:", "In addition there is"))
        carried = clothes.extras + clothes.bags
        return text + (f" {opening} {join_phrases(carried)}." if carried else "")

    @staticmethod
    def casual(clothes: Clothes, rng: KeyedRng) -> str:
        text = f"{rng.choice(('', 'just ', 'so theres '))}a person in {join_phrases(clothes.worn[:-1])}"
        carried = clothes.extras + clothes.bags
        text += f", they got {join_phrases(carried)}" if carried else ""
        return f"{text} and {clothes.shoes}{rng.choice(('', ' i think', ' it looks like'))}"

    @staticmethod
    def learner(clothes: Clothes, rng: KeyedRng) -> str:
        bare = [re.sub("^an? ", "", part) for part in clothes.worn[:-1]]
        text = f"The person wear {' and '.join(bare)}. The shoes is {clothes.shoes}"
        text += "".join(f", on {'neck' if part.endswith('scarf') else 'head'} is {part}" for part in clothes.extras)
        return text + "".join(f". They take one {re.sub('^an? ', '', bag)}" for bag in clothes.bags) + "."

    @staticmethod
    def clothes_first(clothes: Clothes, rng: KeyedRng) -> str:
        opening = f"{rng.choice(('Wearing', 'Dressed in', 'Clad in'))} {join_phrases([*clothes.worn, *clothes.extras])}"
        text = f"{opening}, {rng.choice(('this', 'the'))} person was caught on camera"
        return text + (f" while carrying {join_phrases(clothes.bags)}." if clothes.bags else ".")


_IDENTITY_TEMPLATES: tuple[Callable[[Looks, str, KeyedRng], str], ...] = (
    _IdentityTemplates.terse,
    _IdentityTemplates.sentences,
    _IdentityTemplates.narrative,
    _IdentityTemplates.repetitive,
    _IdentityTemplates.pedantic,
    _IdentityTemplates.casual,
    _IdentityTemplates.learner,
    _IdentityTemplates.build_first,
)
_CLOTHING_TEMPLATES: tuple[Callable[[Clothes, KeyedRng], str], ...] = (
    _ClothingTemplates.terse,
    _ClothingTemplates.sentences,
    _ClothingTemplates.narrative,
    _ClothingTemplates.repetitive,
    _ClothingTemplates.pedantic,
    _ClothingTemplates.casual,
    _ClothingTemplates.learner,
    _ClothingTemplates.clothes_first,
)


def write_texts(identity: Identity, outfit: Outfit, pose: Pose, rng: KeyedRng, style: int) -> tuple[str, str]:
    """Returns (identity text, clothing text) of an image in the style of a writer (index into captions.STYLES).

    The identity text mentions no clothing, the clothing text no identity, and neither anything that the view hides. Raises
    ValueError for an index without a writer.
    """
    if not 0 <= style < len(STYLES):
        raise ValueError(f"style must be a writer from 0 to {len(STYLES) - 1}, got {style}")
    pronoun = "he" if identity.sex == "man" else "she"
    return _IDENTITY_TEMPLATES[style](looks_of(identity, pose), pronoun, rng), _CLOTHING_TEMPLATES[style](
        clothes_of(outfit, pose), rng
    )


def nearest_writer(examples: Sequence[str]) -> int:
    """Returns the writer (index into captions.STYLES) whose style is most similar to that of the examples on average.

    Raises ValueError without an example.
    """
    if not examples:
        raise ValueError("nearest_writer needs at least one example caption, got none")
    encoder, prototypes_SD = _writer_prototypes()
    mean_D = encoder.transform(neutralise(examples)).mean(0)
    return int(np.argmax(prototypes_SD @ mean_D))


@lru_cache(maxsize=1)
def _writer_prototypes() -> tuple[StylometricEncoder, np.ndarray]:
    """Returns a style encoder fitted on captions of every writer, and each writer's normalised mean feature (S, D)."""
    texts = []
    for number in range(_RENDERINGS):
        rng = KeyedRng("writer", number)
        identity = sample_identity(rng)
        outfit = sample_outfit(rng, identity)
        pose = sample_pose(rng, outfit)
        texts += [style(Annotator(rng, identity, outfit, pose, 1).take_notes(), rng) for style in STYLES]
    encoder = StylometricEncoder()
    features_ND = encoder.fit_transform(neutralise(texts))
    means_SD = np.stack([features_ND[style :: len(STYLES)].mean(0) for style in range(len(STYLES))])
    return encoder, means_SD / np.linalg.norm(means_SD, axis=1, keepdims=True)
