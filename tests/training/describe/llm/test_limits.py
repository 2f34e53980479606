"""Rate limits, budgets, and the signal that stops every request."""

from __future__ import annotations

import asyncio
import time

import pytest

from training.describe.llm.answer_store import Answer
from training.describe.llm.limits import (
    DEFAULT_TOKENS_PER_CALL,
    Budget,
    BudgetExceededError,
    RateLimiter,
    StoppedError,
    StopSignal,
    UsageMeter,
)

PRICED = Budget(price_in=2.0, price_out=8.0)


def answer(prompt_tokens: int | None = None, completion_tokens: int | None = None) -> Answer:
    return Answer("text", "", "stop", prompt_tokens, completion_tokens, 1.0)


def test_requests_are_spread_evenly():
    limiter = RateLimiter(600)
    waits = [limiter.reserve(1, 5.0) for _ in range(5)]
    assert waits == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    # Time that nobody used is not saved up.
    assert [limiter.reserve(1, 60.0) for _ in range(2)] == pytest.approx([0.0, 0.1])


def test_tokens_are_spread_and_corrected():
    limiter = RateLimiter(60_000)
    assert limiter.reserve(2000, 0.0) == 0.0
    assert limiter.reserve(1000, 0.0) == pytest.approx(2.0)
    limiter.correct(-500)
    assert limiter.reserve(1000, 0.0) == pytest.approx(2.5)
    limiter.block_until(10.0)
    assert limiter.reserve(1, 4.0) == pytest.approx(6.0)


def test_no_limit_is_no_wait():
    limiter = RateLimiter(0)
    assert [limiter.reserve(10**6, 1.0) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_cost_is_that_of_the_answers():
    meter = UsageMeter(PRICED)
    assert meter.expected_tokens == (DEFAULT_TOKENS_PER_CALL, 0) and meter.tokens_per_call is None and meter.cost == 0
    meter.count(answer(1000, 100))
    meter.count(answer(3000, 300))
    assert meter.tokens_per_call == meter.expected_tokens == (2000, 200)
    assert meter.cost == pytest.approx((4000 * 2 + 400 * 8) / 1e6)
    # One that does not tell its tokens is taken as the average of the others.
    meter.count(answer())
    assert meter.cost == pytest.approx(1.5 * (4000 * 2 + 400 * 8) / 1e6)


def test_a_server_that_counts_nothing_is_still_stopped():
    meter = UsageMeter(Budget(price_in=1.0, max_cost=3.5 * DEFAULT_TOKENS_PER_CALL / 1e6))
    for _ in range(3):
        meter.admit()
        meter.in_flight -= 1
        meter.count(answer())
    assert meter.cost == pytest.approx(3 * DEFAULT_TOKENS_PER_CALL / 1e6)
    with pytest.raises(BudgetExceededError, match="the budget is spent"):
        meter.admit()


def test_requests_are_counted_against_their_limit():
    meter = UsageMeter(Budget(max_requests=2))
    meter.admit()
    meter.admit()
    with pytest.raises(BudgetExceededError, match="the budget of 2 requests is spent"):
        meter.admit()
    assert meter.requests == 2


def test_cost_counts_what_is_under_way():
    budget = Budget(price_in=1.0, price_out=1.0, max_cost=0.0105)
    meter = UsageMeter(budget)
    for _ in range(4):
        meter.count(answer(900, 100))
    meter.in_flight = 5
    meter.admit()
    assert meter.in_flight == 6
    with pytest.raises(
        BudgetExceededError, match=r"the budget is spent: the stored answers cost 0.0040, .* max_cost \(0.0105\)"
    ):
        meter.admit()


def test_a_limit_of_cost_needs_a_price():
    with pytest.raises(ValueError, match="Budget.max_cost must be 0 unless price_in or price_out is given, got 1.0"):
        Budget(max_cost=1.0)


def test_stopping_wakes_those_who_wait():
    async def run() -> float:
        stop_signal = StopSignal()
        begun = time.monotonic()
        asyncio.get_running_loop().call_later(0.02, stop_signal.stop, StoppedError("first"))
        asyncio.get_running_loop().call_later(0.03, stop_signal.stop, StoppedError("second"))
        with pytest.raises(StoppedError, match="^first$"):
            await stop_signal.sleep(30)
        await asyncio.sleep(0.03)
        with pytest.raises(StoppedError, match="^first$"):
            stop_signal.check()
        return time.monotonic() - begun

    assert asyncio.run(run()) < 5


def test_sleep_takes_its_time():
    async def run() -> float:
        begun = time.monotonic()
        await StopSignal().sleep(0.05)
        await StopSignal().sleep(0)
        return time.monotonic() - begun

    assert asyncio.run(run()) >= 0.049
