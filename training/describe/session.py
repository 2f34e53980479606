"""One run of a generation: what is left to do, a few images first, what the rest will cost, and then the rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from training.describe.generation import Generator, Item, Tally, Task
from training.describe.llm.answer_store import Answers, Records
from training.describe.llm.client import Client, Service
from training.describe.llm.limits import Budget, BudgetSpent, Halt, Meter
from training.describe.llm.providers import OpenAIProvider, Provider
from training.describe.progress import Reporter, show_summary

# Items whose answers tell what the rest will cost.
PILOT = 5

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What a generation has come to."""

    descriptions: Path
    # Records by status, earlier runs included, and images that have none yet.
    statuses: dict[str, int]
    left: int
    # Why it ended before the last image; "" if it did not.
    stopped: str


@dataclass(frozen=True)
class Online:
    """A server, and what it is asked with."""

    service: Service
    key: str
    model: str


@dataclass(frozen=True)
class Run:
    """The images, the stores, and what may be spent."""

    task: Task
    items: list[Item]
    limit: int
    answers: Answers
    records: Records
    budget: Budget
    console: Console

    async def go(self, provider: Provider | Online, leave: Callable[[str], bool]) -> Result:
        """Generates what is missing. `leave`: asked for before the rest is paid for; a local provider costs nothing.

        Raises Stopped when the server refuses or fails for good.
        """
        tally = self._tally()
        todo = [item for item in self.items if item.file_path not in self.records.done][: self.limit or None]
        stored = self.answers
        known = stored.counted, stored.prompt_tokens, stored.completion_tokens, stored.seconds
        meter, halt = Meter(self.budget, len(stored), *known), Halt()
        with Reporter(len(todo), meter, tally, self.console) as reporter:
            if isinstance(provider, Online):
                async with Client(provider.service, provider.key, meter, halt) as client:
                    work = self._generator(OpenAIProvider(client, provider.model), meter, halt, reporter)
                    cost = partial(estimate, meter, provider.service, calls_per_item=self._calls_per_image(tally))
                    await pilot_first(todo, 0 if stored.counted else PILOT, work.run, cost, leave, halt, reporter)
            else:
                await self._generator(provider, meter, halt, reporter).run(todo)
        if halt.error is not None and not isinstance(halt.error, BudgetSpent):
            raise halt.error
        left = len(self.items) - len(self.records.done)
        show_summary(tally, meter, left, self.console)
        return Result(self.records.lines.path, dict(tally.statuses), left, str(halt.error or ""))

    def _generator(self, provider: Provider, meter: Meter, halt: Halt, reporter: Reporter) -> Generator:
        return Generator(self.task, provider, self.answers, self.records, meter, halt, reporter.recorded)

    def _tally(self) -> Tally:
        """What earlier runs recorded; their good texts are known to the search for near-duplicates afterwards."""
        tally, near = Tally(), self.task.judge.near
        people = {item.file_path: item.person for item in self.items}
        for _, row in self.records.lines.rows():
            tally.count(row)
            if near is not None and row["status"] == "ok":
                near.add(row["file_path"], f"{row['identity']} {row['clothing']}", people.get(row["file_path"]))
        return tally

    def _calls_per_image(self, tally: Tally) -> float:
        return max(2.0, len(self.answers) / max(1, tally.statuses.total()))


async def pilot_first(
    todo: Sequence[T],
    first: int,
    work: Callable[[Sequence[T]], Awaitable[None]],
    cost: Callable[[int], str],
    leave: Callable[[str], bool],
    halt: Halt,
    reporter: Reporter,
) -> None:
    """Works through the first items, asks `leave` whether the rest may cost what `cost` says for so many, and goes on."""
    await work(todo[:first])
    rest = todo[first:]
    if rest and halt.error is None:
        with reporter.paused():
            goes_on = leave(cost(len(rest)))
        if not goes_on:
            halt.stop(BudgetSpent("stopped as you said"))
    await work(rest)


def estimate(meter: Meter, service: Service, items: int, calls_per_item: float, what: str = "images") -> str:
    """What so many items will take, from the answers so far: calls, tokens, money and time."""
    calls = items * calls_per_item
    seconds = [calls * meter.seconds / max(1, meter.answers) / service.concurrency]
    told = [f"{items} {what} in about {calls:.0f} calls"]
    tokens = meter.tokens_per_call
    if tokens is None:
        told.append("of unknown size, since the server counts no tokens")
    else:
        sent, answered = calls * tokens[0], calls * tokens[1]
        told.append(f"{sent / 1e6:.2f} million tokens sent and {answered / 1e6:.2f} million answered")
        priced = meter.budget.price_in or meter.budget.price_out
        cost = (
            f"a cost of {meter.budget.cost(sent, answered):.2f}" if priced else "no price given (price_in, price_out)"
        )
        told.append(cost)
        if service.tokens_per_minute:
            seconds.append((sent + answered) / service.tokens_per_minute * 60)
    if service.requests_per_minute:
        seconds.append(calls / service.requests_per_minute * 60)
    return f"{', '.join(told)}, {_duration(max(seconds))}."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
