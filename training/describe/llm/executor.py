"""Execution of requests: answers stored before anything else uses them, texts extracted from answers, many items at a time.

An answer is stored under a key of everything that it depends on, and looked up there before a provider is asked: whatever
happens to the process, a stored answer is never paid for twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from training.config.fields import Stage, Within
from training.describe.llm.answer_store import Answer, AnswerStore, JsonLines
from training.describe.llm.limits import StoppedError, StopSignal, UsageMeter
from training.describe.llm.providers import EncodedImage, Provider, Request
from training.describe.text.prompts import Prompt, parse_answer

# Seconds between two fsyncs.
SYNC_INTERVAL = 1.0
# A rejected answer is recorded for reading, up to this many characters.
MAX_RECORDED_CHARACTERS = 2000

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sampling(Stage):
    """Sampling parameters and number of attempts."""

    # Temperature of the first attempt; 0: greedy decoding.
    temperature: Annotated[float, Within(0, 2)] = 0.7
    # Added to the temperature with every further attempt, up to 2.
    temperature_step: Annotated[float, Within(0, 2)] = 0.15
    # Seed of the first attempt; incremented with every further one.
    seed: Annotated[int, Within(0)] = 0
    # Longest answer in tokens.
    max_tokens: Annotated[int, Within(16)] = 300
    # Requests for a text until one passes the checks.
    attempts: Annotated[int, Within(1, 20)] = 3

    def request(
        self, key: str, prompt: Prompt, attempt: int, image: EncodedImage | None, file_path: str = "", style: int = 0
    ) -> Request:
        """The request of an attempt, counted from 0."""
        temperature = round(min(2.0, self.temperature + attempt * self.temperature_step), 6)
        return Request(key, file_path, style, prompt, image, attempt, temperature, self.seed + attempt, self.max_tokens)


class CachedProvider:
    """Answers requests from the store; asks the provider once for each missing one. One object per event loop."""

    def __init__(self, provider: Provider, store: AnswerStore, meter: UsageMeter) -> None:
        self.provider, self.store, self.meter = provider, store, meter
        self.items_in_flight = provider.items_in_flight
        self._pending: dict[str, asyncio.Task[Answer]] = {}

    async def answer(self, request: Request) -> Answer:
        """Answers one request. Raises what the provider raises, and OSError where the answer cannot be stored."""
        answer = self.store.get(request.key)
        if answer is None and request.key in self._pending:
            # Two files of the same bytes make the same request.
            answer = await asyncio.shield(self._pending[request.key])
        if answer is None:
            self._pending[request.key] = asyncio.create_task(self._fetch(request))
            try:
                answer = await self._pending[request.key]
            finally:
                del self._pending[request.key]
        return answer

    async def _fetch(self, request: Request) -> Answer:
        answer = await self.provider.answer(request)
        self.store.add(
            request.key, answer, file_path=request.file_path, kind=request.prompt.kind, attempt=request.attempt
        )
        self.meter.count(answer)
        return answer


def extract_text(answer: Answer, prompt: Prompt) -> tuple[str, str]:
    """Returns (the text, "") or, for an unusable answer, (its content, the reason)."""
    if answer.refusal:
        return answer.refusal[:MAX_RECORDED_CHARACTERS], f"the model refuses: {answer.refusal[:200]}"
    try:
        return parse_answer(answer.text, prompt), ""
    except ValueError as error:
        finish = f" (finish_reason {answer.finish})" if answer.finish not in ("", "stop") else ""
        return answer.text[:MAX_RECORDED_CHARACTERS], f"{error}{finish}"


async def run_concurrently(
    items: Iterable[Item],
    process: Callable[[Item], Awaitable[None]],
    items_in_flight: int,
    stop_signal: StopSignal,
    files: Sequence[JsonLines],
) -> None:
    """Processes the items, `items_in_flight` at a time, until all are done or the stop signal is set; syncs `files` meanwhile.

    The caller raises `stop_signal.error`. Requests in flight at a stop still end and their answers are stored; cancelling
    loses them. Raises any error of `process` but StoppedError.
    """
    source = iter(items)
    workers = [asyncio.create_task(_work(source, process, stop_signal)) for _ in range(items_in_flight)]
    syncing = asyncio.create_task(_sync_periodically(files, stop_signal))
    try:
        await asyncio.gather(*workers)
    finally:
        for task in (*workers, syncing):
            task.cancel()
        await asyncio.gather(*workers, syncing, return_exceptions=True)


async def _work(source: Iterable[Item], process: Callable[[Item], Awaitable[None]], stop_signal: StopSignal) -> None:
    for item in source:
        if stop_signal.error is None:
            try:
                await process(item)
            except StoppedError as error:
                stop_signal.stop(error)
        if stop_signal.error is not None:
            return


async def _sync_periodically(files: Sequence[JsonLines], stop_signal: StopSignal) -> None:
    while True:
        await asyncio.sleep(SYNC_INTERVAL)
        for lines in files:
            try:
                await asyncio.to_thread(lines.sync)
            except OSError as error:
                # Answers that cannot be kept must not be paid for.
                stop_signal.stop(StoppedError(f"{lines.path} cannot be synced to disk: {error}"))
