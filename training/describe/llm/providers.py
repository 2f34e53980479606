"""What answers the prompts: an OpenAI-compatible server, or a local vision-language model of `transformers`.

A provider turns an `Ask` into an `Answer`; what an answer is worth is for others to judge. It raises CallFailed when this
ask gets no answer, and Stopped when none will.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from training.describe.llm.answer_store import Answer
from training.describe.llm.client import Client
from training.describe.llm.responses import tokens_of
from training.describe.text.prompts import Prompt

# What every provider takes as it lies on the disk, by the file's first bytes.
_MEDIA = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}


@dataclass(frozen=True)
class Picture:
    """An image as it is sent."""

    # SHA-256 (hex) of the file's bytes.
    digest: str
    media: str
    data: bytes


@dataclass(frozen=True)
class Ask:
    """One call."""

    # Names the call: see store.answer_key.
    key: str
    file_path: str
    style: int
    prompt: Prompt
    # None where the model is asked about a text only.
    picture: Picture | None
    # 0 for the first time, then one more each time that an answer was no good.
    attempt: int
    temperature: float
    seed: int
    max_tokens: int

    @property
    def kind(self) -> str:
        """Of the text that is wanted."""
        return self.prompt.kind


class Provider(Protocol):
    """What generation needs of a provider."""

    # Images to work on at a time.
    window: int

    async def answer(self, ask: Ask) -> Answer:
        """The answer to one ask."""


def load_picture(path: Path) -> Picture:
    """The image file, whole and readable; JPEG and PNG as they are, anything else as JPEG.

    Raises OSError for a file that cannot be read or is no image, or not all of one.
    """
    data = Path(path).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    media = next((name for magic, name in _MEDIA.items() if data.startswith(magic)), "")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if not media:
                media, buffer = "image/jpeg", io.BytesIO()
                image.convert("RGB").save(buffer, "JPEG", quality=95)
                data = buffer.getvalue()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"the image cannot be read: {error}") from error
    return Picture(digest, media, data)


class OpenAIProvider:
    """Chat completions with the image as a data URL and a JSON schema for the answer."""

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model
        # Enough to have images read and texts checked while all places for requests are taken.
        self.window = 2 * client.service.concurrency + 2

    @staticmethod
    def body_of(model: str, ask: Ask) -> dict[str, Any]:
        """The body of the request for an ask."""
        content: list[dict[str, Any]] = [{"type": "text", "text": ask.prompt.user}]
        if ask.picture is not None:
            url = f"data:{ask.picture.media};base64,{base64.b64encode(ask.picture.data).decode()}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        schema = {"name": f"{ask.prompt.kind}_text", "strict": True, "schema": ask.prompt.json_schema}
        return {
            "model": model,
            "messages": [{"role": "system", "content": ask.prompt.system}, {"role": "user", "content": content}],
            "temperature": ask.temperature,
            "seed": ask.seed,
            "max_tokens": ask.max_tokens,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }

    async def answer(self, ask: Ask) -> Answer:
        """Raises CallFailed and Stopped, see Client.complete."""
        value, seconds = await self.client.complete(self.body_of(self.model, ask), ask.key)
        choice = value["choices"][0] if isinstance(value["choices"], list) and value["choices"] else {}
        message = choice.get("message") if isinstance(choice, dict) else None
        message = message if isinstance(message, dict) else {}
        sent, answered = tokens_of(value)
        return Answer(
            _text(message.get("content")),
            _text(message.get("refusal")),
            _text(choice.get("finish_reason")) if isinstance(choice, dict) else "",
            sent,
            answered,
            round(seconds, 4),
        )


def _text(value: Any) -> str:
    """A text as servers give it: a string, or a list of parts with texts."""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    return value if isinstance(value, str) else ""


def _images(ask: Ask) -> list[dict[str, str]]:
    return [] if ask.picture is None else [{"type": "image"}]


class TransformersProvider:
    """A local vision-language model, `batch` asks at a time; one thread runs it.

    Equal asks give equal answers where `batch` is 1 or the temperature 0: in a larger batch the sampled words depend on
    what else is in it. Raises RuntimeError when the model cannot be loaded.
    """

    def __init__(self, name: str, batch: int, device: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self._processor = AutoProcessor.from_pretrained(name)
            model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
            self._model = model.to(device).eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise RuntimeError(
                f"model: the vision-language model {name!r} cannot be loaded; give a local folder that holds one with its "
                f"processor, or a name on the hub ({str(error).splitlines()[0]})"
            ) from error
        if getattr(self._processor, "chat_template", None) is None:
            raise RuntimeError(f"model: {name!r} has no chat template, so it cannot be asked")
        self._torch, self._batch = torch, batch
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # A batch in work, one in waiting.
        self.window = max(2, batch)
        self._waiting: list[tuple[Ask, asyncio.Future[Answer]]] = []
        self._runner: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1)

    async def answer(self, ask: Ask) -> Answer:
        """The model's answer; raises what the model raises."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        """Runs batches until nobody waits; asks of one batch share their temperature."""
        while self._waiting:
            # Those that ask at the same time come together.
            await asyncio.sleep(0)
            first = self._waiting[0][0]
            chosen = [pair for pair in self._waiting if pair[0].temperature == first.temperature][: self._batch]
            self._waiting = [pair for pair in self._waiting if pair not in chosen]
            asks = [ask for ask, _ in chosen]
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._generate, asks)
            except Exception as error:
                for _, future in chosen:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(chosen, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    def _generate(self, asks: list[Ask]) -> list[Answer]:
        begun = time.monotonic()
        conversations = [
            [
                {"role": "system", "content": [{"type": "text", "text": ask.prompt.system}]},
                {"role": "user", "content": [*_images(ask), {"type": "text", "text": ask.prompt.user}]},
            ]
            for ask in asks
        ]
        texts = [self._processor.apply_chat_template(c, add_generation_prompt=True) for c in conversations]
        pictures = [[Image.open(io.BytesIO(ask.picture.data)).convert("RGB")] for ask in asks if ask.picture]
        inputs = self._processor(text=texts, images=pictures or None, padding=True, return_tensors="pt")
        inputs = inputs.to(self._model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if asks[0].temperature > 0:
            sampling = {"do_sample": True, "temperature": asks[0].temperature}
            self._torch.manual_seed(asks[0].seed)
        with self._torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=max(a.max_tokens for a in asks), **sampling)
        length = inputs["input_ids"].shape[1]
        seconds = round((time.monotonic() - begun) / len(asks), 4)
        sent = inputs["attention_mask"].sum(1).tolist()
        answers = self._processor.batch_decode(tokens[:, length:], skip_special_tokens=True)
        pad = self._processor.tokenizer.pad_token_id
        counts = (tokens[:, length:] != pad).sum(1).tolist()
        return [
            Answer(text, "", "stop" if count < ask.max_tokens else "length", int(n), int(count), seconds)
            for text, ask, n, count in zip(answers, asks, sent, counts, strict=True)
        ]
