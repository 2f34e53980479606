"""One session of a generation: a pilot of a few images, an estimate of the cost of the rest, and then the rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from training.describe.generation import DescriptionGenerator, GenerationTask, ImageItem, StatusCounts
from training.describe.llm.answer_store import AnswerStore, DescriptionStore
from training.describe.llm.client import Client, Service
from training.describe.llm.limits import BudgetExceededError, StopSignal, UsageMeter
from training.describe.llm.providers import OpenAIProvider, Provider
from training.describe.progress import ProgressReporter, print_summary

# Items of the pilot, whose answers predict the cost of the rest.
PILOT_SIZE = 5

T = TypeVar("T")


@dataclass(frozen=True)
class GenerationResult:
    """Outcome of a generation."""

    descriptions: Path
    # Records by status, earlier sessions included, and images without a record.
    statuses: dict[str, int]
    remaining: int
    # Reason of an end before the last image; "" for none.
    stop_reason: str


@dataclass(frozen=True)
class ServerModel:
    """A model on a server, with the API key."""

    service: Service
    key: str
    model: str


@dataclass(frozen=True)
class GenerationSession:
    """Images, stores, and what they cost."""

    task: GenerationTask
    items: list[ImageItem]
    # Images of this session at most; 0: all.
    limit: int
    answers: AnswerStore
    descriptions: DescriptionStore
    # Counts the answers of earlier sessions too.
    meter: UsageMeter
    console: Console

    async def run(self, provider: Provider | ServerModel, confirm_spending: Callable[[str], bool]) -> GenerationResult:
        """Generates the missing texts. `confirm_spending`: see `run_with_pilot`.

        Raises StoppedError when the server refuses or fails for good; an exhausted budget ends the session quietly.
        """
        counts = self._count_records()
        todo = [item for item in self.items if item.file_path not in self.descriptions.file_paths][: self.limit or None]
        meter, stop_signal = self.meter, StopSignal()
        calls_per_image = max(2.0, len(self.answers) / max(1, counts.statuses.total()))
        pilot_size = 0 if self.answers.with_usage else PILOT_SIZE
        with ProgressReporter(len(todo), meter, counts, self.console) as reporter:

            async def work(provider: Provider, items: Sequence[ImageItem]) -> None:
                await DescriptionGenerator(
                    self.task, provider, self.answers, self.descriptions, meter, stop_signal, reporter.record
                ).run(items)

            await run_with_pilot(
                provider, todo, pilot_size, work, calls_per_image, confirm_spending, meter, stop_signal, reporter
            )
        error = stop_signal.error
        if error is not None and not isinstance(error, BudgetExceededError):
            raise error
        remaining = len(self.items) - len(self.descriptions.file_paths)
        print_summary(counts, meter, remaining, self.console)
        return GenerationResult(self.descriptions.lines.path, dict(counts.statuses), remaining, str(error or ""))

    def _count_records(self) -> StatusCounts:
        """Counts the records of earlier sessions, and adds their good texts to the search for near-duplicates."""
        counts, near_duplicates = StatusCounts(), self.task.checker.near_duplicates
        people = {item.file_path: item.person for item in self.items}
        for _, row in self.descriptions.lines.rows():
            counts.add(row)
            if near_duplicates is not None and row["status"] == "ok":
                person = people.get(row["file_path"])
                near_duplicates.add(row["file_path"], f"{row['identity']} {row['clothing']}", person)
        return counts


async def run_with_pilot(
    provider: Provider | ServerModel,
    items: Sequence[T],
    pilot_size: int,
    work: Callable[[Provider, Sequence[T]], Awaitable[None]],
    calls_per_item: float,
    confirm_spending: Callable[[str], bool],
    meter: UsageMeter,
    stop_signal: StopSignal,
    reporter: ProgressReporter,
) -> None:
    """Processes the items by `work`; on a server first a pilot, after which `confirm_spending` is asked about the rest.

    confirm_spending: called with an estimate of calls, tokens, cost and time; False stops. A local provider costs nothing and
    is not asked about.
    """
    if not isinstance(provider, ServerModel):
        return await work(provider, items)
    async with Client(provider.service, provider.key, meter, stop_signal) as client:
        server = OpenAIProvider(client, provider.model)
        await work(server, items[:pilot_size])
        rest = items[pilot_size:]
        if rest and stop_signal.error is None:
            question = estimate(meter, provider.service, len(rest), calls_per_item, reporter.noun)
            with reporter.paused():
                accepted = confirm_spending(question)
            if not accepted:
                stop_signal.stop(BudgetExceededError("stopped at your request"))
        await work(server, rest)


def estimate(meter: UsageMeter, service: Service, items: int, calls_per_item: float, noun: str = "images") -> str:
    """Estimate for so many items, from the answers so far: calls, tokens, cost and time."""
    calls = items * calls_per_item
    seconds = [calls * meter.seconds / max(1, meter.answers) / service.concurrency]
    parts = [f"{items} {noun} in about {calls:.0f} calls"]
    tokens = meter.tokens_per_call
    if tokens is None:
        parts.append("of unknown size, since the server reports no token usage")
    else:
        prompt, completion = calls * tokens[0], calls * tokens[1]
        parts.append(f"{prompt / 1e6:.2f} million input and {completion / 1e6:.2f} million output tokens")
        priced = meter.budget.price_in or meter.budget.price_out
        cost = meter.budget.cost(prompt, completion)
        parts.append(f"a cost of {cost:.2f}" if priced else "no price given (price_in, price_out)")
        if service.tokens_per_minute:
            seconds.append((prompt + completion) / service.tokens_per_minute * 60)
    if service.requests_per_minute:
        seconds.append(calls / service.requests_per_minute * 60)
    return f"{', '.join(parts)}, {_duration(max(seconds))}."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
