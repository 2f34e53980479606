"""The client against a server that misbehaves in every way: what is repeated, how long is waited, what stops everything."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from bench.pipeline.fake_openai import Behaviour, error, reply, serve
from training.describe.llm.client import Client, RequestFailedError, Service, _Retry
from training.describe.llm.limits import Budget, BudgetExceededError, StoppedError, StopSignal, UsageMeter
from training.describe.llm.responses import token_usage

KEY = "sk-test-0123456789"
QUICK: dict[str, Any] = {
    "first_wait": 0.01,
    "longest_wait": 0.05,
    "retries": 3,
    "read_timeout": 0.3,
    "total_timeout": 0.6,
}
Work = Callable[[Client], Coroutine[Any, Any, Any]]


def body(number: int = 0) -> dict[str, Any]:
    user = [
        {"type": "text", "text": 'Answer with {"identity": "your text"}'},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{number}"}},
    ]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": user}]
    optional = {"temperature": 0.7, "seed": 0, "max_tokens": 300, "response_format": {"type": "json_schema"}}
    return {"model": "m", "messages": messages} | optional


def run(
    work: Work, behaviour: Behaviour, budget: Budget | None = None, key: str = KEY, **service: Any
) -> tuple[Any, Client]:
    """(what `work` returns for a client of a new server, the client)"""

    async def inside() -> tuple[Any, Client]:
        server, port = await serve(behaviour)
        meter = UsageMeter(budget or Budget())
        async with Client(
            Service(f"http://127.0.0.1:{port}/v1", **(QUICK | service)), key, meter, StopSignal()
        ) as client:
            result = await work(client)
        server.close()
        return result, client

    return asyncio.run(inside())


def one(client: Client) -> Coroutine[Any, Any, Any]:
    return client.complete(body(), "name")


def test_an_answer_and_its_tokens():
    (value, seconds), client = run(one, Behaviour(seconds=0.02))
    assert token_usage(value) == (800, 40) and 0.019 < seconds < 60
    assert client.meter.requests == 1
    assert set(json.loads(value["choices"][0]["message"]["content"])) == {"identity"}


@pytest.mark.parametrize("what", ["error", "overload", "silence", "cut", "torn", "drip", "limit"])
def test_what_fails_on_the_way_is_sent_again(what):
    begun = time.monotonic()
    (value, _), client = run(one, Behaviour(plan=[what, what]))
    assert "choices" in value and client.meter.requests == 3
    # A drip would last 20 seconds.
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("error", r"HTTP 500: The server had an error with Bearer \[key\] \(4 times\)"),
        ("silence", r"the server did not answer in time \(ReadTimeout\) \(4 times\)"),
        ("drip", r"no complete answer within 0.6 s \(4 times\)"),
        ("cut", r"the connection failed \(.+\) \(4 times\)"),
        ("torn", r"the answer is no JSON: .+ \(4 times\)"),
    ],
)
def test_a_call_that_always_fails_says_how(what, text):
    with pytest.raises(RequestFailedError, match=text):
        run(one, Behaviour(plan=[what] * 9))


def test_nobody_listens():
    async def inside() -> None:
        server, port = await serve(Behaviour())
        server.close()
        await server.wait_closed()
        meter = UsageMeter(Budget())
        async with Client(Service(f"http://127.0.0.1:{port}/v1", **QUICK), KEY, meter, StopSignal()) as client:
            await client.complete(body(), "name")

    with pytest.raises(RequestFailedError, match=r"the connection failed \(ConnectError: .*\) \(4 times\)"):
        asyncio.run(inside())


def test_retry_after_is_waited_for_by_everybody():
    begun = time.monotonic()
    run(one, Behaviour(plan=["limit"], wait="0.4"))
    assert 0.4 <= time.monotonic() - begun < 60

    # Another call, which begins within the wait, waits too.
    async def two(client: Client) -> float:
        begun = time.monotonic()
        first = asyncio.create_task(client.complete(body(1), "one"))
        while client._requests._next_free <= time.monotonic():
            await asyncio.sleep(0.002)
        await client.complete(body(2), "two")
        seconds = time.monotonic() - begun
        await first
        return seconds

    seconds, _ = run(two, Behaviour(plan=["limit"], wait="0.5"))
    assert seconds >= 0.49


def test_the_wait_grows_at_random_up_to_its_limit():
    async def work(client: Client) -> list[list[float]]:
        return [[client._wait(turn, _Retry("x")) for _ in range(200)] for turn in (1, 2, 3, 9)]

    waits, _ = run(work, Behaviour(), first_wait=0.1, longest_wait=0.4)
    for row, most in zip(waits, (0.1, 0.2, 0.4, 0.4), strict=True):
        assert 0 <= min(row) < 0.1 * most and 0.9 * most < max(row) <= most


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_stops_everything_soon(status):
    async def work(client: Client) -> list[Any]:
        calls = [client.complete(body(number), str(number)) for number in range(40)]
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes, client = run(
        work,
        Behaviour(faults=1.0, kinds=("refused",), status=status),
        concurrency=4,
        first_wait=10.0,
        longest_wait=10.0,
        read_timeout=30.0,
        total_timeout=30.0,
    )
    assert all(isinstance(outcome, StoppedError) for outcome in outcomes)
    assert client.meter.requests < 10
    text = str(client.stop_signal.error)
    assert f"refuses every request (HTTP {status}: " in text and "check base_url, model and key_variable" in text
    assert KEY not in text and "[key]" in text


def test_refusals_between_good_answers_stop_nothing():
    async def work(client: Client) -> None:
        for number in range(5):
            await client.complete(body(number), str(number))

    _, client = run(work, Behaviour(plan=["refused", "refused", "good"] * 5, status=403))
    assert client.stop_signal.error is None and client.meter.requests == 15


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (error(402, "Insufficient credits"), "the account has no credit left (HTTP 402: Insufficient credits)"),
        (
            reply(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}),
            "the account has no credit left (HTTP 429: You exceeded your quota)",
        ),
        (
            error(429, "Daily limit", "Retry-After: 86400"),
            "asks to wait 86400 s, longer than patience (HTTP 429: Daily limit); the answers so far are kept",
        ),
    ],
)
def test_what_waiting_does_not_help_stops_everything(plan, text):
    with pytest.raises(StoppedError) as stopped:
        run(one, Behaviour(plan=[plan]))
    assert text in str(stopped.value)


def test_many_failures_in_a_row_stop_everything():
    async def work(client: Client) -> list[Any]:
        calls = [client.complete(body(number), str(number)) for number in range(30)]
        return await asyncio.gather(*calls, return_exceptions=True)

    behaviour = Behaviour(faults=1.0, kinds=("error",))
    outcomes, client = run(work, behaviour, failures=5, retries=0, concurrency=2)
    assert sum(isinstance(outcome, RequestFailedError) for outcome in outcomes) in (5, 6)
    assert "5 calls in a row failed, the last with: HTTP 500" in str(client.stop_signal.error)


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (error(413, "Image too large"), "^HTTP 413: Image too large$"),
        (error(400, "Image is not supported"), "^HTTP 400: Image is not supported$"),
        (reply(422, {"detail": "no such field"}), "^HTTP 422: no such field$"),
    ],
)
def test_what_is_wrong_with_one_call_is_not_repeated(plan, text):
    # Where a 400 names no field, the call is tried once without the field that fewest servers know.
    with pytest.raises(RequestFailedError, match=text):
        run(one, Behaviour(plan=[plan] * 2))


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (
            reply(200, {"error": {"message": "Provider returned error", "code": 502}}),
            "no chat completion: Provider returned",
        ),
        (reply(200, {"object": "list"}), "the answer is no chat completion: "),
        (b"HTTP/1.1 200 X\r\nContent-Length: 6\r\n\r\n<html>", "the answer is no JSON: <html>"),
        (b"HTTP/1.1 204 X\r\n\r\n", "HTTP 204: empty body"),
        (b"HTTP/1.1 200 X\r\nContent-Length: 9000000\r\n\r\n" + b" " * 9_000_000, "the answer has more than 8 MiB"),
        (b"no HTTP at all\r\n\r\n", "the connection failed"),
    ],
)
def test_what_is_no_answer_is_repeated(plan, text):
    run(one, Behaviour(plan=[plan]))
    with pytest.raises(RequestFailedError, match=text):
        run(one, Behaviour(plan=[plan] * 2), retries=1)


def test_refused_fields_are_left_out_from_then_on():
    async def work(client: Client) -> list[int]:
        counts = []
        for number in range(3):
            before = client.meter.requests
            await client.complete(body(number), str(number))
            counts.append(client.meter.requests - before)
        return counts

    for refuses in (("response_format",), ("max_tokens",), ("temperature", "seed"), ("response_format", "max_tokens")):
        counts, _ = run(work, Behaviour(refuses=refuses))
        assert counts == [1 + len(refuses), 1, 1]


def test_a_refusal_that_another_cause_has_is_forgotten():
    async def work(client: Client) -> int:
        with pytest.raises(RequestFailedError):
            await client.complete(body(1), "one")
        await client.complete(body(2), "two")
        return len(client._unsupported)

    assert run(work, Behaviour(plan=[error(400, "bad image")] * 2))[0] == 0


def test_no_more_requests_at_a_time_than_allowed():
    async def work(client: Client) -> None:
        await asyncio.gather(*(client.complete(body(number), str(number)) for number in range(40)))

    behaviour = Behaviour(seconds=0.01)
    run(work, behaviour, concurrency=5)
    assert behaviour.most == 5


def test_limits_per_minute_are_kept():
    async def work(client: Client) -> float:
        begun = time.monotonic()
        await asyncio.gather(*(client.complete(body(number), str(number)) for number in range(8)))
        return time.monotonic() - begun

    seconds, _ = run(work, Behaviour(), requests_per_minute=1200)
    assert 0.34 <= seconds < 60
    # The first guess of 1500 tokens is corrected to 840: eight calls of 840 at 16,800 a second take 0.35 s.
    seconds, _ = run(work, Behaviour(), tokens_per_minute=16_800 * 60, concurrency=1)
    assert 0.3 <= seconds < 60


def test_a_spent_budget_sends_nothing():
    async def work(client: Client) -> None:
        for number in range(9):
            await client.complete(body(number), str(number))

    behaviour = Behaviour()
    with pytest.raises(BudgetExceededError, match="the budget of 3 requests is spent"):
        run(work, behaviour, Budget(max_requests=3))
    assert sum(behaviour.counts.values()) == 3
