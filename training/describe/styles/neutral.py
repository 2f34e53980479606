"""Neutral captions of a data set: by word lists, or by a language model, whose answers are stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from training.describe.generation import StatusCounts
from training.describe.llm.answer_store import AnswerStore
from training.describe.llm.client import read_api_key
from training.describe.llm.executor import CachedProvider
from training.describe.llm.limits import StoppedError, StopSignal, UsageMeter
from training.describe.llm.providers import Provider, TransformersProvider
from training.describe.progress import ProgressReporter
from training.describe.session import PILOT_SIZE, ServerModel, run_with_pilot
from training.describe.styles.neutral_llm import NeutralResult, build_prompt, call_key, neutralise_by_model
from training.describe.styles.neutral_rules import neutralise
from training.describe.styles.style_options import NeutraliserOptions

# `NeutralCaptions.by` of the word lists.
LEXICON = {"by": "lexicon"}


@dataclass(frozen=True)
class NeutralCaptions:
    """Captions without their content."""

    texts: list[str]
    # Method, model and parameters, as in styles.json.
    by: dict[str, Any]
    # Distinct captions that the model failed to neutralise, so that the word lists were used.
    fallbacks: int


def neutral_captions(
    captions: Sequence[str],
    options: NeutraliserOptions,
    folder: Path,
    environment: Mapping[str, str],
    console: Console,
    confirm_spending: Callable[[str], bool],
) -> NeutralCaptions:
    """Neutralises captions. A model's answers are stored in `folder` and not requested again.

    confirm_spending: asked after a pilot about the cost of the rest, unless options.yes. Raises RuntimeError (StoppedError)
    when the server fails for good, the budget is spent, or captions got no answer: the same command then continues.
    """
    if options.neutraliser == "lexicon":
        return NeutralCaptions(neutralise(captions), LEXICON, 0)
    # Equal captions are requested once, in the order of the data.
    distinct = list(dict.fromkeys(captions))
    provider: Provider | ServerModel
    if options.neutraliser == "openai":
        provider = ServerModel(options.service, read_api_key(options.service, environment), options.model)
    else:
        provider = TransformersProvider(options.model, options.batch, options.device)
    folder.mkdir(parents=True, exist_ok=True)
    answers = AnswerStore(folder / "answers.jsonl")
    try:
        confirm = (lambda question: True) if options.yes else confirm_spending
        result = asyncio.run(_neutralise(distinct, options, provider, answers, console, confirm))
    finally:
        answers.lines.close()
    fallbacks = dict(zip(result.rejected, neutralise(list(result.rejected)), strict=True))
    texts = result.texts | fallbacks
    by = {"by": options.neutraliser, "model": options.model, "params": options.params}
    by["prompt"] = build_prompt("").hash
    return NeutralCaptions([texts[caption] for caption in captions], by, len(fallbacks))


async def _neutralise(
    distinct: Sequence[str],
    options: NeutraliserOptions,
    provider: Provider | ServerModel,
    answers: AnswerStore,
    console: Console,
    confirm_spending: Callable[[str], bool],
) -> NeutralResult:
    meter, stop_signal, counts = UsageMeter(options.budget, answers), StopSignal(), StatusCounts()
    result = NeutralResult({}, {}, {})
    # Captions whose first answer is stored cost little or nothing, and predict the cost of the rest at once.
    stored = {text for text in distinct if answers.get(call_key(text, options.model, options.params, 0)) is not None}
    todo = sorted(distinct, key=lambda text: text not in stored)
    with ProgressReporter(len(todo), meter, counts, console, "captions") as reporter:

        async def work(provider: Provider, captions: Sequence[str]) -> None:
            part = await neutralise_by_model(
                captions,
                CachedProvider(provider, answers, meter),
                options.model,
                options.params,
                options.sampling,
                stop_signal,
                reporter.record,
            )
            for name in ("texts", "rejected", "failed"):
                getattr(result, name).update(getattr(part, name))

        pilot_size = len(stored) if stored else PILOT_SIZE
        await run_with_pilot(provider, todo, pilot_size, work, 1.0, confirm_spending, meter, stop_signal, reporter)
    _check_complete(distinct, result, stop_signal)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.reasons.most_common())
    console.print(
        f"{len(result.texts)} distinct captions neutralised by {options.model}, {len(result.rejected)} by the word lists"
        + (f" ({reasons})" if reasons else ""),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return result


def _check_complete(distinct: Sequence[str], result: NeutralResult, stop_signal: StopSignal) -> None:
    """Raises StoppedError where captions have no answer."""
    remaining = len(distinct) - len(result.texts) - len(result.rejected)
    if not remaining:
        return
    remedy = f"{remaining} of {len(distinct)} captions remain; run the same command to continue"
    if stop_signal.error is not None:
        raise type(stop_signal.error)(f"{stop_signal.error}; {remedy}") from stop_signal.error
    raise StoppedError(f"no answer for a caption: {next(iter(result.failed.values()))}; {remedy}")
