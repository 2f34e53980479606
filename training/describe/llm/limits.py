"""How fast requests may go out, what they may cost, and when none may go out any more."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated

from training.config.fields import Stage, Within

# Tokens that a call is taken to need until the first answer has told.
FIRST_GUESS = 1500


class Stopped(RuntimeError):
    """No further request makes sense; the text says why and what to do."""


class BudgetSpent(Stopped):
    """The next request would go over the budget."""


@dataclass(frozen=True)
class Budget(Stage):
    """Prices and limits; 0: none."""

    # Price of a million tokens that are sent, images included, in any currency.
    price_in: Annotated[float, Within(0)] = 0.0
    # Price of a million tokens that are answered.
    price_out: Annotated[float, Within(0)] = 0.0
    # Stop before the answers in the output folder, those of earlier runs included, have cost more than this.
    max_cost: Annotated[float, Within(0)] = 0.0
    # Stop after so many requests of this run, failed ones included.
    max_requests: Annotated[int, Within(0)] = 0

    def check(self) -> None:
        priced = self.price_in > 0 or self.price_out > 0
        self.require(not self.max_cost or priced, "max_cost", "0 unless price_in or price_out is given")

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of so many tokens."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


class Halt:
    """Tells every call, waiting ones included, that no further request is to be sent."""

    def __init__(self) -> None:
        self.error: Stopped | None = None
        self._event = asyncio.Event()

    def stop(self, error: Stopped) -> None:
        """The first error is the one that counts."""
        self.error = self.error or error
        self._event.set()

    def check(self) -> None:
        """Raises the error that `stop` was told."""
        if self.error:
            raise self.error

    async def sleep(self, seconds: float) -> None:
        """Waits so long, or raises as soon as `stop` is called."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._event.wait(), seconds)
            except asyncio.TimeoutError:
                pass
        self.check()


class Pace:
    """Spreads amounts evenly: at most `per_minute` in any minute, however many ask at once; 0: no limit."""

    def __init__(self, per_minute: float) -> None:
        self._seconds = 60 / per_minute if per_minute else 0.0
        self._free = 0.0

    def reserve(self, amount: float, now: float) -> float:
        """Seconds to wait from `now` on before `amount` may go."""
        start = max(now, self._free)
        self._free = start + amount * self._seconds
        return start - now

    def correct(self, amount: float) -> None:
        """Counts so much more (or, negative, less) than was reserved."""
        self._free += amount * self._seconds

    def hold(self, until: float) -> None:
        """Nothing goes before that time."""
        self._free = max(self._free, until)


class Meter:
    """What was sent and answered so far, what it cost, and whether more may be sent."""

    def __init__(
        self, budget: Budget, answers: int, counted: int, prompt: int, completion: int, seconds: float
    ) -> None:
        """The numbers are those of the answers that earlier runs stored; `counted`: how many of them know their tokens."""
        self.budget = budget
        self.answers, self.counted = answers, counted
        self.prompt_tokens, self.completion_tokens, self.seconds = prompt, completion, seconds
        self.requests, self.in_flight = 0, 0

    @property
    def cost(self) -> float:
        """Price of all answers; one that does not tell its tokens counts as the average of the others, or as a guess."""
        known = self.budget.cost(self.prompt_tokens, self.completion_tokens)
        return known + (self.answers - self.counted) * self.budget.cost(*self.expected_tokens)

    @property
    def tokens_per_call(self) -> tuple[float, float] | None:
        """Mean tokens (sent, answered) of a call; None before any answer has told."""
        if not self.counted:
            return None
        return self.prompt_tokens / self.counted, self.completion_tokens / self.counted

    @property
    def expected_tokens(self) -> tuple[float, float]:
        """Tokens (sent, answered) that the next call will need: the mean, and FIRST_GUESS before any answer has told."""
        return self.tokens_per_call or (FIRST_GUESS, 0)

    def admit(self) -> None:
        """Counts one more request, which is in flight until somebody lowers `in_flight` again.

        Raises BudgetSpent when it would, with those in flight, go over the budget.
        """
        budget = self.budget
        if budget.max_requests and self.requests >= budget.max_requests:
            raise BudgetSpent(f"the budget of {budget.max_requests} requests is spent")
        if budget.max_cost:
            expected = self.cost + (self.in_flight + 1) * budget.cost(*self.expected_tokens)
            if expected > budget.max_cost:
                raise BudgetSpent(
                    f"the budget is spent: the stored answers cost {self.cost:.4f}, and the next request would go over "
                    f"max_cost ({budget.max_cost})"
                )
        self.requests += 1
        self.in_flight += 1

    def answered(self, prompt: int | None, completion: int | None, seconds: float) -> None:
        """Counts one answer."""
        self.answers += 1
        self.seconds += seconds
        if prompt is not None and completion is not None:
            self.counted += 1
            self.prompt_tokens += prompt
            self.completion_tokens += completion


def clock() -> float:
    """Seconds that never go back."""
    return time.monotonic()
