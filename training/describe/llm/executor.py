"""Asking a provider: answers stored before anything else is done with them, texts read from them, many items at a time.

An answer is stored under a key of all that it depends on, and looked up there before a provider is asked: whatever happens to
the process, nothing is paid for twice that has been stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from training.config.fields import Stage, Within
from training.describe.llm.answer_store import Answer, Answers, JsonLines
from training.describe.llm.limits import Halt, Meter, Stopped
from training.describe.llm.providers import Ask, Picture, Provider
from training.describe.text.prompts import Prompt, parse_answer

# Seconds between two fsyncs.
SYNC_EVERY = 1.0
# A rejected answer is kept for reading, but not whatever its length.
LONGEST_KEPT = 2000

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sampling(Stage):
    """How a model is asked, and how often."""

    # Of the first attempt; 0 takes the likeliest words.
    temperature: Annotated[float, Within(0, 2)] = 0.7
    # Added to the temperature with every further attempt, up to 2.
    temperature_step: Annotated[float, Within(0, 2)] = 0.15
    # Of the first attempt; one more with every further one.
    seed: Annotated[int, Within(0)] = 0
    # Longest answer in tokens.
    max_tokens: Annotated[int, Within(16)] = 300
    # Times that a text is asked for until it passes the checks.
    attempts: Annotated[int, Within(1, 20)] = 3

    def ask(
        self, key: str, prompt: Prompt, attempt: int, picture: Picture | None, file_path: str = "", style: int = 0
    ) -> Ask:
        """The call of an attempt, counted from 0."""
        temperature = round(min(2.0, self.temperature + attempt * self.temperature_step), 6)
        return Ask(key, file_path, style, prompt, picture, attempt, temperature, self.seed + attempt, self.max_tokens)


class Asker:
    """The answers of one provider to asks, each asked once. One object per event loop."""

    def __init__(self, provider: Provider, answers: Answers, meter: Meter) -> None:
        self.provider, self.answers, self.meter = provider, answers, meter
        self._running: dict[str, asyncio.Task[Answer]] = {}

    async def answer(self, ask: Ask) -> Answer:
        """The stored answer of the ask's key, or a new one. Raises what the provider raises."""
        answer = self.answers.get(ask.key)
        if answer is None and ask.key in self._running:
            # Two files of the same bytes ask the same.
            answer = await asyncio.shield(self._running[ask.key])
        if answer is None:
            self._running[ask.key] = asyncio.create_task(self._pay(ask))
            try:
                answer = await self._running[ask.key]
            finally:
                del self._running[ask.key]
        return answer

    async def _pay(self, ask: Ask) -> Answer:
        answer = await self.provider.answer(ask)
        self.answers.add(ask.key, answer, file_path=ask.file_path, kind=ask.prompt.kind, attempt=ask.attempt)
        self.meter.answered(answer.prompt_tokens, answer.completion_tokens, answer.seconds)
        return answer


def text_of(answer: Answer, prompt: Prompt) -> tuple[str, str]:
    """(the text, "") or (what was answered instead, why that is none)."""
    if answer.refusal:
        return answer.refusal[:LONGEST_KEPT], f"the model refuses: {answer.refusal[:200]}"
    try:
        return parse_answer(answer.text, prompt), ""
    except ValueError as error:
        cut = f" (finish_reason {answer.finish})" if answer.finish not in ("", "stop") else ""
        return answer.text[:LONGEST_KEPT], f"{error}{cut}"


async def work_through(
    items: Iterable[Item], one: Callable[[Item], Awaitable[None]], window: int, halt: Halt, stores: Sequence[JsonLines]
) -> None:
    """Does `one` for every item, `window` at a time, or for as many as go before something stops it; what did is in
    `halt.error` then, for the caller to raise. `stores` are brought to the disk meanwhile.

    Requests under way have been answered and their answers stored by the end; cancelling loses them. Raises what `one`
    raises but Stopped.
    """
    source = iter(items)
    workers = [asyncio.create_task(_work(source, one, halt)) for _ in range(window)]
    syncing = asyncio.create_task(_sync(stores, halt))
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in (*workers, syncing):
            worker.cancel()
        await asyncio.gather(*workers, syncing, return_exceptions=True)


async def _work(source: Iterable[Item], one: Callable[[Item], Awaitable[None]], halt: Halt) -> None:
    for item in source:
        if halt.error is None:
            try:
                await one(item)
            except Stopped as error:
                halt.stop(error)
        if halt.error is not None:
            return


async def _sync(stores: Sequence[JsonLines], halt: Halt) -> None:
    while True:
        await asyncio.sleep(SYNC_EVERY)
        for lines in stores:
            try:
                await asyncio.to_thread(lines.sync)
            except OSError as error:
                # Answers that would not last are not to be paid for.
                halt.stop(Stopped(f"{lines.path} cannot be brought to the disk: {error}"))
