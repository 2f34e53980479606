"""Fake OpenAI-compatible server that describes invented people, or neutralises captions, and fails at a given rate.

`python -m bench.pipeline.fake_openai --log FILE` prints its port; a GET returns the number and time of its responses. The text
of an image depends on the image's bytes, so that texts of different images differ. The log gets a line for every request: the
call (everything that an answer may depend on), the Idempotency-Key, the kind of response, and whether a whole answer was sent,
which a real service charges for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from training.describe.styles.neutral_llm import KIND as CAPTION
from training.describe.styles.neutral_rules import neutralise
from training.synthetic.attributes import sample_identity, sample_outfit, sample_pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.descriptions import STYLES, clothing_text, identity_text

# Kinds of answers that arrive whole, usable or not.
PAID = ("good", "short", "refusal", "words", "empty", "duplicate")
# Kinds of failures in transit.
LOST = ("limit", "error", "overload", "silence", "cut", "torn", "drip")
_DUPLICATE = {
    "identity": "A young man of slim build and medium height with short black hair, fair skin and a full beard.",
    "clothing": "Wearing a white shirt, blue jeans and black sneakers, with a grey backpack.",
    CAPTION: "A person in a item.",
}


@dataclass
class Behaviour:
    """Behaviour of the server, and its counters."""

    # Seconds from a request to its answer.
    seconds: float = 0.001
    # Share of faulty responses.
    faults: float = 0.0
    seed: int = 0
    # Kinds of faults, equally likely.
    kinds: tuple[str, ...] = PAID[1:] + LOST
    # Retry-After of the kind "limit", seconds.
    wait: str = "0.05"
    # Responses to the next requests, whatever the share of faults: a kind, or a whole HTTP response.
    plan: list[str | bytes] = field(default_factory=list)
    # Fields that are refused with a 400.
    refuses: tuple[str, ...] = ()
    # Status of the kind "refused".
    status: int = 401
    # File descriptor of the log, None for none.
    log: int | None = None
    # Requests by call.
    counts: Counter[str] = field(default_factory=Counter)
    # Largest number of requests in flight.
    most: int = 0
    busy: int = 0
    # Whole responses so far, and the sum of the seconds from each request's last byte to the writing of its response.
    replies: int = 0
    spent: float = 0.0


@dataclass(frozen=True)
class Call:
    """Contents of a request."""

    kind: str
    # Digest of the image, or the caption itself.
    subject: str
    # Digest of everything that the answer may depend on.
    name: str

    @staticmethod
    def of(body: dict[str, Any]) -> Call:
        """Parses the body of a chat completion."""
        parts = body["messages"][1]["content"]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        if urls:
            subject = hashlib.sha256(urls[0].encode()).hexdigest()
            kind = re.findall(r'"(identity|clothing)": "your text"', texts[-1])[-1]
        else:
            kind, subject = CAPTION, json.loads(texts[-1].rpartition("\n")[2])
        content = json.dumps([texts, subject, body["model"], body.get("seed"), body.get("temperature")])
        return Call(kind, subject, hashlib.sha256(content.encode()).hexdigest()[:24])


def good_text(call: Call) -> str:
    """Text about the person invented for an image; for a caption its neutral form."""
    if call.kind == CAPTION:
        return neutralise([call.subject])[0]
    rng = KeyedRng("answering", call.subject)
    identity = sample_identity(rng)
    outfit = sample_outfit(rng, identity)
    pose, style = sample_pose(rng, outfit), rng.integer(0, STYLES - 1)
    return identity_text(identity, pose, style) if call.kind == "identity" else clothing_text(outfit, pose, style)


def completion(call: Call, what: str) -> dict[str, Any]:
    """Body of an answer of one of the kinds PAID."""
    content: str | None = json.dumps({call.kind: _DUPLICATE[call.kind] if what == "duplicate" else good_text(call)})
    assert content is not None
    refusal = None
    if what == "short":
        content = content[: len(content) // 2]
    elif what == "words":
        content = "I'm sorry, but I can't help with describing people."
    elif what == "empty":
        content = ""
    elif what == "refusal":
        content, refusal = None, "I can't describe the person in this image."
    message = {"role": "assistant", "content": content, "refusal": refusal}
    finish = "length" if what == "short" else "stop"
    usage = {"prompt_tokens": 800, "completion_tokens": 40, "total_tokens": 840}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage,
    }


def reply(status: int, value: dict[str, Any], *headers: str) -> bytes:
    """A whole HTTP response."""
    body = json.dumps(value).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def error(status: int, text: str, *headers: str) -> bytes:
    """An error response in OpenAI's format."""
    return reply(status, {"error": {"message": text, "type": "error"}}, *headers)


class Server:
    """Answers on any number of connections."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client until it disconnects or is cut off."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.split("\r\n")[1:])}
                if head.startswith("GET "):
                    writer.write(reply(200, {"replies": self.behaviour.replies, "spent": self.behaviour.spent}))
                    continue
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                due = asyncio.get_running_loop().time() + self.behaviour.seconds
                if not await self._request(headers, json.loads(body), due, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _request(
        self, headers: dict[str, str], body: dict[str, Any], due: float, writer: asyncio.StreamWriter
    ) -> bool:
        """Serves one request and returns whether the connection stays open."""
        behaviour = self.behaviour
        behaviour.busy += 1
        behaviour.most = max(behaviour.most, behaviour.busy)
        try:
            call = Call.of(body)
            behaviour.counts[call.name] += 1
            what = self._choose(call, body)
            key = headers.get("authorization", "no key")
            return await self._do(what, call, key, headers.get("idempotency-key", ""), due, writer)
        finally:
            behaviour.busy -= 1

    def _choose(self, call: Call, body: dict[str, Any]) -> str | bytes:
        behaviour = self.behaviour
        if behaviour.plan:
            return behaviour.plan.pop(0)
        refused = [name for name in behaviour.refuses if name in body]
        if refused:
            return error(400, f"Unsupported parameter: '{refused[0]}' is not supported with this model.")
        draw = random.Random(f"{behaviour.seed}/{call.name}/{behaviour.counts[call.name]}")
        return draw.choice(behaviour.kinds) if draw.random() < behaviour.faults else "good"

    async def _do(
        self, what: str | bytes, call: Call, key: str, name: str, due: float, writer: asyncio.StreamWriter
    ) -> bool:
        kind = what if isinstance(what, str) else "reply"
        if kind == "silence":
            self._note(kind, call, name)
            await asyncio.sleep(3600)
        data = what if isinstance(what, bytes) else self._data(what, call, key)
        # The loop's timers round up to whole milliseconds.
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time() - 0.0006))
        # Logged before it is sent: the log may contain more than a client received, never less.
        self._note(kind, call, name)
        if kind == "drip":
            for place in range(len(data)):
                if writer.is_closing():
                    return False
                writer.write(data[place : place + 1])
                await asyncio.sleep(0.05)
            return True
        behaviour = self.behaviour
        behaviour.replies += 1
        behaviour.spent += asyncio.get_running_loop().time() - due + behaviour.seconds
        writer.write(data[: len(data) // 2] if kind == "cut" else data)
        await writer.drain()
        if kind == "cut":
            writer.transport.abort()
        return kind != "cut"

    def _data(self, what: str, call: Call, key: str) -> bytes:
        """The whole response; errors echo the API key, as some services do: it must not be shown anywhere."""
        behaviour = self.behaviour
        if what == "refused":
            return error(behaviour.status, f"Incorrect key provided: {key}")
        if what == "limit":
            return error(429, f"Too many requests of {key}", f"Retry-After: {behaviour.wait}")
        if what in ("error", "overload"):
            return error(500 if what == "error" else 503, f"The server had an error with {key}")
        if what == "torn":
            body = json.dumps(completion(call, "good"))[:-30].encode()
            return b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        return reply(200, completion(call, what))

    def _note(self, what: str, call: Call, name: str) -> None:
        if self.behaviour.log is not None:
            line = {"call": call.name, "key": name, "what": what, "paid": what in PAID, "most": self.behaviour.most}
            os.write(self.behaviour.log, json.dumps(line).encode() + b"\n")


async def serve(behaviour: Behaviour) -> tuple[asyncio.Server, int]:
    """Starts a server and returns (the server, its port)."""
    server = await asyncio.start_server(Server(behaviour).connection, "127.0.0.1", 0, backlog=1024)
    return server, server.sockets[0].getsockname()[1]


@dataclass(frozen=True)
class Arguments:
    """Behaviour of the server."""

    # Seconds from a request to its answer.
    seconds: float = 0.001
    # Share of faulty responses.
    faults: float = 0.0
    # Seed of the faults.
    seed: int = 0
    # File that gets a line per request.
    log: Path | None = None


def main() -> None:
    """Serves until it is terminated."""
    arguments = tyro.cli(Arguments, description=__doc__)
    log = None if arguments.log is None else os.open(arguments.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def forever() -> None:
        server, port = await serve(Behaviour(arguments.seconds, arguments.faults, arguments.seed, log=log))
        print(port, flush=True)
        await server.serve_forever()

    asyncio.run(forever())


if __name__ == "__main__":
    main()
