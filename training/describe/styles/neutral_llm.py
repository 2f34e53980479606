"""Neutral captions by a language model (paper 3.3, "generalise and substitute entity attributes").

The model is asked for the same neutral words as neutral_rules.py uses, whose word lists check its answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from training.describe.llm.answer_store import answer_key
from training.describe.llm.client import RequestFailedError
from training.describe.llm.executor import CachedProvider, Sampling, extract_text, run_concurrently
from training.describe.llm.limits import StopSignal
from training.describe.styles.neutral_rules import find_content, neutralise
from training.describe.text.patterns import find_refusal
from training.describe.text.prompts import Prompt

KIND = "caption"
# Accepted length of a neutral caption: from a third to one and a half times the words of the caption, plus or minus a few.
MIN_LENGTH_RATIO, MAX_LENGTH_RATIO, LENGTH_SLACK = 1 / 3, 3 / 2, 3
# Largest accepted share of the phrases for people, things and colours that a neutral caption still contains.
MAX_CONTENT_SHARE = 0.25
# Every word of the prompt is part of its hash, and so of the keys of stored answers: an edit makes all of them paid again.
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
class NeutralResult:
    """Outcome of a set of captions, each a mapping from the caption."""

    # To its neutral form by the model.
    texts: dict[str, str]
    # To the reason why the last of the allowed answers failed the checks.
    rejected: dict[str, str]
    # To the reason why there was no answer.
    failed: dict[str, str]


def build_prompt(caption: str) -> Prompt:
    """Builds the prompt for one caption, with examples answered by neutral_rules.py."""
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


def find_problem(caption: str, neutral: str) -> str:
    """Reason why a text is no neutral form of a caption, "" if it is one."""
    refusal = find_refusal(neutral)
    if refusal and not find_refusal(caption):
        return f"refusal: {refusal}"
    before, after = len(caption.split()), len(neutral.split())
    if not MIN_LENGTH_RATIO * before - LENGTH_SLACK <= after <= MAX_LENGTH_RATIO * before + LENGTH_SLACK:
        return f"length: {after} words for {before}"
    content = find_content(neutral)
    if len(content) > MAX_CONTENT_SHARE * len(find_content(caption)):
        return f"content: still names {', '.join(content[:3])}"
    return ""


def call_key(caption: str, model: str, params: dict[str, Any], attempt: int) -> str:
    """Key of the answer to an attempt, see answer_store.answer_key."""
    return answer_key(prompt=build_prompt(caption).hash, model=model, params=params, kind=KIND, attempt=attempt)


async def neutralise_by_model(
    captions: Sequence[str],
    provider: CachedProvider,
    model: str,
    params: dict[str, Any],
    sampling: Sampling,
    stop_signal: StopSignal,
    on_record: Callable[[dict[str, str]], None] = lambda row: None,
) -> NeutralResult:
    """Neutralises captions by a model, each until an answer passes `find_problem` or all attempts are used.

    params: JSON values that the answers depend on beside the model's name and the prompt. on_record: called with the status
    ("ok", "rejected", "failed") and the reason of each caption. After a stop, captions are missing from the result, and
    `stop_signal.error` gives the reason; see `run_concurrently`.
    """
    result = NeutralResult({}, {}, {})

    async def process(caption: str) -> None:
        prompt, problem = build_prompt(caption), ""
        for attempt in range(sampling.attempts):
            request = sampling.request(call_key(caption, model, params, attempt), prompt, attempt, None)
            try:
                text, problem = extract_text(await provider.answer(request), prompt)
            except RequestFailedError as error:
                result.failed[caption] = str(error)
                return on_record({"status": "failed", "reason": f"no answer: {error}"})
            problem = f"answer: {problem}" if problem else find_problem(caption, text)
            if not problem:
                result.texts[caption] = " ".join(text.split())
                return on_record({"status": "ok", "reason": ""})
        result.rejected[caption] = problem
        return on_record({"status": "rejected", "reason": problem})

    await run_concurrently(captions, process, provider.items_in_flight, stop_signal, [provider.store.lines])
    return result
