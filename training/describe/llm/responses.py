"""Parsing of server responses: token usage, error messages, Retry-After, and which field of a request is not supported."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

# Optional fields of a request, each with the words by which a server that does not support it says so.
OPTIONAL = {
    "response_format": ("response_format", "json_schema", "structured output", "grammar", "guided"),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
    "temperature": ("temperature",),
    "seed": ("seed",),
}


# Statuses that another try does not change whatever the request: wrong key, wrong address, a page that has moved; and those that
# another try may change.
REFUSAL_STATUSES = {301, 302, 303, 307, 308, 401, 403, 404, 405}
TRANSIENT_STATUSES = {408, 409, 425, 429}
# Far above the tokens of any request. A number that no float can hold would end the limits by tokens with an error.
MOST_TOKENS = 10**9


def spellings(key: str) -> re.Pattern[str]:
    """Pattern of a key of ASCII characters as it is, and as JSON (also JSON within a string of JSON), URLs and HTML spell it."""

    def spelling(character: str) -> str:
        code, escaped = ord(character), re.escape(character)
        # No spelling twice and bounded repetitions: a long body that nearly holds the key must not take more than its length.
        in_json = rf"\\{{0,7}}(?:{escaped}|u{code:04x})"
        in_html = rf"&#(?:0{{0,4}}{code}|x0{{0,4}}{code:x});"
        named = "" if html.escape(character) == character else f"|{html.escape(character)}"
        return f"(?:{in_json}|%{code:02x}|{in_html}{named})"

    return re.compile("".join(map(spelling, key)), re.IGNORECASE)


def token_usage(value: dict[str, Any]) -> tuple[int | None, int | None]:
    """(prompt, completion) tokens as reported by the server; None where it reports no number that can be."""
    usage = value.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (
        n if isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MOST_TOKENS else None for n in counts
    )
    return prompt, completion


def adapt_body(body: dict[str, Any], unsupported: frozenset[str]) -> dict[str, Any]:
    """The body without unsupported fields; `max_tokens` is then sent under its newer name `max_completion_tokens`."""
    adapted = {name: value for name, value in body.items() if name not in unsupported}
    if "max_tokens" in unsupported:
        adapted["max_completion_tokens"] = body["max_tokens"]
    return adapted


def unsupported_field(reason: str, body: dict[str, Any], unsupported: frozenset[str]) -> str:
    """Optional field that a 400 or 422 complains about, "" for none; if unnamed, the one that fewest servers support."""
    candidates = [name for name in OPTIONAL if name in body and name not in unsupported]
    named = [name for name in named_fields(reason) if name in candidates]
    return named[0] if named else "response_format" if "response_format" in candidates else ""


def named_fields(reason: str) -> list[str]:
    """Optional fields that an error message names."""
    low = reason.lower()
    return [name for name, words in OPTIONAL.items() if any(word in low for word in words)]


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object in a response body, {} for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def error_message(value: dict[str, Any], text: str) -> str:
    """The server's error message, else the beginning of the body; one line of at most 200 characters."""
    error = value.get("error", value.get("message", value.get("detail", "")))
    message = error.get("message", error) if isinstance(error, dict) else error
    line = " ".join((message if isinstance(message, str) and message else text).split())
    return (line if len(line) <= 200 else line[:197] + "...") or "empty body"


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait by Retry-After (seconds or an HTTP date) or retry-after-ms; None without a usable header.

    now: Unix time, against which an HTTP date is taken.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        return max(0.0, seconds) if seconds == seconds else None
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return None
