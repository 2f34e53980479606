"""An OpenAI-compatible server of its own process that describes people whom it makes up, or takes the content out of captions,
and fails as often as it is told.

`python -m bench.pipeline.fake_openai --log FILE` prints the port that it listens on; a GET tells how long its replies
took. What it says of an image depends on the image's bytes, so texts of different images differ. It writes a line for every request: the call
(all that an answer may depend on), the Idempotency-Key, what was done, and whether a whole answer was sent, which a real
service charges for.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from training.describe.styles.neutral_llm import KIND as CAPTION
from training.describe.styles.neutral_rules import neutralise
from training.synthetic.attributes import sample_identity, sample_outfit, sample_pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.descriptions import STYLES, clothing_text, identity_text

# Answers that arrive whole, though not all are any good.
PAID = ("good", "short", "refusal", "words", "empty", "duplicate")
# Failures of the way there.
LOST = ("limit", "error", "overload", "silence", "cut", "torn", "drip")
_DUPLICATE = {
    "identity": "A young man of slim build and medium height with short black hair, fair skin and a full beard.",
    "clothing": "Wearing a white shirt, blue jeans and black sneakers, with a grey backpack.",
    CAPTION: "A person in a item.",
}


@dataclass
class Behaviour:
    """How the server answers."""

    # Seconds from a request to its answer.
    seconds: float = 0.001
    # Share of requests that something goes wrong with.
    faults: float = 0.0
    seed: int = 0
    # Kinds of what goes wrong, equally likely.
    kinds: tuple[str, ...] = PAID[1:] + LOST
    # Seconds that a client is asked to wait after too many requests.
    wait: str = "0.05"
    # What the next requests get, whatever the share of faults: a kind, or a whole reply.
    plan: list[str | bytes] = field(default_factory=list)
    # Fields that are refused with a 400.
    refuses: tuple[str, ...] = ()
    # Status of the kind "refused".
    status: int = 401
    # File that takes a line per request, None for none.
    log: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    # Largest number of requests under way at a time.
    most: int = 0
    busy: int = 0
    # Whole replies so far, and the seconds from each request's last byte to the writing of its reply.
    replies: int = 0
    spent: float = 0.0


@dataclass(frozen=True)
class Call:
    """What a request asks."""

    kind: str
    # Of the image, or the caption itself.
    about: str
    # Names everything that the answer may depend on.
    name: str

    @staticmethod
    def of(body: dict[str, Any]) -> Call:
        """The call in the body of a chat completion."""
        parts = body["messages"][1]["content"]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        if urls:
            about = hashlib.sha256(urls[0].encode()).hexdigest()
            kind = re.findall(r'"(identity|clothing)": "your text"', texts[-1])[-1]
        else:
            kind, about = CAPTION, json.loads(texts[-1].rpartition("\n")[2])
        asked = json.dumps([texts, about, body["model"], body.get("seed"), body.get("temperature")])
        return Call(kind, about, hashlib.sha256(asked.encode()).hexdigest()[:24])


def good_text(call: Call) -> str:
    """A text about the person whom the server makes up for an image; a caption without its content."""
    if call.kind == CAPTION:
        return neutralise([call.about])[0]
    rng = KeyedRng("answering", call.about)
    identity = sample_identity(rng)
    outfit = sample_outfit(rng, identity)
    pose, style = sample_pose(rng, outfit), rng.integer(0, STYLES - 1)
    return identity_text(identity, pose, style) if call.kind == "identity" else clothing_text(outfit, pose, style)


def completion(call: Call, what: str) -> dict[str, Any]:
    """The body of an answer: a good one, or one of PAID."""
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
    """A whole HTTP reply."""
    body = json.dumps(value).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def error(status: int, text: str, *headers: str) -> bytes:
    """An error as OpenAI words it."""
    return reply(status, {"error": {"message": text, "type": "error"}}, *headers)


class Server:
    """Answers on any number of connections."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client until it goes or is cut off."""
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
        """Serves one request; whether the connection stays open."""
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
        # Before it is sent: a line may say more than a client got, never less.
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
        """The whole reply; errors tell the key back, as some services do: nobody may see it."""
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
    """(a running server, its port)"""
    server = await asyncio.start_server(Server(behaviour).connection, "127.0.0.1", 0, backlog=1024)
    return server, server.sockets[0].getsockname()[1]


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser("python -m bench.pipeline.fake_openai", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.001)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log")
    known = parser.parse_args()
    log = os.open(known.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if known.log else None

    async def forever() -> None:
        server, port = await serve(Behaviour(known.seconds, known.faults, known.seed, log=log))
        print(port, flush=True)
        await server.serve_forever()

    asyncio.run(forever())


if __name__ == "__main__":
    main()
