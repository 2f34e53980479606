"""What servers say in their replies: tokens, errors, how long to wait, and which field of a request they do not know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

# Optional fields of a request and words by which a server that does not know them says so.
OPTIONAL = {
    "response_format": ("response_format", "json_schema", "structured output", "grammar", "guided"),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
    "temperature": ("temperature",),
    "seed": ("seed",),
}


def tokens_of(value: dict[str, Any]) -> tuple[int | None, int | None]:
    """Tokens (sent, answered) as a server counts them; None where it does not."""
    usage = value.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    sent, answered = (n if isinstance(n, int) and not isinstance(n, bool) and n >= 0 else None for n in counts)
    return sent, answered


def shaped(body: dict[str, Any], without: frozenset[str]) -> dict[str, Any]:
    """The body without the fields that a server refuses; a limit of tokens goes by its newer name then."""
    kept = {name: value for name, value in body.items() if name not in without}
    if "max_tokens" in without:
        kept["max_completion_tokens"] = body["max_tokens"]
    return kept


def refused_field(reason: str, body: dict[str, Any], without: frozenset[str]) -> str:
    """The optional field that a 400 is about, "" for none; where it names none, the one that fewest servers know."""
    there = [name for name in OPTIONAL if name in body and name not in without]
    low = reason.lower()
    named = [name for name in there if any(word in low for word in OPTIONAL[name])]
    return named[0] if named else "response_format" if "response_format" in there else ""


def object_in(text: str) -> dict[str, Any]:
    """The object in a body, {} for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def message_of(value: dict[str, Any], text: str) -> str:
    """What a server says about an error: its message, else the beginning of the body."""
    error = value.get("error", value.get("message", value.get("detail", "")))
    told = error.get("message", error) if isinstance(error, dict) else error
    line = " ".join(str(told or text).split())
    return (line if len(line) <= 200 else line[:197] + "...") or "empty body"


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait: Retry-After as seconds or as an HTTP date, or retry-after-ms; None without a usable one."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        return max(0.0, seconds) if seconds == seconds else None
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now)
    except (TypeError, ValueError):
        return None
