"""Generates two texts for every training image, one about the person and one about the clothes, with a multimodal model.

Writes OUT/descriptions.jsonl, which training reads (--data.descriptions), OUT/answers.jsonl with every answer that was ever
paid for, and OUT/generation.json with the settings. The same command continues an interrupted generation.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from training.config import DataConfig
from training.config.fields import Stage, Within
from training.data.datasets import read_records
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
from training.describe.llm.client import Service, read_api_key
from training.describe.llm.executor import Sampling
from training.describe.llm.limits import Budget
from training.describe.llm.providers import Provider, TransformersProvider
from training.describe.session import GenerationResult, GenerationSession, ServerModel
from training.describe.text.prompts import Prompt, build_prompt, load_schema
from training.describe.text.schema import Kind, Schema
from training.describe.text.text_checks import Limits, NearDuplicates
from training.utils import cli

# Part of the settings of the provider template: increment when the templates change.
TEMPLATE_VERSION = 1


@dataclass(frozen=True)
class Texts(Stage):
    """Requirements on the texts: style, attributes, length."""

    # Folder of `python -m training.describe styles`; without it all texts are in one neutral style.
    styles: Path | None = None
    # Example captions of the style in a prompt.
    examples: Annotated[int, Within(0, 10)] = 5
    # Attribute schema, in place of the package's own.
    schema: Path | None = None
    # Sensitive attributes that no text may mention.
    leave_out: tuple[str, ...] = ()
    # Smallest and largest number of words that the prompt asks for.
    target_words: tuple[int, int] = (10, 45)
    # Smallest and largest number of words that a text may have.
    words: tuple[int, int] = Limits().words
    # Smallest number of attributes that a text must cover.
    attributes: Annotated[int, Within(1)] = Limits().attributes
    # Reject "appears to be", "possibly" and the like.
    hedging: bool = False


@dataclass(frozen=True)
class Source:
    """Data set and its folder."""

    name: Annotated[Literal["cuhk-pedes", "icfg-pedes", "rstpreid", "own"], tyro.conf.Positional]
    root: Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Options(Stage):
    """Options of one generation."""

    # Data set and its folder.
    source: Source
    # Folder to write to.
    out: Path
    # An OpenAI-compatible server; a local model of transformers; or, for synthetic sets, templates.
    provider: Literal["openai", "transformers", "template"] = "openai"
    # Model name on the server, or name or folder for transformers.
    model: str = ""
    # Training needs texts of train only; val and test require --for-gallery.
    split: Literal["train", "val", "test"] = "train"
    # Texts of gallery images for the protocol gallery-text, in OUT/gallery-SPLIT.jsonl.
    for_gallery: bool = False
    # Images of this run at most; 0: all.
    limit: Annotated[int, Within(0)] = 0
    # Spend without asking for confirmation.
    yes: bool = False
    # Remove the records that are not "ok" and retry these images: after a failure, or with more attempts.
    again: bool = False
    # Batch size of transformers.
    batch: Annotated[int, Within(1, 1024)] = 1
    # Torch device of transformers.
    device: str = "cpu"
    # Requirements on the texts.
    texts: Texts = field(default_factory=Texts)
    # Sampling parameters and number of attempts.
    sampling: Sampling = field(default_factory=Sampling)
    # Server, rate limits, timeouts and retries.
    service: Service = field(default_factory=Service)
    # Prices and spending limits.
    budget: Budget = field(default_factory=Budget)

    def check(self) -> None:
        self.require(
            bool(self.model) or self.provider == "template", "model", f"given for the provider {self.provider}"
        )
        if self.split != "train" and not self.for_gallery:
            raise ValueError(
                f"no text is generated from images of the {self.split} split, which holds queries; --for-gallery writes "
                "texts of gallery images for the protocol gallery-text, to a separate file"
            )
        self.require(self.split != "train" or not self.for_gallery, "for_gallery", "off for the train split")


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `generate` raises."""
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    options = tyro.cli(
        Options, args=argv, prog="python -m training.describe generate", description=__doc__, config=flat
    )
    console = Console(stderr=True)
    result = generate(options, os.environ, console, confirm)
    if result.stop_reason:
        remedy = f"run the same command to continue with the remaining {result.remaining} images"
        console.print(f"{result.stop_reason}; {remedy}", highlight=False)
    print(result.descriptions)


def confirm(question: str) -> bool:
    """Asks for a confirmation on the terminal. Raises ValueError where there is none."""
    if not sys.stdin.isatty():
        raise ValueError(f"{question} There is no terminal to confirm on; --yes continues without confirmation")
    return input(f"{question} Continue? [y/N] ").strip().lower() in ("y", "yes")


def generate(
    options: Options,
    environment: Mapping[str, str],
    console: Console,
    confirm_spending: Callable[[str], bool],
) -> GenerationResult:
    """Generates the missing texts. `confirm_spending` is asked before the rest of the money is spent, unless options.yes.

    Raises what reading the data, the styles and the schema raises, ValueError for texts with different settings in the folder,
    RuntimeError when another process works there, and StoppedError when the server refuses or fails for good.
    """
    fields: dict[str, Any] = {"dataset": options.source.name, "root": str(options.source.root)}
    records = read_records(DataConfig(**fields))[options.split]
    texts = options.texts
    styles = read_styles(texts.styles, texts.examples) if texts.styles else neutral_style()
    schema = load_schema(texts.schema)
    task = _task(options, schema.without(texts.leave_out) if texts.leave_out else schema, styles)
    items, settings = make_items(records, styles), _settings(options, task, styles)
    provider = _provider(options, items, styles, environment)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = "descriptions" if options.split == "train" else f"gallery-{options.split}"
    path = options.out / f"{stem}.jsonl"
    answers = AnswerStore(options.out / "answers.jsonl")
    try:
        record_settings(options.out / "generation.json", settings)
        if options.again and path.exists():
            console.print(f"{drop_failed_records(path)} images are retried", highlight=False)
        descriptions = DescriptionStore(path)
        try:
            session = GenerationSession(task, items, options.limit, answers, descriptions, options.budget, console)
            return asyncio.run(session.run(provider, (lambda question: True) if options.yes else confirm_spending))
        finally:
            descriptions.lines.close()
    finally:
        answers.lines.close()


def _task(options: Options, schema: Schema, styles: StyleTable) -> GenerationTask:
    texts = options.texts

    @cache
    def prompt(kind: Kind, style: int) -> Prompt:
        return build_prompt(schema, kind, styles.examples[style], texts.target_words)

    limits = Limits(texts.words, texts.attributes, texts.hedging)
    # Rendered people may share a description, and a template would then repeat its text.
    near_duplicates = None if options.provider == "template" else NearDuplicates()
    params: dict[str, Any] = {"provider": options.provider}
    if options.provider == "template":
        params["version"] = TEMPLATE_VERSION
    checker = TextChecker(schema, limits, near_duplicates)
    return GenerationTask(options.model or "template", params, options.sampling, prompt, checker)


def _settings(options: Options, task: GenerationTask, styles: StyleTable) -> dict[str, Any]:
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


def _provider(
    options: Options, items: Sequence[ImageItem], styles: StyleTable, environment: Mapping[str, str]
) -> Provider | ServerModel:
    if options.provider == "openai":
        return ServerModel(options.service, read_api_key(options.service, environment), options.model)
    if options.provider == "transformers":
        return TransformersProvider(options.model, options.batch, options.device)
    # Imports scikit-learn, which no other provider needs.
    from training.describe.template_provider import TemplateProvider, read_scenes

    return TemplateProvider(read_scenes(options.source.root, [item.file_path for item in items]), styles.examples)


if __name__ == "__main__":
    sys.exit(cli.run(main))
