"""Requests to one OpenAI-compatible server: limits of rate and time, retries, and what a refusal of a field teaches.

A failed request is repeated after a random time below base x 2^n (full jitter: callers that failed together do not come back
together), or after what the server asks for in Retry-After. The key is in the headers of requests only: it is taken out of
everything that a server says before anybody sees it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import anyio
import httpx2

from training.config.fields import Stage, Within
from training.describe.llm.limits import Halt, Meter, Pace, Stopped, clock
from training.describe.llm.responses import message_of, object_in, refused_field, retry_after, shaped, tokens_of

OPENAI = "https://api.openai.com/v1"
# Answers are kilobytes; more is no answer.
LARGEST_ANSWER = 8 << 20
# Answers that repeating does not change: wrong key, wrong address, a page that has moved.
_REFUSALS = {301, 302, 303, 307, 308, 401, 403, 404, 405}
_PASSING = {408, 409, 425, 429}


@dataclass(frozen=True)
class Service(Stage):
    """Where the requests go, and how fast."""

    # Address of the server, up to and including /v1.
    base_url: str = OPENAI
    # Environment variable with the key; by default OPENAI_API_KEY for api.openai.com, and none elsewhere.
    key_variable: str = ""
    # Requests under way at a time.
    concurrency: Annotated[int, Within(1, 1024)] = 8
    # Limit that the service sets, 0: none. Requests are spread evenly over the minute.
    requests_per_minute: Annotated[float, Within(0)] = 0
    # The same for tokens, those of a request guessed from the answers so far.
    tokens_per_minute: Annotated[float, Within(0)] = 0
    # Seconds to connect.
    connect_timeout: Annotated[float, Within(0.01)] = 10.0
    # Seconds between two pieces of an answer.
    read_timeout: Annotated[float, Within(0.01)] = 60.0
    # Seconds for a whole request: no answer that drips holds its place for ever.
    total_timeout: Annotated[float, Within(0.01)] = 120.0
    # Repetitions of a request that failed on the way.
    retries: Annotated[int, Within(0, 100)] = 6
    # Seconds that the wait before the first repetition is below; the bound doubles each time.
    first_wait: Annotated[float, Within(0)] = 1.0
    # Seconds that every such wait is below.
    longest_wait: Annotated[float, Within(0)] = 60.0
    # Stop when a server asks to wait longer than this, seconds.
    patience: Annotated[float, Within(0)] = 900.0
    # Stop after so many refusals in a row: wrong key, no such address or model.
    refusals: Annotated[int, Within(1)] = 3
    # Stop after so many calls in a row that failed for good.
    failures: Annotated[int, Within(1)] = 20

    def check(self) -> None:
        url = urlsplit(self.base_url)
        plain = not (url.username or url.password or url.query or url.fragment)
        if not (url.scheme in ("http", "https") and url.hostname and plain):
            # Not through `require`: what is wrong may hold a key, and no error shows one.
            raise ValueError("Service.base_url must be http(s)://HOST[:PORT]/PATH without user, password or query")


class CallFailed(Exception):
    """One call got no answer; the text says why. Others may."""


@dataclass(frozen=True)
class _Again:
    """Why a request is to be sent again, and the seconds that the server asks to wait."""

    reason: str
    wait: float | None = None


class _Reply(NamedTuple):
    """What came of one request."""

    # 0: nothing came, and the text says why.
    status: int
    headers: Mapping[str, str]
    text: str
    # When it was sent, and the tokens that were reserved for it.
    begun: float = 0.0
    guess: float = 0.0


def read_key(service: Service, environment: Mapping[str, str]) -> str:
    """The key that `service` says, "" for none. Raises ValueError for a variable that is not set or holds no key."""
    name = service.key_variable or ("OPENAI_API_KEY" if service.base_url.rstrip("/") == OPENAI else "")
    if not name:
        return ""
    key = environment.get(name, "").strip()
    if not key:
        raise ValueError(f"the environment variable {name} is not set; put the key of {service.base_url} there")
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"the environment variable {name} holds no key: expected 8 or more printable characters, no spaces"
        )
    return key


class Client:
    """Sends requests until they are answered. Use as an async context manager inside a running event loop."""

    def __init__(self, service: Service, key: str, meter: Meter, halt: Halt) -> None:
        self.service, self.meter, self.halt = service, meter, halt
        self._key = key
        self._slots = asyncio.Semaphore(service.concurrency)
        self._requests, self._tokens = Pace(service.requests_per_minute), Pace(service.tokens_per_minute)
        # Fields that this server has refused.
        self._without: frozenset[str] = frozenset()
        self._refused, self._failed = 0, 0
        timeout = httpx2.Timeout(service.read_timeout, connect=service.connect_timeout, pool=None)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # A client with one connection for each place: a shared pool looks through all its connections for every request.
        one, trust = httpx2.Limits(max_connections=1, max_keepalive_connections=1), httpx2.create_ssl_context()
        self._clients = [
            httpx2.AsyncClient(limits=one, timeout=timeout, headers=headers, verify=trust)
            for _ in range(service.concurrency)
        ]
        self._idle = list(self._clients)
        self._url = httpx2.URL(service.base_url.rstrip("/") + "/chat/completions")

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *error: object) -> None:
        for http in self._clients:
            await http.aclose()

    async def complete(self, body: dict[str, Any], key: str) -> tuple[dict[str, Any], float]:
        """(the server's answer to a chat completion, seconds of the request that got it).

        key: names the call; sent as Idempotency-Key, so that a server that knows it does not charge twice for a
        repetition. Raises CallFailed, and Stopped when no further request makes sense.
        """
        without, last = self._without, _Again("")
        turn = 0
        while turn <= self.service.retries:
            if turn:
                await self.halt.sleep(self._wait(turn, last))
            reply = await self._send(shaped(body, without), key)
            seconds, status = clock() - reply.begun, reply.status
            outcome = self._judge(reply)
            if isinstance(outcome, dict):
                self._without |= without
                self._refused = self._failed = 0
                sent, answered = tokens_of(outcome)
                if sent is not None and answered is not None:
                    self._tokens.correct(sent + answered - reply.guess)
                return outcome, seconds
            if status == 400 or status == 422:
                field = refused_field(outcome.reason, body, without)
                if not field:
                    raise self._failure(outcome.reason)
                without |= {field}
                continue
            if 400 < status < 500 and status not in _PASSING | _REFUSALS:
                raise self._failure(outcome.reason)
            last, turn = outcome, turn + 1
        raise self._failure(f"{last.reason} ({turn} times)")

    def _wait(self, turn: int, last: _Again) -> float:
        jitter = random.uniform(0, min(self.service.longest_wait, self.service.first_wait * 2 ** (turn - 1)))
        # What the server asks for is the least; the jitter keeps all that were told the same apart.
        return jitter if last.wait is None else last.wait + min(jitter, self.service.first_wait)

    def _failure(self, reason: str) -> CallFailed:
        """Counts a call that failed for good; too many in a row stop everything."""
        self._failed += 1
        if self._failed >= self.service.failures:
            text = f"{self._failed} calls in a row failed, the last with: {reason}"
            self.halt.stop(Stopped(f"{text}; the answers so far are kept, run the same command to go on"))
        return CallFailed(reason)

    async def _send(self, body: dict[str, Any], key: str) -> _Reply:
        # Made before a place is taken: the less is done in it, the more requests go through.
        content, name = json.dumps(body).encode(), {"Idempotency-Key": key}
        request = self._clients[0].build_request("POST", self._url, content=content, headers=name)
        async with self._slots:
            guess, now = sum(self.meter.expected_tokens), clock()
            self.halt.check()
            self.meter.admit()
            http = self._idle.pop()
            try:
                wait = max(self._requests.reserve(1, now), self._tokens.reserve(guess, now))
                if wait:
                    await self.halt.sleep(wait)
                begun = clock()
                with anyio.fail_after(self.service.total_timeout):
                    reply = await _receive(http, request)
            except TimeoutError:
                reply = _Reply(0, {}, f"no whole answer within {self.service.total_timeout:g} s")
            except httpx2.TimeoutException as error:
                reply = _Reply(0, {}, f"the server did not answer in time ({type(error).__name__})")
            except httpx2.RequestError as error:
                reply = _Reply(0, {}, f"the connection failed ({type(error).__name__}: {error})")
            finally:
                self.meter.in_flight -= 1
                self._idle.append(http)
        return reply._replace(text=self.clean(reply.text), begun=begun, guess=guess)

    def clean(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self._key, "[key]") if self._key else text

    def _judge(self, reply: _Reply) -> dict[str, Any] | _Again:
        """The answer, or why there is none; stops everything where repeating cannot help."""
        status, text = reply.status, reply.text
        if status == 0:
            return _Again(text)
        value = object_in(text)
        if status == 200 and "choices" in value:
            return value
        told = message_of(value, text)
        if status == 200:
            return _Again(f"the answer is no chat completion: {told}" if value else f"the answer is no JSON: {told}")
        reason = f"HTTP {status}: {told}"
        if status == 402 or "insufficient_quota" in text:
            self._stop(f"the account has no credit left ({reason})")
        elif status in _REFUSALS:
            self._refused += 1
            if self._refused >= self.service.refusals:
                self._stop(
                    f"{self.service.base_url} refuses every request ({reason}); check base_url, model and key_variable"
                )
        wait = retry_after(reply.headers, time.time())
        if wait is not None and wait > self.service.patience:
            self._stop(f"{self.service.base_url} asks to wait {wait:.0f} s, longer than patience ({reason})")
        if wait is not None and status == 429:
            # It holds for the account, not for one request.
            self._requests.hold(clock() + wait)
        return _Again(reason, wait)

    def _stop(self, text: str) -> None:
        self.halt.stop(Stopped(f"{text}; the answers so far are kept"))
        self.halt.check()


async def _receive(http: httpx2.AsyncClient, request: httpx2.Request) -> _Reply:
    response = await http.send(request, stream=True)
    try:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > LARGEST_ANSWER:
                return _Reply(0, {}, f"the answer has more than {LARGEST_ANSWER >> 20} MiB")
    finally:
        await response.aclose()
    return _Reply(response.status_code, response.headers, body.decode("utf-8", "replace"))
