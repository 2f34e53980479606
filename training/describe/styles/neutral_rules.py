"""Neutral captions by word lists: attribute words are replaced by neutral ones, so that only the writing style remains.

The paper (3.3) lets a language model "generalise and substitute entity attributes" (neutral_llm.py); this is the offline
alternative. Words for content (people, clothes, colours, hair, bags, places on the body, movement) become one neutral word per
kind; articles, positions of pronouns, verbs of wearing, punctuation, order, spelling and case stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

# Modifiers before a noun, which vanish into its neutral word. A space also matches a hyphen.
MODIFIERS = {
    "colour": (
        "black white grey gray red orange yellow green blue navy purple violet pink brown beige tan cream khaki "
        "maroon burgundy teal turquoise gold golden silver olive lavender magenta charcoal blond blonde ginger "
        "brunette auburn reddish brownish greyish grayish bluish dark light bright pale deep faded colored coloured "
        "colorful colourful multicolored"
    ),
    "pattern": (
        "striped stripped stripe horizontally vertically plaid checkered chequered checked dotted spotted polka dot "
        "floral flowered patterned printed graphic plain solid camouflage camo denim leather cotton wool woolen "
        "knit knitted fleece fur furry suede lace silk nylon canvas plastic"
    ),
    "cut": (
        "long short medium knee length ankle waist chin shoulder mid calf thigh sleeve sleeved sleeveless sleeves "
        "collared collar button buttoned up down zip zipped hooded hood tight loose fitting fitted skinny slim "
        "baggy cropped high low heeled flat big small large little oversized puffy padded thick thin casual formal "
        "business sporty athletic matching v neck round crew turtleneck double single breasted three quarter"
    ),
    "kind": (
        "baseball winter summer rain sport sports tennis running dress tee work school shoulder messenger side "
        "cross body hand shopping laptop gym travel rolling sun reading tie"
    ),
    "person": (
        "young old older elderly senior middle aged age adult teenage teenaged male female heavy heavyset set "
        "overweight obese fat chubby slender stocky stout petite tall average build built muscular athletic fit "
        "dark light fair skinned skin asian caucasian african american european indian hispanic latino chinese "
        "japanese"
    ),
    "hair": ("straight curly wavy frizzy bald balding shaved buzzed thinning messy full almost no very"),
}
# Nouns by kind. All kinds but people share one neutral word: the kind itself is content as well.
ITEM = "item"
PERSON = "person"
NOUNS = {
    "person": (
        "man|men|woman|women|boy|girl|lady|ladies|guy|gentleman|gentlemen|male|female|person|people|pedestrian|individual|child|"
        "kid|teenager|teen|adult|student|youth|male child|female child|human|figure|subject|toddler"
    ),
    "garment": (
        "t shirt|tshirt|tee|shirt|shirts|blouse|top|tops|tank top|polo|polo shirt|jacket|coat|overcoat|windbreaker|hoodie|hoody|"
        "sweatshirt|sweater|jumper|pullover|cardigan|vest|blazer|suit|dress|gown|uniform|trousers|trouser|pants|slacks|jeans|"
        "denims|denim|shorts|skirt|leggings|tights|capris|sweatpants|khakis|bottoms|outfit|clothes|clothing|attire|parka|"
        "raincoat|robe|tunic|stockings|bare legs"
    ),
    "shoes": (
        "shoes|shoe|sneakers|sneaker|trainers|boots|boot|sandals|sandal|flip flops|heels|high heels|loafers|flats|slippers|socks|"
        "sock|pumps"
    ),
    "bag": (
        "backpack|back pack|rucksack|bag|bags|handbag|purse|briefcase|suitcase|luggage|tote|tote bag|satchel|pouch|knapsack|"
        "bookbag|school bag|umbrella|phone|cell phone|cellphone|mobile phone|bottle|book|books|bicycle|bike|cart|stroller|box|"
        "paper|papers|folder|camera bag|bag strap|strap|straps"
    ),
    "accessory": (
        "cap|hat|beanie|helmet|scarf|belt|tie|necktie|bow tie|watch|bracelet|necklace|earrings|gloves|headband|headphones|"
        "earphones|lanyard|hood|shawl|mask"
    ),
    "hair": "hair|hairs|ponytail|pony tail|pigtail|pigtails|bun|braid|braids|bangs|hairstyle|haircut|bald head|crew cut",
    "face": "glasses|eyeglasses|sunglasses|spectacles|beard|mustache|moustache|goatee|facial hair|face|complexion",
    "detail": (
        "logo|print|graphic|design|pattern|stripe|stripes|checks|squares|dots|polka dots|spots|lettering|letters|writing|words|"
        "text|picture on it|emblem|trim|pocket|pockets|zipper|buttons|sleeves|sleeve|collar|lining|accents"
    ),
}
# Actions and places where something is carried, as whole phrases, each with its neutral words.
_BODY = "back|hand|hands|shoulder|shoulders|side|sides|arm|arms"
_WHERE = (
    "the camera|us|the viewer|the left|the right|left|right|forward|forwards|ahead|straight|behind|the front|the side"
)
_MOVE = "walking|walks|standing|stands|facing|faces|running|strolling|stepping|moving|posing|sitting|riding"
_HANDLE = "holding|looking at|looking down at|talking on|talking into|speaking on|using|carrying|walking under"
PHRASES: tuple[tuple[str, str], ...] = (
    # The way hair is worn is one attribute with the hair.
    (r"hair (?:is |that is )?(?:tied|pulled|put|worn|up|back|in)(?: up| back)?(?: (?:in|into))?(?: an? \w+)?", "hair"),
    (rf"(?:seen|viewed|shown|photographed) from (?:behind|the {_BODY})(?: while (?:{_MOVE}))?", "moving"),
    (rf"(?:{_HANDLE}) (?:an? |the |(?:his|her|their) )?(?:\w+ )?(?:umbrella|phone|cellphone)", "moving"),
    (
        rf"(?:{_MOVE})(?: still| away| slowly| and facing| with (?:his|her|their|the) back)*"
        rf"(?: (?:(?:to|toward|towards|from|into|at) )?(?:{_WHERE}))*",
        "moving",
    ),
    (
        rf"(?:on|in|over|across|around|at) (?:(?:his|her|their|the|both|one|each) )?(?:of (?:his|her|their|the) )?"
        rf"(?:(?:left|right) )?(?:{_BODY})\b",
        "at the side",
    ),
)
_COLOURS = (
    "black|white|gr[ea]y|red|orange|yellow|green|blue|navy|purple|violet|pink|brown|beige|tan|khaki|maroon|blonde?|"
    "dark|bright"
)
_PRONOUNS = {
    "she": "he",
    "they": "he",
    "her": "his",
    "their": "his",
    "hers": "his",
    "theirs": "his",
    "him": "his",
    "them": "his",
}
_PRONOUNS |= {"shes": "hes", "theyre": "hes", "she's": "he's", "they're": "he's", "an": "a"}
# Applied after the pronouns: "they are" has become "he are", whose verb would give "they" away.
_AGREEMENT = {"he are": "he is", "he have": "he has", "he were": "he was", "they got": "hes got"}


def _alternatives(words: Iterable[str]) -> str:
    """Pattern of alternatives, the longest first, with a space or a hyphen between the parts of a term."""
    return "|".join(word.replace(" ", "[ -]") for word in sorted(set(words), key=lambda word: (-len(word), word)))


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE)


_MODIFIER = _alternatives(word for words in MODIFIERS.values() for word in words.split())
_NOUN = "|".join(f"(?P<{kind}>{_alternatives(nouns.split('|'))})" for kind, nouns in NOUNS.items())
# "blue and red striped shirt", "black, long-sleeved top": modifiers with separators between them, then a noun.
_NOUN_PHRASE = _compiled(rf"(?:(?:{_MODIFIER})(?: and | or |, | |-|/))*(?:{_NOUN})")
_COLOUR = _compiled(_COLOURS)
_SUBSTITUTIONS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    *((_compiled(pattern), lambda match, words=words: words) for pattern, words in PHRASES),
    (_NOUN_PHRASE, lambda match: PERSON if match.lastgroup == "person" else ITEM),
    (_COLOUR, lambda match: "plain"),
    (_compiled(_alternatives(_PRONOUNS)), lambda match: _PRONOUNS[match[0].lower()]),
    (_compiled(_alternatives(_AGREEMENT)), lambda match: _AGREEMENT[match[0].lower()]),
)


def neutralise(captions: Sequence[str]) -> list[str]:
    """Replaces every attribute in the captions by the neutral word of its kind, and white space by single spaces.

    Idempotent: neutral captions stay as they are. A replacement begins with a capital letter if the original did.
    """
    return [_neutral(" ".join(caption.split())) for caption in captions]


def find_content(text: str) -> list[str]:
    """Phrases in a text that name people or things other than by the neutral words, then the remaining colours."""
    found = [match[0] for match in _NOUN_PHRASE.finditer(text) if match[0].lower() not in (PERSON, ITEM)]
    return found + [match[0] for match in _COLOUR.finditer(_NOUN_PHRASE.sub(ITEM, text))]


def _neutral(text: str) -> str:
    for pattern, replacement in _SUBSTITUTIONS:
        text = pattern.sub(partial(_replace, replacement), text)
    return text


def _replace(replacement: Callable[[re.Match[str]], str], match: re.Match[str]) -> str:
    word = replacement(match)
    return word[0].upper() + word[1:] if match[0][0].isupper() else word
