"""Client of one OpenAI-compatible server: rate limits, timeouts, retries, and adaptation to fields it does not support.

A failed request is retried after a random wait below base x 2^n (full jitter, so that callers which failed together do not
retry together), or after the server's Retry-After. The API key is sent in headers only and redacted from every response
before anything else sees it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import anyio
import httpx2

from training.describe.llm.limits import RateLimiter, StoppedError, StopSignal, UsageMeter
from training.describe.llm.responses import (
    REFUSAL_STATUSES,
    TRANSIENT_STATUSES,
    adapt_body,
    error_message,
    parse_object,
    retry_after_seconds,
    spellings,
    token_usage,
    unsupported_field,
)
from training.describe.llm.service import OPENAI, Service

# Answers are kilobytes; a larger body is no answer.
MAX_RESPONSE_BYTES = 8 << 20


class RequestFailedError(Exception):
    """One request got no answer; the message gives the reason. Other requests may still succeed."""


@dataclass(frozen=True)
class _Retry:
    """Reason to retry a request, and the wait in seconds that the server asks for."""

    reason: str
    wait: float | None = None


class _Response(NamedTuple):
    """Outcome of one HTTP request."""

    # 0: no response arrived, and the text gives the reason.
    status: int
    headers: Mapping[str, str]
    text: str
    # Monotonic time of sending, and the tokens reserved for the request.
    started: float = 0.0
    reserved: float = 0.0


def read_api_key(service: Service, environment: Mapping[str, str]) -> str:
    """API key from the environment variable named by `service`, "" for none.

    Raises ValueError when the variable is not set or its value cannot be a key.
    """
    name = service.key_variable or ("OPENAI_API_KEY" if service.base_url.rstrip("/") == OPENAI else "")
    if not name:
        return ""
    key = environment.get(name, "").strip()
    if not key:
        raise ValueError(f"the environment variable {name} is not set; set it to the API key of {service.base_url}")
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"the environment variable {name} holds no key: expected 8 or more printable characters, no spaces"
        )
    return key


class Client:
    """Sends chat completions and retries them. Use as an async context manager inside a running event loop."""

    def __init__(self, service: Service, key: str, meter: UsageMeter, stop_signal: StopSignal) -> None:
        self.service, self.meter, self.stop_signal = service, meter, stop_signal
        self._key = spellings(key) if key else None
        self._slots = asyncio.Semaphore(service.concurrency)
        self._requests, self._tokens = RateLimiter(service.requests_per_minute), RateLimiter(service.tokens_per_minute)
        self._unsupported: frozenset[str] = frozenset()
        # Both in a row.
        self._refusals, self._failures = 0, 0
        timeout = httpx2.Timeout(service.read_timeout, connect=service.connect_timeout, pool=None)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # One HTTP client with a single connection per slot: a shared pool scans all its connections for every request.
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
        """Returns (the response to a chat completion as an object, seconds of the request that succeeded).

        key: sent as Idempotency-Key, so that a server that supports it does not charge twice for a retry. Raises
        RequestFailedError, and StoppedError when no further request makes sense.
        """
        unsupported, last = self._unsupported, _Retry("")
        attempt = 0
        while attempt <= self.service.retries:
            if attempt:
                await self.stop_signal.sleep(self._wait(attempt, last))
            response = await self._send(adapt_body(body, unsupported), key)
            seconds, status = time.monotonic() - response.started, response.status
            outcome = self._interpret(response)
            if isinstance(outcome, dict):
                self._unsupported |= unsupported
                self._refusals = self._failures = 0
                prompt_tokens, completion_tokens = token_usage(outcome)
                if prompt_tokens is not None and completion_tokens is not None:
                    self._tokens.correct(prompt_tokens + completion_tokens - response.reserved)
                return outcome, seconds
            if status == 400 or status == 422:
                field = unsupported_field(outcome.reason, body, unsupported)
                if not field:
                    raise self._failure(outcome.reason)
                unsupported |= {field}
                continue
            if 400 < status < 500 and status not in TRANSIENT_STATUSES | REFUSAL_STATUSES:
                raise self._failure(outcome.reason)
            last, attempt = outcome, attempt + 1
        raise self._failure(f"{last.reason} ({attempt} times)")

    def _wait(self, attempt: int, last: _Retry) -> float:
        jitter = random.uniform(0, min(self.service.longest_wait, self.service.first_wait * 2 ** (attempt - 1)))
        # Retry-After is the minimum; the jitter spreads callers that got the same one.
        return jitter if last.wait is None else last.wait + min(jitter, self.service.first_wait)

    def _failure(self, reason: str) -> RequestFailedError:
        """Counts a call that failed for good; too many in a row stop all requests."""
        self._failures += 1
        if self._failures >= self.service.failures:
            text = f"{self._failures} calls in a row failed, the last with: {reason}"
            self.stop_signal.stop(
                StoppedError(f"{text}; the answers so far are kept, run the same command to continue")
            )
        return RequestFailedError(reason)

    async def _send(self, body: dict[str, Any], key: str) -> _Response:
        # Built before a slot is occupied: the less is done in a slot, the more requests go through.
        content, name = json.dumps(body).encode(), {"Idempotency-Key": key}
        request = self._clients[0].build_request("POST", self._url, content=content, headers=name)
        async with self._slots:
            reserved, now = sum(self.meter.expected_tokens), time.monotonic()
            self.stop_signal.check()
            self.meter.admit()
            http = self._idle.pop()
            try:
                wait = max(self._requests.reserve(1, now), self._tokens.reserve(reserved, now))
                if wait:
                    await self.stop_signal.sleep(wait)
                started = time.monotonic()
                with anyio.fail_after(self.service.total_timeout):
                    response = await _receive(http, request)
            except TimeoutError:
                response = _Response(0, {}, f"no complete answer within {self.service.total_timeout:g} s")
            except httpx2.TimeoutException as error:
                response = _Response(0, {}, f"the server did not answer in time ({type(error).__name__})")
            except httpx2.RequestError as error:
                response = _Response(0, {}, f"the connection failed ({type(error).__name__}: {error})")
            finally:
                self.meter.in_flight -= 1
                self._idle.append(http)
        return response._replace(text=self.redact(response.text), started=started, reserved=reserved)

    def redact(self, text: str) -> str:
        """Replaces the API key in a text, however it is escaped there, by "[key]"."""
        return self._key.sub("[key]", text) if self._key else text

    def _interpret(self, response: _Response) -> dict[str, Any] | _Retry:
        """The chat completion, or the reason why there is none; stops all requests where a retry cannot help."""
        status, text = response.status, response.text
        if status == 0:
            return _Retry(text)
        value = parse_object(text)
        if status == 200 and "choices" in value:
            return value
        # Again: JSON may spell the escapes of a string of JSON by escapes.
        message = self.redact(error_message(value, text))
        if status == 200:
            return _Retry(f"the answer is {'no chat completion' if value else 'no JSON'}: {message}")
        reason = f"HTTP {status}: {message}"
        if status == 402 or "insufficient_quota" in text:
            self._stop(f"the account has no credit left ({reason})")
        elif status in REFUSAL_STATUSES:
            self._refusals += 1
            if self._refusals >= self.service.refusals:
                self._stop(
                    f"{self.service.base_url} refuses every request ({reason}); check base_url, model and key_variable"
                )
        wait = retry_after_seconds(response.headers, time.time())
        if wait is not None and wait > self.service.patience:
            self._stop(f"{self.service.base_url} asks to wait {wait:.0f} s, longer than patience ({reason})")
        if wait is not None and status == 429:
            # The limit is that of the account, not of one request.
            self._requests.block_until(time.monotonic() + wait)
        return _Retry(reason, wait)

    def _stop(self, text: str) -> None:
        self.stop_signal.stop(StoppedError(f"{text}; the answers so far are kept"))
        self.stop_signal.check()


async def _receive(http: httpx2.AsyncClient, request: httpx2.Request) -> _Response:
    response = await http.send(request, stream=True)
    try:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_RESPONSE_BYTES:
                return _Response(0, {}, f"the answer has more than {MAX_RESPONSE_BYTES >> 20} MiB")
    finally:
        await response.aclose()
    return _Response(response.status_code, response.headers, body.decode("utf-8", "replace"))
