"""Generation of the texts of a data set: prompts, provider, stores and settings of one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from rich.console import Console

from training.config import DataConfig
from training.data.datasets import read_records
from training.describe.generate import Arguments, GenerationOptions
from training.describe.generation import GenerationTask, ImageItem, TextChecker
from training.describe.inputs import (
    StyleTable,
    drop_failed_records,
    make_items,
    neutral_style,
    read_styles,
    record_settings,
)
from training.describe.llm.answer_store import AnswerStore, DescriptionStore
from training.describe.llm.client import read_api_key
from training.describe.llm.limits import UsageMeter
from training.describe.llm.providers import Provider, TransformersProvider
from training.describe.session import GenerationResult, GenerationSession, ServerModel
from training.describe.text.prompts import Prompt, build_prompt
from training.describe.text.schema import Kind
from training.describe.text.text_checks import NearDuplicates
from training.utils.io import remove_temporary

# Part of the settings of the provider template: increment when the templates change.
TEMPLATE_VERSION = 1


def generate(
    options: Arguments,
    environment: Mapping[str, str],
    console: Console,
    confirm_spending: Callable[[str], bool],
) -> GenerationResult:
    """Generates the missing texts. `confirm_spending` is asked before the rest of the money is spent, unless options.yes.

    Raises what `read_inputs` and `open_session` raise, and StoppedError when the server refuses or fails for good.
    """
    inputs = read_inputs(options, options.provider)
    provider = _provider(options, inputs, environment)
    with open_session(options, inputs, console) as session:
        return asyncio.run(session.run(provider, (lambda question: True) if options.yes else confirm_spending))


@dataclass(frozen=True)
class Inputs:
    """Images to be described, and everything else that their texts depend on."""

    task: GenerationTask
    items: list[ImageItem]
    styles: StyleTable
    # JSON values that all texts in a folder share.
    settings: dict[str, Any]


def read_inputs(options: GenerationOptions, provider: str) -> Inputs:
    """Reads data, styles and schema. Raises what reading them raises."""
    fields: dict[str, Any] = {"dataset": options.source.name, "root": str(options.source.root)}
    records = read_records(DataConfig(**fields))[options.split]
    texts = options.texts
    styles = read_styles(texts.styles, texts.examples) if texts.styles else neutral_style()
    task = _task(options, styles, provider)
    return Inputs(task, make_items(records, styles), styles, _settings(options, task, styles))


@contextmanager
def open_session(options: GenerationOptions, inputs: Inputs, console: Console) -> Iterator[GenerationSession]:
    """The session of a folder, which no other process uses meanwhile.

    Raises ValueError for texts with different settings in the folder, RuntimeError when another process works there.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    stem = "descriptions" if options.split == "train" else f"gallery-{options.split}"
    path = options.out / f"{stem}.jsonl"
    answers = AnswerStore(options.out / "answers.jsonl")
    try:
        record_settings(options.out / "generation.json", inputs.settings)
        if options.again and path.exists():
            console.print(f"{drop_failed_records(path)} images are retried", highlight=False)
        descriptions = DescriptionStore(path)
        try:
            meter = UsageMeter(options.budget, answers)
            yield GenerationSession(inputs.task, inputs.items, options.limit, answers, descriptions, meter, console)
        finally:
            descriptions.lines.close()
        remove_temporary(options.out)
    finally:
        answers.lines.close()


def _task(options: GenerationOptions, styles: StyleTable, provider: str) -> GenerationTask:
    target_words = options.texts.target_words
    schema, limits = options.texts.load()

    @cache
    def prompt(kind: Kind, style: int) -> Prompt:
        return build_prompt(schema, kind, styles.examples[style], target_words)

    # Rendered people may share a description, and a template would then repeat its text.
    near_duplicates = None if provider == "template" else NearDuplicates()
    params: dict[str, Any] = {"provider": provider}
    if provider == "template":
        params["version"] = TEMPLATE_VERSION
    checker = TextChecker(schema, limits, near_duplicates)
    return GenerationTask(options.model or "template", params, options.sampling, prompt, checker)


def _settings(options: GenerationOptions, task: GenerationTask, styles: StyleTable) -> dict[str, Any]:
    """Settings that all texts in a folder share."""
    texts = {name: value for name, value in asdict(options.texts).items() if name not in ("styles", "schema")}
    return {
        "name": options.source.name,
        "model": task.model,
        "params": task.params,
        "texts": {name: list(value) if isinstance(value, tuple) else value for name, value in texts.items()},
        "styles": styles.digest,
        "prompts": {str(style): task.prompt_hash(style) for style in sorted(styles.sizes)},
    }


def _provider(options: Arguments, inputs: Inputs, environment: Mapping[str, str]) -> Provider | ServerModel:
    if options.provider == "openai":
        return ServerModel(options.service, read_api_key(options.service, environment), options.model)
    if options.provider == "transformers":
        return TransformersProvider(options.model, options.batch, options.device)
    # Imports scikit-learn, which no other provider needs.
    from training.describe.template_provider import TemplateProvider, read_scenes

    scenes = read_scenes(options.source.root, [item.file_path for item in inputs.items])
    return TemplateProvider(scenes, inputs.styles.examples)
