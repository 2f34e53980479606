"""Images as they are sent, requests and answers of a server, and a local vision-language model."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.pretrained.tiny_vlm import save_tiny_vlm
from training.describe.llm.answer_store import Answer
from training.describe.llm.providers import OpenAIProvider, Request, TransformersProvider, load_image
from training.describe.text.prompts import build_prompt
from training.describe.text.schema import load_schema

PROMPT = build_prompt(load_schema(), "identity", ("A man in red.",), (5, 40))


def image_file(folder: Path, kind: str, colour: tuple[int, int, int] = (200, 30, 30), mode: str = "RGB") -> Path:
    path = folder / f"{colour[0]}.{kind.lower()}"
    image = Image.new("RGB", (24, 48), colour)
    # A palette of its own keeps the colour.
    (image.quantize(8) if mode == "P" else image.convert(mode)).save(path, kind)
    return path


def make_ask(path: Path, temperature: float = 0.7, seed: int = 0, tokens: int = 8) -> Request:
    return Request("0" * 64, path.name, 0, PROMPT, load_image(path), 0, temperature, seed, tokens)


@pytest.mark.parametrize(("kind", "media"), [("JPEG", "image/jpeg"), ("PNG", "image/png")])
def test_common_formats_are_sent_as_they_are(tmp_path, kind, media):
    path = image_file(tmp_path, kind)
    image = load_image(path)
    assert image.data == path.read_bytes() and image.media_type == media
    assert image.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_others_become_jpeg(tmp_path, mode):
    path = image_file(tmp_path, "BMP", mode=mode)
    image = load_image(path)
    assert image.media_type == "image/jpeg" and image.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with Image.open(io.BytesIO(image.data)) as sent, Image.open(path) as stored:
        assert sent.format == "JPEG" and sent.size == (24, 48)
        pairs = zip(sent.convert("RGB").getpixel((9, 9)), stored.convert("RGB").getpixel((9, 9)), strict=True)
        assert max(abs(a - b) for a, b in pairs) < 6


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"text", lambda data: b""])
def test_broken_images_are_told(tmp_path, damage):
    path = image_file(tmp_path, "JPEG")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OSError, match="the image cannot be read: "):
        load_image(path)


def test_the_request_holds_image_prompt_and_schema(tmp_path):
    path = image_file(tmp_path, "JPEG")
    body = OpenAIProvider.request_body("name", make_ask(path, 0.4, 5, 99))
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == ("name", 0.4, 5, 99)
    system, user = body["messages"]
    assert system == {"role": "system", "content": PROMPT.system}
    assert user["content"][0] == {"type": "text", "text": PROMPT.user}
    head, _, data = user["content"][1]["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64" and base64.b64decode(data) == path.read_bytes()
    assert body["response_format"]["json_schema"]["schema"] == PROMPT.json_schema
    json.dumps(body)


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        ([{"message": {"content": "text"}, "finish_reason": "stop"}], Answer("text", "", "stop", 8, 4, 0.5)),
        ([{"message": {"content": None, "refusal": "no"}}], Answer("", "no", "", 8, 4, 0.5)),
        ([{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}], Answer("ab", "", "", 8, 4, 0.5)),
        ([{"message": "text", "finish_reason": "length"}], Answer("", "", "length", 8, 4, 0.5)),
        ([], Answer("", "", "", 8, 4, 0.5)),
        (["text"], Answer("", "", "", 8, 4, 0.5)),
    ],
)
def test_answers_of_every_shape(tmp_path, choices, answer):
    class Client:
        class service:
            concurrency = 1

        async def complete(self, body: dict[str, Any], key: str) -> tuple[dict[str, Any], float]:
            return {"choices": choices, "usage": {"prompt_tokens": 8, "completion_tokens": 4}}, 0.5

    provider = OpenAIProvider(Client(), "m")  # type: ignore[arg-type]
    assert asyncio.run(provider.answer(make_ask(image_file(tmp_path, "PNG")))) == answer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_vlm(tmp_path_factory.mktemp("model"))


def answers(provider: TransformersProvider, requests: list[Request]) -> list[Answer]:
    async def inside() -> list[Answer]:
        return await asyncio.gather(*(provider.answer(request) for request in requests))

    return asyncio.run(inside())


def test_a_local_model_answers(tmp_path, model):
    requests = [make_ask(image_file(tmp_path, "PNG", (shade, 30, 200))) for shade in (10, 200)]
    provider = TransformersProvider(str(model), 1, "cpu")
    first, second = answers(provider, requests)
    assert first.text and first.completion_tokens == 8 and first.finish == "length" and first.prompt_tokens > 100
    # Sampling follows the seed.
    assert [a.text for a in answers(provider, requests)] == [first.text, second.text]
    others = {answers(provider, [make_ask(tmp_path / "10.png", 1.5, seed)])[0].text for seed in range(4)}
    assert len(others) > 1


def test_a_batch_says_what_single_asks_say(tmp_path, model):
    paths = [image_file(tmp_path, "PNG", (shade, 30, 200)) for shade in (10, 90, 200)]
    requests = [make_ask(path, 0.0) for path in paths]
    alone = answers(TransformersProvider(str(model), 1, "cpu"), requests)
    provider = TransformersProvider(str(model), 3, "cpu")
    sizes: list[int] = []
    generate = provider._generate

    def counted(requests: list[Request]) -> list[Answer]:
        sizes.append(len(requests))
        return generate(requests)

    provider._generate = counted  # type: ignore[method-assign]
    together = answers(provider, [*requests, make_ask(paths[0], 0.9)])
    assert [a.text for a in together[:3]] == [a.text for a in alone]
    # Another temperature makes another batch.
    assert sizes == [3, 1]


def test_a_model_that_fails_tells_each_ask(tmp_path, model):
    provider = TransformersProvider(str(model), 2, "cpu")

    def fail(requests: list[Request]) -> list[Answer]:
        raise MemoryError("no room")

    provider._generate = fail  # type: ignore[method-assign]
    requests = [make_ask(image_file(tmp_path, "PNG", (shade, 30, 200))) for shade in (10, 90, 200)]

    async def inside() -> list[Any]:
        return await asyncio.gather(*(provider.answer(request) for request in requests), return_exceptions=True)

    assert [type(outcome) for outcome in asyncio.run(inside())] == [MemoryError] * 3


def test_models_that_cannot_be_used(tmp_path):
    with pytest.raises(RuntimeError, match="the vision-language model '.*none' cannot be loaded; give a local folder"):
        TransformersProvider(str(tmp_path / "none"), 1, "cpu")
    with pytest.raises(RuntimeError, match="has no chat template, so it cannot be prompted"):
        TransformersProvider(str(save_tiny_vlm(tmp_path / "model", None)), 1, "cpu")
