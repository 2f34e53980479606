"""Rate limits, budgets, and the word that stops every call."""

from __future__ import annotations

import asyncio
import time

import pytest

from training.describe.llm.limits import FIRST_GUESS, Budget, BudgetSpent, Halt, Meter, Pace, Stopped

PRICED = Budget(price_in=2.0, price_out=8.0)


def meter(budget: Budget, answers: int = 0, counted: int = 0, prompt: int = 0, completion: int = 0) -> Meter:
    return Meter(budget, answers, counted, prompt, completion, 0.0)


def test_requests_are_spread_evenly():
    pace = Pace(600)
    waits = [pace.reserve(1, 5.0) for _ in range(5)]
    assert waits == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    # Time that nobody used is not saved up.
    assert [pace.reserve(1, 60.0) for _ in range(2)] == pytest.approx([0.0, 0.1])


def test_tokens_are_spread_and_corrected():
    pace = Pace(60_000)
    assert pace.reserve(2000, 0.0) == 0.0
    assert pace.reserve(1000, 0.0) == pytest.approx(2.0)
    pace.correct(-500)
    assert pace.reserve(1000, 0.0) == pytest.approx(2.5)
    pace.hold(10.0)
    assert pace.reserve(1, 4.0) == pytest.approx(6.0)


def test_no_limit_is_no_wait():
    pace = Pace(0)
    assert [pace.reserve(10**6, 1.0) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_cost_is_that_of_the_answers():
    counted = meter(PRICED)
    assert counted.expected_tokens == (FIRST_GUESS, 0) and counted.tokens_per_call is None and counted.cost == 0
    counted.answered(1000, 100, 1.0)
    counted.answered(3000, 300, 1.0)
    assert counted.tokens_per_call == counted.expected_tokens == (2000, 200)
    assert counted.cost == pytest.approx((4000 * 2 + 400 * 8) / 1e6)
    # One that does not tell its tokens is taken as the average of the others.
    counted.answered(None, None, 1.0)
    assert counted.cost == pytest.approx(1.5 * (4000 * 2 + 400 * 8) / 1e6)


def test_a_server_that_counts_nothing_is_still_stopped():
    counted = meter(Budget(price_in=1.0, max_cost=3.5 * FIRST_GUESS / 1e6))
    for _ in range(3):
        counted.admit()
        counted.in_flight -= 1
        counted.answered(None, None, 1.0)
    assert counted.cost == pytest.approx(3 * FIRST_GUESS / 1e6)
    with pytest.raises(BudgetSpent, match="the budget is spent"):
        counted.admit()


def test_requests_are_counted_against_their_limit():
    counted = meter(Budget(max_requests=2))
    counted.admit()
    counted.admit()
    with pytest.raises(BudgetSpent, match="the budget of 2 requests is spent"):
        counted.admit()
    assert counted.requests == 2


def test_cost_counts_what_is_under_way():
    budget = Budget(price_in=1.0, price_out=1.0, max_cost=0.0105)
    counted = meter(budget, answers=4, counted=4, prompt=3600, completion=400)
    counted.in_flight = 5
    counted.admit()
    assert counted.in_flight == 6
    with pytest.raises(
        BudgetSpent, match=r"the budget is spent: the stored answers cost 0.0040, .* max_cost \(0.0105\)"
    ):
        counted.admit()


def test_a_limit_of_cost_needs_a_price():
    with pytest.raises(ValueError, match="Budget.max_cost must be 0 unless price_in or price_out is given, got 1.0"):
        Budget(max_cost=1.0)


def test_stopping_wakes_those_who_wait():
    async def run() -> float:
        halt = Halt()
        begun = time.monotonic()
        asyncio.get_running_loop().call_later(0.02, halt.stop, Stopped("first"))
        asyncio.get_running_loop().call_later(0.03, halt.stop, Stopped("second"))
        with pytest.raises(Stopped, match="^first$"):
            await halt.sleep(30)
        await asyncio.sleep(0.03)
        with pytest.raises(Stopped, match="^first$"):
            halt.check()
        return time.monotonic() - begun

    assert asyncio.run(run()) < 5


def test_sleep_takes_its_time():
    async def run() -> float:
        begun = time.monotonic()
        await Halt().sleep(0.05)
        await Halt().sleep(0)
        return time.monotonic() - begun

    assert asyncio.run(run()) >= 0.049
