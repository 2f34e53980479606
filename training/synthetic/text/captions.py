"""Captions in the manner of human annotators: eight writing styles, three annotators each, and their typos."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.annotator import Annotator, Notes
from training.synthetic.text.vocabulary import MISSPELLINGS, capitalise, join_phrases, with_article

ANNOTATORS_PER_STYLE = 3
MIN_WORDS, USUAL_MIN_WORDS, MAX_WORDS = 8, 15, 48
_TYPO_RATES = (0.02, 0.05, 0.12)  # of the three annotators of a style, per caption


@dataclass(frozen=True)
class Caption:
    """One caption, its style and annotator, and the errors in it (`kind:place`)."""

    text: str
    style: int
    annotator: int
    errors: list[str]


def _is(notes: Notes) -> str:
    return "are" if notes.he == "they" else "is"


def _has(notes: Notes) -> str:
    return "have" if notes.he == "they" else "has"


def _who(notes: Notes) -> str:
    return f"{notes.build} {notes.noun}" if notes.build else notes.noun


def _bag(notes: Notes) -> str:
    return " ".join(filter(None, (with_article(notes.bag or "bag"), notes.bag_place)))


def _terse(notes: Notes, rng: KeyedRng) -> str:
    parts = [
        _who(notes),
        *notes.looks(),
        notes.hat,
        notes.scarf,
        notes.upper,
        notes.inner and f"{notes.inner} underneath",
    ]
    parts += [
        notes.lower,
        notes.shoes,
        notes.bag and " ".join(filter(None, (notes.bag, notes.bag_place))),
        notes.action,
    ]
    text = rng.choice((", ", ", ", "; ")).join(part for part in parts if part)
    return capitalise(text) + rng.choice(("", "."))


def _sentences(notes: Notes, rng: KeyedRng) -> str:
    looks = f" with {join_phrases(notes.looks())}" if notes.looks() else ""
    worn = notes.worn() + notes.extras()
    text = f"{capitalise(with_article(_who(notes)))}{looks} is wearing {join_phrases(worn)}"
    text += f", with {with_article(notes.inner)} underneath." if notes.inner else "."
    tail = []
    if notes.shoes:
        tail.append(f"{_has(notes)} {notes.shoes} on" if rng.chance(0.5) else f"{_is(notes)} wearing {notes.shoes}")
    if notes.bag:
        tail.append(f"{_is(notes)} carrying {_bag(notes)}")
    if notes.action:
        tail.append(f"{_is(notes)} {notes.action}")
    return f"{text} {notes.he.capitalize()} {join_phrases(tail)}." if tail else text


def _narrative(notes: Notes, rng: KeyedRng) -> str:
    opening = rng.choice(("This picture shows", "In this image we see", "The photo shows", "Here we can see"))
    text = f"{opening} {with_article(_who(notes))}{' ' + notes.action if notes.action else ''}."
    text += f" {notes.he.capitalize()} {_is(notes)} dressed in {join_phrases(notes.worn())}"
    text += f", with {with_article(notes.inner)} underneath." if notes.inner else "."
    if notes.shoes:
        text += f" On {notes.his} feet are {notes.shoes}."
    rest = notes.looks() + notes.extras()
    if rest:
        text += f" {notes.he.capitalize()} {_has(notes)} {join_phrases(rest)}."
    return text + (f" {capitalise(_bag(notes))} can be seen as well." if notes.bag else "")


def _repetitive(notes: Notes, rng: KeyedRng) -> str:
    who = f"The {_who(notes)}"
    worn = notes.worn()
    if notes.shoes and rng.chance(0.5):
        worn.append(notes.shoes)
    parts = [f"{who} is wearing {join_phrases(worn)}."]
    if notes.inner:
        parts.append(f"{who} is wearing {with_article(notes.inner)} under it.")
    if notes.shoes and notes.shoes not in worn:
        parts.append(f"{who} is wearing {notes.shoes}.")
    if notes.looks():
        parts.append(f"The {notes.noun} has {join_phrases(notes.looks())}.")
    if notes.extras():
        parts.append(f"The {notes.noun} is also wearing {join_phrases(notes.extras())}.")
    if notes.bag:
        parts.append(f"The {notes.noun} is carrying {_bag(notes)}.")
    if notes.action:
        parts.append(f"The {notes.noun} is {notes.action}.")
    return " ".join(parts)


def _pedantic(notes: Notes, rng: KeyedRng) -> str:
    subject = capitalise(with_article(_who(notes)))
    text = f"{subject}, {notes.action}," if notes.action else subject
    text += f" is attired in {with_article(notes.upper)}"
    text += f" worn open over {with_article(notes.inner)}" if notes.inner else ""
    lower = notes.worn()[1:]
    text += f", paired with {lower[0]}" if lower else ""
    text += f"; the footwear consists of {notes.shoes}" if notes.shoes else ""
    text += f". The {notes.noun} possesses {join_phrases(notes.looks())}" if notes.looks() else ""
    carried = notes.extras() + ([_bag(notes)] if notes.bag else [])
    text += (
        f". {rng.choice(('Accessories include', 'Also visible:', 'In addition there is'))} {join_phrases(carried)}"
        if carried
        else ""
    )
    return text + "."


def _casual(notes: Notes, rng: KeyedRng) -> str:
    text = f"{rng.choice(('', 'just ', 'so theres '))}{with_article(_who(notes))} in {join_phrases(notes.worn())}"
    text += f" with {with_article(notes.inner)} under it" if notes.inner else ""
    carried = notes.looks() + notes.extras() + ([_bag(notes)] if notes.bag else [])
    if carried:
        got = {"he": "hes got", "she": "shes got", "they": "they got"}[notes.he]
        text += f", {got} {join_phrases(carried)}"
    text += f" and {notes.shoes}{rng.choice(('', ' i think', ' it looks like'))}" if notes.shoes else ""
    return text + (f", looks like {notes.he} {_is(notes)} {notes.action}" if notes.action else "")


def _learner(notes: Notes, rng: KeyedRng) -> str:
    """A learner of English whose first language has neither articles nor verb endings."""
    text = f"The {_who(notes)} wear {notes.upper}"
    text += f" and {notes.lower}" if notes.lower else ""
    text += f", inside is {notes.inner}" if notes.inner else ""
    text += (
        f". {notes.he.capitalize()} have {join_phrases([re.sub('^an? ', '', look) for look in notes.looks()])}"
        if notes.looks()
        else ""
    )
    text += f". The shoes is {notes.shoes}" if notes.shoes else ""
    text += f", on head is {notes.hat}" if notes.hat else ""
    text += f", on neck is {notes.scarf}" if notes.scarf else ""
    text += f". {notes.he.capitalize()} take one {notes.bag} {notes.bag_place or ''}".rstrip() if notes.bag else ""
    return (
        text + (f". {notes.he.capitalize()} is {notes.action}" if notes.action else "") + rng.choice((".", ".", " ."))
    )


def _clothes_first(notes: Notes, rng: KeyedRng) -> str:
    worn = notes.worn() + ([notes.shoes] if notes.shoes else []) + notes.extras()
    text = f"{rng.choice(('Wearing', 'Dressed in', 'Clad in'))} {join_phrases(worn)}, {rng.choice(('this', 'the'))} {_who(notes)}"
    text += f" with {join_phrases(notes.looks())}" if notes.looks() else ""
    text += f" is {notes.action}" if notes.action else " was caught on camera"
    text += f" while carrying {_bag(notes)}." if notes.bag else "."
    return text + (f" There is {with_article(notes.inner)} under the outer layer." if notes.inner else "")


STYLES: tuple[Callable[[Notes, KeyedRng], str], ...] = (
    _terse,
    _sentences,
    _narrative,
    _repetitive,
    _pedantic,
    _casual,
    _learner,
    _clothes_first,
)


def _misspell(text: str, rng: KeyedRng) -> tuple[str, list[str]]:
    """The text with one misspelt word, and the errors: none where no word could be misspelt."""
    words = text.split(" ")
    known = [i for i, word in enumerate(words) if word in MISSPELLINGS]
    if known and rng.chance(0.6):
        i = rng.choice(known)
        error = f"misspelling:{words[i]}"
        words[i] = rng.choice(MISSPELLINGS[words[i]])
        return " ".join(words), [error]
    plain = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not plain:
        return text, []
    i = rng.choice(plain)
    at = rng.integer(1, len(words[i]) - 3)
    error = f"typo:{words[i]}"
    words[i] = words[i][:at] + words[i][at + 1] + words[i][at] + words[i][at + 2 :]
    return " ".join(words), [error]


def _write_caption(
    rng: KeyedRng, identity: Identity, outfit: Outfit, pose: Pose, style: int, annotator: int
) -> tuple[Caption, Notes]:
    min_words = MIN_WORDS if rng.chance(0.06) else USUAL_MIN_WORDS
    drafts: list[tuple[int, int, str, Notes]] = []  # words too few or too many, order, text, notes
    for effort in (0, 1, 2, 2, 0, 0):
        notes = Annotator(rng, identity, outfit, pose, effort).take_notes()
        draft = STYLES[style](notes, rng)
        count = len(draft.split())
        drafts.append((max(min_words - count, count - MAX_WORDS, 0), len(drafts), draft, notes))
        if drafts[-1][0] == 0:
            break
    # No two have the same order, so no notes are compared.
    _, _, text, notes = min(drafts)
    errors = notes.errors
    if len(text.split()) < MIN_WORDS:
        text = f"{text.rstrip('. ')}, seen by a street camera."
    if rng.chance(_TYPO_RATES[annotator % ANNOTATORS_PER_STYLE]):
        text, typos = _misspell(text, rng)
        errors = errors + typos
    return Caption(text, style, annotator, errors), notes


def write_captions(rng: KeyedRng, identity: Identity, outfit: Outfit, pose: Pose) -> list[Caption]:
    """Two captions of one image by two annotators with different styles."""
    return [caption for caption, _ in write_with_notes(rng, identity, outfit, pose)]


def write_with_notes(rng: KeyedRng, identity: Identity, outfit: Outfit, pose: Pose) -> list[tuple[Caption, Notes]]:
    """`write_captions`, each caption with the notes that it was written from."""
    captions = []
    for style in rng.permutation(range(len(STYLES)))[:2]:
        annotator = style * ANNOTATORS_PER_STYLE + rng.integer(0, ANNOTATORS_PER_STYLE - 1)
        captions.append(_write_caption(rng, identity, outfit, pose, style, annotator))
    return captions


def tokenize_caption(caption: str) -> list[str]:
    """Lower-case words without punctuation, as in the `processed_tokens` of CUHK-PEDES."""
    return re.sub(r"[^a-z0-9\s]", "", caption.lower()).split()
