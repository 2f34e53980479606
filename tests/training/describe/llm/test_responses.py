"""Parsing of a server's responses, the bodies of requests, and the source of the API key."""

from __future__ import annotations

import email.utils

import pytest

from training.describe.llm.client import Service, read_api_key
from training.describe.llm.responses import (
    adapt_body,
    error_message,
    retry_after_seconds,
    token_usage,
    unsupported_field,
)

KEY = "sk-test-0123456789"
OPTIONAL = {"temperature": 0.7, "seed": 0, "max_tokens": 300, "response_format": {"type": "json_schema"}}
BODY = {"model": "m", "messages": []} | OPTIONAL


def test_retry_after_in_all_its_forms():
    now = 1_700_000_000.0
    date = email.utils.formatdate(now + 30, usegmt=True)
    assert retry_after_seconds({"retry-after": "7"}, now) == 7
    assert retry_after_seconds({"retry-after": date}, now) == pytest.approx(30, abs=1)
    assert retry_after_seconds({"retry-after": email.utils.formatdate(now - 30, usegmt=True)}, now) == 0
    assert retry_after_seconds({"retry-after-ms": "250", "retry-after": "9"}, now) == 0.25
    assert retry_after_seconds({}, now) is None and retry_after_seconds({"retry-after": "soon"}, now) is None
    for value in ("nan", "1 Jan 99999999999999999999 1:1:1"):
        assert retry_after_seconds({"retry-after": value}, now) is None


def test_shapes_of_requests():
    assert adapt_body(BODY, frozenset()) == BODY
    newer = adapt_body(BODY, frozenset({"max_tokens", "seed"}))
    assert newer["max_completion_tokens"] == 300 and not {"max_tokens", "seed"} & set(newer)
    assert unsupported_field("HTTP 400: grammar and json_schema", BODY, frozenset()) == "response_format"
    assert unsupported_field("HTTP 400: nothing in particular", BODY, frozenset()) == "response_format"
    assert unsupported_field("HTTP 400: nothing in particular", BODY, frozenset({"response_format"})) == ""
    assert error_message({"error": "text"}, "") == "text" and error_message({}, "x" * 300) == "x" * 197 + "..."
    for usage in (None, {}, {"prompt_tokens": "8"}, {"prompt_tokens": True, "completion_tokens": -1}):
        assert token_usage({"usage": usage}) == (None, None)


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "host/v1", "http://", "https://me:secret-word@host/v1", "https://host/v1?key=secret-word"]
)
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match=r"base_url must be http\(s\)://HOST\[:PORT\]/PATH without user") as error:
        Service(url)
    assert "secret-word" not in str(error.value)


def test_where_the_key_comes_from():
    assert read_api_key(Service(), {"OPENAI_API_KEY": f" {KEY}\n"}) == KEY
    # A key of one service is not shown to another.
    assert read_api_key(Service("http://localhost:11434/v1"), {"OPENAI_API_KEY": KEY}) == ""
    assert read_api_key(Service("http://localhost:11434/v1", key_variable="MINE"), {"MINE": KEY}) == KEY
    with pytest.raises(
        ValueError, match="the environment variable OPENAI_API_KEY is not set; set it to the API key of https"
    ):
        read_api_key(Service(), {})
    for value in ("short", "two words here", "ünprintable-key"):
        with pytest.raises(ValueError, match="MINE holds no key: expected 8 or more printable characters") as error:
            read_api_key(Service(key_variable="MINE"), {"MINE": value})
        assert value not in str(error.value)
