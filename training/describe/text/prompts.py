"""The two prompts for an image (paper 3.3), for an identity and a clothing text, each in a given writing style.

A prompt lists the attributes of the schema, forbids those of the other text, and shows captions of the style as examples.
The answer is a JSON object with one text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.describe.text.patterns import find_refusal
from training.describe.text.schema import KINDS, Kind, Schema, load_schema

__all__ = ["Prompt", "build_prompt", "load_schema", "parse_answer"]
# Every word below is part of the prompts' hashes, and so of the keys of stored answers: an edit makes all of them paid again.

_TOPIC = {
    "identity": "the person: lasting traits of the body that stay when the clothes change",
    "clothing": "what the person wears and carries: everything that can change from one day to the next",
}
_FORBIDDEN = {
    "identity": "Say nothing about clothes, shoes, bags, headwear, jewellery or other things worn or carried.",
    "clothing": (
        "Say nothing about who wears it: neither sex nor age, body, skin, face or hair. "
        "Begin with the clothes, or write 'the person'; never 'he', 'she', 'his' or 'her'."
    ),
}
_SYSTEM = (
    "You describe single pictures of pedestrians for a search system. "
    "You write only what can be seen in the picture. You never guess a name, an origin, a feeling or an intention. "
    "You answer with one JSON object and nothing else."
)


@dataclass(frozen=True)
class Prompt:
    """The messages of a request, without the image if there is one."""

    # Kind of the requested text.
    kind: str
    system: str
    user: str
    # JSON schema of the answer: an object with one string under the name of the kind.
    json_schema: dict[str, Any]
    # 16 hexadecimal digits over all of the above, and so over everything that the prompt was built from.
    hash: str


def build_prompt(schema: Schema, kind: Kind, examples: Sequence[str], words: tuple[int, int]) -> Prompt:
    """Builds the prompt for one kind of text; equal arguments give equal prompts.

    examples: captions whose style is to be imitated; none: no style is requested. words: smallest and largest number of words
    of the text. Raises ValueError for an unknown kind, an empty range of words, and an empty example.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    least, most = words
    if not 1 <= least <= most:
        raise ValueError(f"words must be a range of at least 1 word, the lower number first, got {least} to {most}")
    if not all(example.strip() for example in examples):
        raise ValueError(f"examples must not be empty texts, got {list(examples)!r}")
    user = "\n\n".join(
        [
            f"Describe {_TOPIC[kind]}.",
            _attributes(schema, kind),
            _rules(schema, kind, least, most),
            *([_style(examples)] if examples else []),
            f'Answer with a JSON object of this form: {{"{kind}": "your text"}}',
        ]
    )
    field = {"type": "string", "description": f"{least} to {most} words about {_TOPIC[kind]}"}
    answer = {"type": "object", "properties": {kind: field}, "required": [kind], "additionalProperties": False}
    content = json.dumps([kind, _SYSTEM, user, answer], sort_keys=True)
    return Prompt(kind, _SYSTEM, user, answer, hashlib.sha256(content.encode()).hexdigest()[:16])


def _attributes(schema: Schema, kind: Kind) -> str:
    items = schema.attributes(kind)
    lines = [f"- {item.name}: {item.description}{' (always)' if item.required else ''}" for item in items]
    return "\n".join(["Attributes to describe, as far as they can be seen:", *lines])


def _rules(schema: Schema, kind: Kind, least: int, most: int) -> str:
    rules = [
        _FORBIDDEN[kind],
        "Do not guess: leave out what is hidden, cut off, or too small to see; where an attribute marked (always) cannot be "
        "seen, say so in a few words.",
        "State what you see plainly, without words such as 'appears to be', 'possibly' or 'seems'.",
        "Do not describe the background, the camera or the picture itself.",
        f"Write English, {least} to {most} words, one paragraph of plain text: no list, no headings, no markup.",
    ]
    if schema.left_out:
        names = ", ".join(f"{item.name} ({item.description})" for item in schema.left_out)
        rules.insert(
            1,
            f"Do not mention, directly or in passing: {names}. Where a word would tell it, write 'the person' or 'they'.",
        )
    return "\n".join(["Rules:", *(f"- {rule}" for rule in rules)])


def _style(examples: Sequence[str]) -> str:
    # As JSON strings: quotes and line breaks inside a caption cannot end the example.
    lines = [f"- {json.dumps(' '.join(example.split()), ensure_ascii=False)}" for example in examples]
    return "\n".join(
        [
            "Write in the style of these captions of other pictures: their order, sentence length, tone and punctuation. "
            "Take over the manner only; nothing that they say is true of this picture, and they may describe more than is "
            "asked for here:",
            *lines,
        ]
    )


def parse_answer(text: str, prompt: Prompt) -> str:
    """Parses a model's answer and returns its text, stripped.

    Ignores a code fence or words around the JSON object, and a block of reasoning before it. Raises ValueError with the
    reason: empty, refused, cut off, no JSON object, or no text under the name of the kind.
    """
    body = text.rpartition("</think>")[2].strip()
    if not body:
        raise ValueError("the answer is empty")
    start = body.find("{")
    if start < 0:
        refusal = find_refusal(body)
        if refusal:
            raise ValueError(f"the answer is a refusal: {refusal}")
        raise ValueError(f"the answer holds no JSON object: {_excerpt(body)}")
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(body, start)
    except (json.JSONDecodeError, RecursionError) as error:
        if not re.search(r"\}\s*(```)?\s*$", body):
            raise ValueError(f"the answer is cut off: ... {_excerpt(body[-60:])}") from error
        raise ValueError(f"the answer is not valid JSON: {error}: {_excerpt(body)}") from error
    text = value.get(prompt.kind)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the answer has no text under {prompt.kind!r}: {_excerpt(body)}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"the answer has a lone surrogate, half of a character: {ascii(text)[:120]}")
    return text.strip()


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")
