"""Captions as people write them: eight writing styles, three annotators in each, and their slips of the pen."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.rng import Dice
from training.synthetic.text.annotator import Annotator, Seen
from training.synthetic.text.vocabulary import MISSPELLINGS, listed, sentence, with_article

ANNOTATORS_PER_STYLE = 3
MIN_WORDS, USUAL_MIN_WORDS, MAX_WORDS = 8, 15, 48
_TYPO_RATES = (0.02, 0.05, 0.12)  # of the three annotators of a style, per caption


@dataclass(frozen=True)
class Caption:
    """One caption, how it was written, and the errors in it (`kind:where`)."""

    text: str
    style: int
    annotator: int
    errors: list[str]


def _is(seen: Seen) -> str:
    return "are" if seen.he == "they" else "is"


def _has(seen: Seen) -> str:
    return "have" if seen.he == "they" else "has"


def _who(seen: Seen) -> str:
    return f"{seen.build} {seen.noun}" if seen.build else seen.noun


def _bag(seen: Seen) -> str:
    return " ".join(filter(None, (with_article(seen.bag or "bag"), seen.bag_place)))


def _terse(seen: Seen, dice: Dice) -> str:
    parts = [_who(seen), *seen.looks(), seen.hat, seen.scarf, seen.upper, seen.inner and f"{seen.inner} underneath"]
    parts += [seen.lower, seen.shoes, seen.bag and " ".join(filter(None, (seen.bag, seen.bag_place))), seen.action]
    text = dice.pick((", ", ", ", "; ")).join(part for part in parts if part)
    return sentence(text) + dice.pick(("", "."))


def _sentences(seen: Seen, dice: Dice) -> str:
    looks = f" with {listed(seen.looks())}" if seen.looks() else ""
    worn = seen.worn() + seen.extras()
    text = f"{sentence(with_article(_who(seen)))}{looks} is wearing {listed(worn)}"
    text += f", with {with_article(seen.inner)} underneath." if seen.inner else "."
    tail = []
    if seen.shoes:
        tail.append(f"{_has(seen)} {seen.shoes} on" if dice.chance(0.5) else f"{_is(seen)} wearing {seen.shoes}")
    if seen.bag:
        tail.append(f"{_is(seen)} carrying {_bag(seen)}")
    if seen.action:
        tail.append(f"{_is(seen)} {seen.action}")
    return f"{text} {seen.he.capitalize()} {listed(tail)}." if tail else text


def _narrative(seen: Seen, dice: Dice) -> str:
    opening = dice.pick(("This picture shows", "In this image we see", "The photo shows", "Here we can see"))
    text = f"{opening} {with_article(_who(seen))}{' ' + seen.action if seen.action else ''}."
    text += f" {seen.he.capitalize()} {_is(seen)} dressed in {listed(seen.worn())}"
    text += f", with {with_article(seen.inner)} underneath." if seen.inner else "."
    if seen.shoes:
        text += f" On {seen.his} feet are {seen.shoes}."
    rest = seen.looks() + seen.extras()
    if rest:
        text += f" {seen.he.capitalize()} {_has(seen)} {listed(rest)}."
    return text + (f" {sentence(_bag(seen))} can be seen as well." if seen.bag else "")


def _repetitive(seen: Seen, dice: Dice) -> str:
    who = f"The {_who(seen)}"
    worn = seen.worn()
    if seen.shoes and dice.chance(0.5):
        worn.append(seen.shoes)
    parts = [f"{who} is wearing {listed(worn)}."]
    if seen.inner:
        parts.append(f"{who} is wearing {with_article(seen.inner)} under it.")
    if seen.shoes and seen.shoes not in worn:
        parts.append(f"{who} is wearing {seen.shoes}.")
    if seen.looks():
        parts.append(f"The {seen.noun} has {listed(seen.looks())}.")
    if seen.extras():
        parts.append(f"The {seen.noun} is also wearing {listed(seen.extras())}.")
    if seen.bag:
        parts.append(f"The {seen.noun} is carrying {_bag(seen)}.")
    if seen.action:
        parts.append(f"The {seen.noun} is {seen.action}.")
    return " ".join(parts)


def _pedantic(seen: Seen, dice: Dice) -> str:
    subject = sentence(with_article(_who(seen)))
    text = f"{subject}, {seen.action}," if seen.action else subject
    text += f" is attired in {with_article(seen.upper)}"
    text += f" worn open over {with_article(seen.inner)}" if seen.inner else ""
    lower = seen.worn()[1:]
    text += f", paired with {lower[0]}" if lower else ""
    text += f"; the footwear consists of {seen.shoes}" if seen.shoes else ""
    text += f". The {seen.noun} possesses {listed(seen.looks())}" if seen.looks() else ""
    carried = seen.extras() + ([_bag(seen)] if seen.bag else [])
    text += (
        f". {dice.pick(('Accessories include', 'Also visible:', 'In addition there is'))} {listed(carried)}"
        if carried
        else ""
    )
    return text + "."


def _casual(seen: Seen, dice: Dice) -> str:
    text = f"{dice.pick(('', 'just ', 'so theres '))}{with_article(_who(seen))} in {listed(seen.worn())}"
    text += f" with {with_article(seen.inner)} under it" if seen.inner else ""
    carried = seen.looks() + seen.extras() + ([_bag(seen)] if seen.bag else [])
    if carried:
        got = {"he": "hes got", "she": "shes got", "they": "they got"}[seen.he]
        text += f", {got} {listed(carried)}"
    text += f" and {seen.shoes}{dice.pick(('', ' i think', ' it looks like'))}" if seen.shoes else ""
    return text + (f", looks like {seen.he} {_is(seen)} {seen.action}" if seen.action else "")


def _learner(seen: Seen, dice: Dice) -> str:
    """A writer whose first language has neither articles nor verb endings."""
    text = f"The {_who(seen)} wear {seen.upper}"
    text += f" and {seen.lower}" if seen.lower else ""
    text += f", inside is {seen.inner}" if seen.inner else ""
    text += (
        f". {seen.he.capitalize()} have {listed([re.sub('^an? ', '', look) for look in seen.looks()])}"
        if seen.looks()
        else ""
    )
    text += f". The shoes is {seen.shoes}" if seen.shoes else ""
    text += f", on head is {seen.hat}" if seen.hat else ""
    text += f", on neck is {seen.scarf}" if seen.scarf else ""
    text += f". {seen.he.capitalize()} take one {seen.bag} {seen.bag_place or ''}".rstrip() if seen.bag else ""
    return text + (f". {seen.he.capitalize()} is {seen.action}" if seen.action else "") + dice.pick((".", ".", " ."))


def _clothes_first(seen: Seen, dice: Dice) -> str:
    worn = seen.worn() + ([seen.shoes] if seen.shoes else []) + seen.extras()
    text = (
        f"{dice.pick(('Wearing', 'Dressed in', 'Clad in'))} {listed(worn)}, {dice.pick(('this', 'the'))} {_who(seen)}"
    )
    text += f" with {listed(seen.looks())}" if seen.looks() else ""
    text += f" is {seen.action}" if seen.action else " was caught on camera"
    text += f" while carrying {_bag(seen)}." if seen.bag else "."
    return text + (f" There is {with_article(seen.inner)} under the outer layer." if seen.inner else "")


STYLES: tuple[Callable[[Seen, Dice], str], ...] = (
    _terse,
    _sentences,
    _narrative,
    _repetitive,
    _pedantic,
    _casual,
    _learner,
    _clothes_first,
)


def _slip(text: str, dice: Dice) -> tuple[str, list[str]]:
    """The text with one misspelt word."""
    words = text.split(" ")
    known = [i for i, word in enumerate(words) if word in MISSPELLINGS]
    if known and dice.chance(0.6):
        i = dice.pick(known)
        error = f"misspelling:{words[i]}"
        words[i] = dice.pick(MISSPELLINGS[words[i]])
        return " ".join(words), [error]
    plain = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not plain:
        return text, []
    i = dice.pick(plain)
    at = dice.integer(1, len(words[i]) - 3)
    error = f"typo:{words[i]}"
    words[i] = words[i][:at] + words[i][at + 1] + words[i][at] + words[i][at + 2 :]
    return " ".join(words), [error]


def _write(dice: Dice, identity: Identity, outfit: Outfit, pose: Pose, style: int, annotator: int) -> Caption:
    wanted = MIN_WORDS if dice.chance(0.06) else USUAL_MIN_WORDS
    drafts: list[tuple[int, int, str, list[str]]] = []  # words too few or too many, order, text, errors
    for effort in (0, 1, 2, 2, 0, 0):
        seen = Annotator(dice, identity, outfit, pose, effort).look()
        draft = STYLES[style](seen, dice)
        count = len(draft.split())
        drafts.append((max(wanted - count, count - MAX_WORDS, 0), len(drafts), draft, seen.errors))
        if drafts[-1][0] == 0:
            break
    _, _, text, errors = min(drafts)
    if len(text.split()) < MIN_WORDS:
        text = f"{text.rstrip('. ')}, seen by a street camera."
    if dice.chance(_TYPO_RATES[annotator % ANNOTATORS_PER_STYLE]):
        text, slips = _slip(text, dice)
        errors = errors + slips
    return Caption(text, style, annotator, errors)


def write_captions(dice: Dice, identity: Identity, outfit: Outfit, pose: Pose) -> list[Caption]:
    """Two captions of one picture by two annotators with different styles."""
    captions = []
    for style in dice.shuffled(range(len(STYLES)))[:2]:
        annotator = style * ANNOTATORS_PER_STYLE + dice.integer(0, ANNOTATORS_PER_STYLE - 1)
        captions.append(_write(dice, identity, outfit, pose, style, annotator))
    return captions


def tokens(caption: str) -> list[str]:
    """Lower-case words without punctuation, as in the `processed_tokens` of CUHK-PEDES."""
    return re.sub(r"[^a-z0-9\s]", "", caption.lower()).split()
