"""The captions of a clustering without their content: by word lists, or by a language model, whose answers are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console

from training.config.fields import Stage, Within
from training.describe.generation import Tally
from training.describe.llm.answer_store import Answers
from training.describe.llm.client import Client, Service, read_key
from training.describe.llm.executor import Asker, Sampling
from training.describe.llm.limits import Budget, Halt, Meter, Stopped
from training.describe.llm.providers import OpenAIProvider, Provider, TransformersProvider
from training.describe.progress import Reporter
from training.describe.session import PILOT, Online, estimate, pilot_first
from training.describe.styles.neutral_llm import Neutral, build_prompt, call_key, neutralise_by_model
from training.describe.styles.neutral_rules import neutralise

# What `Neutralised.by` says of the word lists.
LEXICON = {"by": "lexicon"}


@dataclass(frozen=True)
class Neutraliser(Stage):
    """What takes the content out of captions."""

    # Word lists (offline); an OpenAI-compatible server; or a local vision-language model of transformers.
    neutraliser: Literal["lexicon", "openai", "transformers"] = "lexicon"
    # Name at the server, or name or folder for transformers.
    model: str = ""
    # Times that a caption is asked for until it passes the checks; after that the word lists do it.
    attempts: Annotated[int, Within(1, 20)] = 2
    # Longest answer in tokens.
    max_tokens: Annotated[int, Within(16)] = 300
    # Do not ask before spending.
    yes: bool = False
    # Of transformers: asks at a time.
    batch: Annotated[int, Within(1, 1024)] = 1
    # Of transformers: torch device.
    device: str = "cpu"
    # The server, and how fast it is asked.
    service: Service = field(default_factory=Service)
    # Prices and limits.
    budget: Budget = field(default_factory=Budget)

    def check(self) -> None:
        given = self.neutraliser != "lexicon"
        self.require(bool(self.model) == given, "model", f"{'given' if given else 'empty'} for {self.neutraliser}")

    @property
    def sampling(self) -> Sampling:
        """The likeliest words first, others where those were no good."""
        return Sampling(0.0, 0.3, 0, self.max_tokens, self.attempts)

    @property
    def params(self) -> dict[str, Any]:
        """What decides the answers, the model and the caption aside."""
        return {"provider": self.neutraliser} | asdict(self.sampling)


@dataclass(frozen=True)
class Neutralised:
    """Captions without their content."""

    texts: list[str]
    # What took it out, in the words of styles.json.
    by: dict[str, Any]
    # Captions (counted once if equal) that the model did not make neutral and the word lists did.
    replaced: int


def neutral_captions(
    captions: Sequence[str],
    options: Neutraliser,
    folder: Path,
    environment: Mapping[str, str],
    console: Console,
    leave: Callable[[str], bool],
) -> Neutralised:
    """The captions without their content. What a model answers is kept in `folder` and not asked for again.

    `leave`: asked for before the rest is paid for, unless options.yes. Raises RuntimeError (Stopped) when the server fails
    for good, the budget is spent, or captions got no answer: the same command goes on with what is left.
    """
    if options.neutraliser == "lexicon":
        return Neutralised(neutralise(captions), LEXICON, 0)
    # Equal captions are asked for once, in the order of the data.
    distinct = list(dict.fromkeys(captions))
    provider: Provider | Online
    if options.neutraliser == "openai":
        provider = Online(options.service, read_key(options.service, environment), options.model)
    else:
        provider = TransformersProvider(options.model, options.batch, options.device)
    folder.mkdir(parents=True, exist_ok=True)
    answers = Answers(folder / "answers.jsonl")
    try:
        agreed = (lambda told: True) if options.yes else leave
        found = asyncio.run(_ask(distinct, options, provider, answers, console, agreed))
    finally:
        answers.lines.close()
    rest = dict(zip(found.rejected, neutralise(list(found.rejected)), strict=True))
    every = found.texts | rest
    about = {"by": options.neutraliser, "model": options.model, "params": options.params}
    about["prompt"] = build_prompt("").hash
    return Neutralised([every[caption] for caption in captions], about, len(rest))


async def _ask(
    distinct: Sequence[str],
    options: Neutraliser,
    provider: Provider | Online,
    answers: Answers,
    console: Console,
    leave: Callable[[str], bool],
) -> Neutral:
    known = answers.counted, answers.prompt_tokens, answers.completion_tokens, answers.seconds
    meter, halt, tally = Meter(options.budget, len(answers), *known), Halt(), Tally()
    found = Neutral({}, {}, {})
    # Those whose first answer is stored cost little or nothing, and tell at once.
    stored = {text for text in distinct if answers.get(call_key(text, options.model, options.params, 0)) is not None}
    todo = sorted(distinct, key=lambda text: text not in stored)
    with Reporter(len(todo), meter, tally, console, "captions") as reporter:

        async def work(asked: Provider, some: Sequence[str]) -> None:
            part = await neutralise_by_model(
                some,
                Asker(asked, answers, meter),
                options.model,
                options.params,
                options.sampling,
                halt,
                reporter.recorded,
            )
            for name in ("texts", "rejected", "failed"):
                getattr(found, name).update(getattr(part, name))

        if isinstance(provider, Online):
            async with Client(provider.service, provider.key, meter, halt) as client:
                cost = partial(estimate, meter, provider.service, calls_per_item=1.0, what="captions")
                run = partial(work, OpenAIProvider(client, provider.model))
                await pilot_first(todo, len(stored) if stored else PILOT, run, cost, leave, halt, reporter)
        else:
            await work(provider, todo)
    _check_whole(distinct, found, halt)
    told = ", ".join(f"{count} {reason}" for reason, count in tally.reasons.most_common())
    console.print(
        f"{len(found.texts)} different captions made neutral by {options.model}, {len(found.rejected)} by the word lists"
        + (f" ({told})" if told else ""),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return found


def _check_whole(distinct: Sequence[str], found: Neutral, halt: Halt) -> None:
    """Raises Stopped where captions have no answer."""
    left = len(distinct) - len(found.texts) - len(found.rejected)
    if not left:
        return
    goes_on = f"{left} of {len(distinct)} captions are left; the same command goes on with them"
    if halt.error is not None:
        raise type(halt.error)(f"{halt.error}; {goes_on}") from halt.error
    raise Stopped(f"no answer for a caption: {next(iter(found.failed.values()))}; {goes_on}")
