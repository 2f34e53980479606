"""Options of an OpenAI-compatible server; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from training.config.fields import Stage, Within

OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Service(Stage):
    """Address, rate limits, timeouts and retries of an OpenAI-compatible server."""

    # Address of the server, up to and including /v1.
    base_url: str = OPENAI
    # Environment variable with the API key; by default OPENAI_API_KEY for api.openai.com, and none elsewhere.
    key_variable: str = ""
    # Requests in flight at a time.
    concurrency: Annotated[int, Within(1, 1024)] = 8
    # Rate limit of the service, 0: none. Requests are spread evenly over the minute.
    requests_per_minute: Annotated[float, Within(0)] = 0
    # Token limit of the service, 0: none. Tokens of a request are estimated from the answers so far.
    tokens_per_minute: Annotated[float, Within(0)] = 0
    # Seconds to connect.
    connect_timeout: Annotated[float, Within(0.01)] = 10.0
    # Seconds between two chunks of a response.
    read_timeout: Annotated[float, Within(0.01)] = 60.0
    # Seconds for a whole request; bounds responses that trickle in byte by byte.
    total_timeout: Annotated[float, Within(0.01)] = 120.0
    # Retries of a request that failed in transit.
    retries: Annotated[int, Within(0, 100)] = 6
    # Upper bound of the random wait before the first retry, seconds; it doubles with every further retry.
    first_wait: Annotated[float, Within(0)] = 1.0
    # Upper bound of every such wait, seconds.
    longest_wait: Annotated[float, Within(0)] = 60.0
    # Stop when a server asks to wait longer than this, seconds.
    patience: Annotated[float, Within(0)] = 900.0
    # Stop after this many refusals in a row: wrong key, address or model.
    refusals: Annotated[int, Within(1)] = 3
    # Stop after this many calls in a row that failed for good.
    failures: Annotated[int, Within(1)] = 20

    def check(self) -> None:
        url = urlsplit(self.base_url)
        bare = not (url.username or url.password or url.query or url.fragment)
        if not (url.scheme in ("http", "https") and url.hostname and bare):
            # Not through `require`, which would show the value: a wrong address may contain a key.
            raise ValueError("Service.base_url must be http(s)://HOST[:PORT]/PATH without user, password or query")
