"""Rate limits, budget, and the signal that stops all requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

from training.config.fields import Stage, Within
from training.describe.llm.answer_store import Answer, AnswerStore

# Assumed tokens of a request, as long as no answer has reported its usage.
DEFAULT_TOKENS_PER_CALL = 1500


class StoppedError(RuntimeError):
    """No further request makes sense; the message gives the reason and the remedy."""


class BudgetExceededError(StoppedError):
    """The next request would exceed the budget."""


@dataclass(frozen=True)
class Budget(Stage):
    """Prices and spending limits; 0: none."""

    # Price of a million input tokens, images included, in any currency.
    price_in: Annotated[float, Within(0)] = 0.0
    # Price of a million output tokens.
    price_out: Annotated[float, Within(0)] = 0.0
    # Stop before the answers in the output folder, those of earlier runs included, have cost more than this.
    max_cost: Annotated[float, Within(0)] = 0.0
    # Stop after this many requests of this run, failed ones included.
    max_requests: Annotated[int, Within(0)] = 0

    def check(self) -> None:
        priced = self.price_in > 0 or self.price_out > 0
        self.require(not self.max_cost or priced, "max_cost", "0 unless price_in or price_out is given")

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of this many input and output tokens, in the currency of the prices."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


class StopSignal:
    """Stops every request, waiting ones included. One object per event loop."""

    def __init__(self) -> None:
        self.error: StoppedError | None = None
        self._event = asyncio.Event()

    def stop(self, error: StoppedError) -> None:
        """Sets the signal; of several errors the first counts."""
        self.error = self.error or error
        self._event.set()

    def check(self) -> None:
        """Raises the error given to `stop`, if the signal is set."""
        if self.error:
            raise self.error

    async def sleep(self, seconds: float) -> None:
        """Sleeps, or raises the error as soon as the signal is set."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._event.wait(), seconds)
            except asyncio.TimeoutError:
                pass
        self.check()


class RateLimiter:
    """Spreads amounts (requests or tokens) evenly: at most `per_minute` in any minute, however many callers; 0: no limit."""

    def __init__(self, per_minute: float) -> None:
        self._seconds_per_unit = 60 / per_minute if per_minute else 0.0
        self._next_free = 0.0

    def reserve(self, amount: float, now: float) -> float:
        """Seconds to wait from `now` (a monotonic time) before `amount` may be sent."""
        start = max(now, self._next_free)
        self._next_free = start + amount * self._seconds_per_unit
        return start - now

    def correct(self, amount: float) -> None:
        """Adds to an earlier reservation (negative: gives back) once the true amount is known."""
        self._next_free += amount * self._seconds_per_unit

    def block_until(self, time: float) -> None:
        """Lets nothing through before that monotonic time."""
        self._next_free = max(self._next_free, time)


class UsageMeter:
    """Counts requests, tokens and cost, and enforces the budget."""

    def __init__(self, budget: Budget, store: AnswerStore | None = None) -> None:
        """store: answers of earlier runs, which count against `max_cost`."""
        self.budget = budget
        self.answers = self.with_usage = self.prompt_tokens = self.completion_tokens = 0
        self.seconds = 0.0
        if store is not None:
            self.answers, self.with_usage, self.seconds = len(store), store.with_usage, store.seconds
            self.prompt_tokens, self.completion_tokens = store.prompt_tokens, store.completion_tokens
        self.requests, self.in_flight = 0, 0

    @property
    def cost(self) -> float:
        """Price of all answers; one without reported usage counts as the mean of the others, or as the default."""
        known = self.budget.cost(self.prompt_tokens, self.completion_tokens)
        return known + (self.answers - self.with_usage) * self.budget.cost(*self.expected_tokens)

    @property
    def tokens_per_call(self) -> tuple[float, float] | None:
        """Mean (input, output) tokens of an answer; None before any answer has reported its usage."""
        if not self.with_usage:
            return None
        return self.prompt_tokens / self.with_usage, self.completion_tokens / self.with_usage

    @property
    def expected_tokens(self) -> tuple[float, float]:
        """Expected (input, output) tokens of the next request: the mean so far, else DEFAULT_TOKENS_PER_CALL."""
        return self.tokens_per_call or (DEFAULT_TOKENS_PER_CALL, 0)

    def admit(self) -> None:
        """Counts one more request, which stays in flight until the caller decrements `in_flight`.

        Raises BudgetExceededError when this request and those in flight would exceed the budget.
        """
        budget = self.budget
        if budget.max_requests and self.requests >= budget.max_requests:
            raise BudgetExceededError(f"the budget of {budget.max_requests} requests is spent")
        if budget.max_cost:
            expected = self.cost + (self.in_flight + 1) * budget.cost(*self.expected_tokens)
            if expected > budget.max_cost:
                raise BudgetExceededError(
                    f"the budget is spent: the stored answers cost {self.cost:.4f}, and the next request would exceed "
                    f"max_cost ({budget.max_cost})"
                )
        self.requests += 1
        self.in_flight += 1

    def count(self, answer: Answer) -> None:
        """Counts one new answer."""
        self.answers += 1
        self.seconds += answer.seconds
        if answer.prompt_tokens is not None and answer.completion_tokens is not None:
            self.with_usage += 1
            self.prompt_tokens += answer.prompt_tokens
            self.completion_tokens += answer.completion_tokens
