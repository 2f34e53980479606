"""Captions without their content, by a language model (paper 3.3, "generalise and substitute entity attributes").

The model is asked for the same neutral words as lexicon.py writes; what it answers is checked with that lexicon.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from training.describe.llm.answer_store import answer_key
from training.describe.llm.client import CallFailed
from training.describe.llm.executor import Asker, Sampling, text_of, work_through
from training.describe.llm.limits import Halt
from training.describe.styles.neutral_rules import attributes, neutralise
from training.describe.text.patterns import refusal
from training.describe.text.prompts import Prompt

KIND = "caption"
# A neutral caption has from a third to one and a half times the words of the caption, and a few more or fewer.
SHORTEST, LONGEST, SLACK = 1 / 3, 3 / 2, 3
# Of the phrases that name people, things and colours, this share may be left.
LEFT = 0.25
_SYSTEM = (
    "You take the content out of captions and leave their style. You answer with one JSON object and nothing else."
)
_RULES = """Rewrite this caption of a picture of a pedestrian: it is not to tell any more what is seen, only how somebody writes.
Rules:
- Whoever is described, with all words for age, sex, build, size and skin, becomes 'person'.
- Every piece of clothing, shoe, bag, hat, accessory, hairstyle, face or object becomes 'item', together with all words for its
  colour, pattern, material, length and kind.
- What somebody does becomes 'moving'. The pronouns become 'he' and 'his'.
- Everything else stays as it is: the order, articles, verbs of wearing and having, linking words, punctuation, capital letters,
  abbreviations, and mistakes. Correct nothing, join nothing, add nothing."""
_EXAMPLES = (
    "A young woman with long black hair is wearing a red t-shirt, blue jeans and white sneakers.",
    "male, slim; grey hoody. carries a backpack",
)


@dataclass
class Neutral:
    """What has become of captions."""

    # Captions that the model made neutral, by themselves.
    texts: dict[str, str]
    # Captions whose answers failed the checks as often as allowed, and why the last one did.
    rejected: dict[str, str]
    # Captions without an answer, and why.
    failed: dict[str, str]


def build_prompt(caption: str) -> Prompt:
    """What is asked of a model for one caption, with examples that lexicon.py answers."""
    # As a JSON string: quotes and line breaks inside a caption cannot end it.
    user = f"{_RULES}\nExamples:\n{_examples()}\nThe caption:\n{json.dumps(caption, ensure_ascii=False)}"
    field = {"type": "string", "description": "the rewritten caption"}
    answer = {"type": "object", "properties": {KIND: field}, "required": [KIND], "additionalProperties": False}
    content = json.dumps([_SYSTEM, user, answer], sort_keys=True)
    return Prompt(KIND, _SYSTEM, user, answer, hashlib.sha256(content.encode()).hexdigest()[:16])


@cache
def _examples() -> str:
    pairs = zip(_EXAMPLES, neutralise(_EXAMPLES), strict=True)
    return "\n".join(f"{json.dumps(example)} becomes {json.dumps({KIND: neutral})}" for example, neutral in pairs)


def problem_of(caption: str, neutral: str) -> str:
    """Why a text is no neutral form of a caption, "" if it is one."""
    refused = refusal(neutral)
    if refused and not refusal(caption):
        return f"refusal: {refused}"
    had, has = len(caption.split()), len(neutral.split())
    if not SHORTEST * had - SLACK <= has <= LONGEST * had + SLACK:
        return f"length: {has} words for {had}"
    left = attributes(neutral)
    if len(left) > LEFT * len(attributes(caption)):
        return f"content: still names {', '.join(left[:3])}"
    return ""


def call_key(caption: str, model: str, params: dict[str, Any], attempt: int) -> str:
    """Names the call of an attempt: everything that its answer depends on."""
    return answer_key(prompt=build_prompt(caption).hash, model=model, params=params, kind=KIND, attempt=attempt)


async def neutralise_by_model(
    captions: Sequence[str],
    asker: Asker,
    model: str,
    params: dict[str, Any],
    sampling: Sampling,
    halt: Halt,
    done: Callable[[dict[str, str]], None] = lambda row: None,
) -> Neutral:
    """Asks for every caption until the answer passes `problem_of` or all attempts are spent.

    params: JSON values that decide what a model answers beside its name and the prompt. done: called with the status ("ok",
    "rejected", "failed") and the reason of each caption. Where something stops it, captions are missing from the result,
    and `halt.error` says what; see `work_through`.
    """
    found = Neutral({}, {}, {})

    async def one(caption: str) -> None:
        prompt, problem = build_prompt(caption), ""
        for attempt in range(sampling.attempts):
            ask = sampling.ask(call_key(caption, model, params, attempt), prompt, attempt, None)
            try:
                text, problem = text_of(await asker.answer(ask), prompt)
            except CallFailed as error:
                found.failed[caption] = str(error)
                return done({"status": "failed", "reason": f"no answer: {error}"})
            problem = f"answer: {problem}" if problem else problem_of(caption, text)
            if not problem:
                found.texts[caption] = " ".join(text.split())
                return done({"status": "ok", "reason": ""})
        found.rejected[caption] = problem
        return done({"status": "rejected", "reason": problem})

    await work_through(captions, one, asker.provider.window, halt, [asker.answers.lines])
    return found
