"""Providers: an OpenAI-compatible server, or a local vision-language model of `transformers`.

A provider turns a `Request` into an `Answer`, which others check. It raises RequestFailedError when this request gets no
answer, and StoppedError when no request will.
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
from typing import TYPE_CHECKING, Any, Protocol

from training.describe.llm.answer_store import Answer
from training.describe.llm.responses import token_usage
from training.describe.text.prompts import Prompt

if TYPE_CHECKING:
    from training.describe.llm.client import Client

# Formats that every provider accepts unconverted, by the file's first bytes.
_MEDIA_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}


@dataclass(frozen=True)
class EncodedImage:
    """An image file as it is sent."""

    # SHA-256 (hex) of the file on disk.
    digest: str
    media_type: str
    data: bytes


@dataclass(frozen=True)
class Request:
    """One request to a provider."""

    # See answer_store.answer_key.
    key: str
    file_path: str
    style: int
    prompt: Prompt
    # None where the prompt is about a text only.
    image: EncodedImage | None
    # Counted from 0; one more for every answer that failed a check.
    attempt: int
    temperature: float
    seed: int
    max_tokens: int

    @property
    def kind(self) -> str:
        """Kind of the requested text."""
        return self.prompt.kind


class AnswerPendingError(Exception):
    """The answer to a request is not there yet; the image is left for later."""


class Provider(Protocol):
    """Interface of a provider."""

    # Images (or captions) to process at a time.
    items_in_flight: int

    async def answer(self, request: Request) -> Answer:
        """Answers one request. Raises RequestFailedError, AnswerPendingError and StoppedError."""


def load_image(path: Path) -> EncodedImage:
    """Reads an image file and checks that it decodes; upright RGB images as JPEG and PNG stay as they are, anything else becomes
    JPEG as `reading` makes RGB of it.

    Raises OSError for a file that cannot be read, is no image, is too large, or is truncated.
    """
    # Not at the top: --help need not wait for Pillow.
    from training.data.images.reading import DAMAGED, open_image, to_rgb

    data = Path(path).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    media_type = next((name for magic, name in _MEDIA_TYPES.items() if data.startswith(magic)), "")
    try:
        with open_image(data) as image:
            seen = to_rgb(image)
            if not media_type or seen is not image:
                media_type, buffer = "image/jpeg", io.BytesIO()
                seen.save(buffer, "JPEG", quality=95)
                data = buffer.getvalue()
    except DAMAGED as error:
        raise OSError(f"the image cannot be read: {error}") from error
    return EncodedImage(digest, media_type, data)


class OpenAIProvider:
    """Chat completions of a server, with the image as a data URL and a JSON schema as response format."""

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model
        # Enough to read images and check texts while every slot for requests is occupied.
        self.items_in_flight = 2 * client.service.concurrency + 2

    @staticmethod
    def request_body(model: str, request: Request) -> dict[str, Any]:
        """Body of the HTTP request, as JSON values."""
        content: list[dict[str, Any]] = [{"type": "text", "text": request.prompt.user}]
        if request.image is not None:
            url = f"data:{request.image.media_type};base64,{base64.b64encode(request.image.data).decode()}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        schema = {"name": f"{request.prompt.kind}_text", "strict": True, "schema": request.prompt.json_schema}
        return {
            "model": model,
            "messages": [{"role": "system", "content": request.prompt.system}, {"role": "user", "content": content}],
            "temperature": request.temperature,
            "seed": request.seed,
            "max_tokens": request.max_tokens,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }

    async def answer(self, request: Request) -> Answer:
        """Answers one request. Raises RequestFailedError and StoppedError, see Client.complete."""
        return read_completion(*await self.client.complete(self.request_body(self.model, request), request.key))


def read_completion(value: dict[str, Any], seconds: float = 0.0) -> Answer:
    """The answer in a chat completion, an object with `choices`."""
    choice = value["choices"][0] if isinstance(value["choices"], list) and value["choices"] else {}
    message = choice.get("message") if isinstance(choice, dict) else None
    message = message if isinstance(message, dict) else {}
    prompt_tokens, completion_tokens = token_usage(value)
    return Answer(
        _content_text(message.get("content")),
        _content_text(message.get("refusal")),
        _content_text(choice.get("finish_reason")) if isinstance(choice, dict) else "",
        prompt_tokens,
        completion_tokens,
        round(seconds, 4),
    )


def _content_text(value: Any) -> str:
    """The text of a message's content: a string, or a list of parts with texts."""
    parts = [part.get("text") for part in value if isinstance(part, dict)] if isinstance(value, list) else [value]
    return "".join(part for part in parts if isinstance(part, str))


def _image_parts(request: Request) -> list[dict[str, str]]:
    return [] if request.image is None else [{"type": "image"}]


class TransformersProvider:
    """Local vision-language model, run in one thread on batches of up to `batch` requests.

    Equal requests get equal answers only where `batch` is 1 or the temperature 0: in a larger batch the sampled words depend
    on the other requests. device: as in `select_device`. Raises ValueError for a device that does not exist, RuntimeError
    when the model cannot be loaded.
    """

    def __init__(self, name: str, batch: int, device: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from training.engine.device import select_device

        place = select_device(device)
        try:
            self._processor = AutoProcessor.from_pretrained(name)
            model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
            self._model = model.to(place).eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise RuntimeError(
                f"model: the vision-language model {name!r} cannot be loaded; give a local folder that holds one with its "
                f"processor, or a name on the hub ({str(error).splitlines()[0]})"
            ) from error
        if getattr(self._processor, "chat_template", None) is None:
            raise RuntimeError(f"model: {name!r} has no chat template, so it cannot be prompted")
        self._torch, self._batch = torch, batch
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # One batch running, one being prepared.
        self.items_in_flight = max(2, batch)
        self._queue: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._runner: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1)

    async def answer(self, request: Request) -> Answer:
        """Answers one request. Raises any error of the model."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((request, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run_batches())
        return await future

    async def _run_batches(self) -> None:
        """Runs batches until the queue is empty; requests of one batch share their temperature."""
        while self._queue:
            # Lets simultaneous callers join the batch.
            await asyncio.sleep(0)
            first = self._queue[0][0]
            chosen = [pair for pair in self._queue if pair[0].temperature == first.temperature][: self._batch]
            self._queue = [pair for pair in self._queue if pair not in chosen]
            requests = [request for request, _ in chosen]
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._generate, requests)
            except Exception as error:
                for _, future in chosen:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(chosen, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    def _generate(self, requests: list[Request]) -> list[Answer]:
        from PIL import Image

        started = time.monotonic()
        conversations = [
            [
                {"role": "system", "content": [{"type": "text", "text": request.prompt.system}]},
                {"role": "user", "content": [*_image_parts(request), {"type": "text", "text": request.prompt.user}]},
            ]
            for request in requests
        ]
        texts = [self._processor.apply_chat_template(c, add_generation_prompt=True) for c in conversations]
        images = [[Image.open(io.BytesIO(request.image.data)).convert("RGB")] for request in requests if request.image]
        inputs = self._processor(text=texts, images=images or None, padding=True, return_tensors="pt")
        inputs = inputs.to(self._model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if requests[0].temperature > 0:
            sampling = {"do_sample": True, "temperature": requests[0].temperature}
            self._torch.manual_seed(requests[0].seed)
        with self._torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=max(a.max_tokens for a in requests), **sampling)
        length = inputs["input_ids"].shape[1]
        seconds = round((time.monotonic() - started) / len(requests), 4)
        prompt_counts = inputs["attention_mask"].sum(1).tolist()
        answers = self._processor.batch_decode(tokens[:, length:], skip_special_tokens=True)
        pad = self._processor.tokenizer.pad_token_id
        completion_counts = (tokens[:, length:] != pad).sum(1).tolist()
        return [
            Answer(text, "", "stop" if count < request.max_tokens else "length", int(n), int(count), seconds)
            for text, request, n, count in zip(answers, requests, prompt_counts, completion_counts, strict=True)
        ]
