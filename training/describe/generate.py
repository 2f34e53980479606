"""Two texts for every training image, one about the person and one about the clothes, from a multimodal model.

Writes OUT/descriptions.jsonl, which training reads (--data.descriptions), OUT/answers.jsonl, every answer that was ever paid
for, and OUT/generation.json, what the texts are made with. The same command goes on where an interrupted one ended.
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
from training.describe.generation import Item, Judge, Task
from training.describe.inputs import Styles, claim, drop_unusable, no_styles, read_styles, to_items
from training.describe.llm.answer_store import Answers, Records
from training.describe.llm.client import Service, read_key
from training.describe.llm.executor import Sampling
from training.describe.llm.limits import Budget
from training.describe.llm.providers import Provider, TransformersProvider
from training.describe.session import Online, Result, Run
from training.describe.text.prompts import Prompt, build_prompt, load_schema
from training.describe.text.schema import Kind, Schema
from training.describe.text.text_checks import Limits, NearDuplicates
from training.utils import cli

# Part of what an answer of the provider template depends on: raise it when the templates change.
TEMPLATES = 1


@dataclass(frozen=True)
class Texts(Stage):
    """What is asked for, and what is accepted."""

    # Folder of `python -m training.describe styles`; without it all texts are in one neutral style.
    styles: Path | None = None
    # Captions that the prompt shows of a style.
    examples: Annotated[int, Within(0, 10)] = 5
    # Attribute schema, in place of the package's own.
    schema: Path | None = None
    # Sensitive attributes that no text may mention.
    leave_out: tuple[str, ...] = ()
    # Words that the prompt asks for.
    target_words: tuple[int, int] = (10, 45)
    # Words that a text may have.
    words: tuple[int, int] = Limits().words
    # Attributes that a text must cover.
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
    # Name at the server, or name or folder for transformers.
    model: str = ""
    # Training needs texts of train only. Images of val and test get some with --for-gallery.
    split: Literal["train", "val", "test"] = "train"
    # Texts of gallery images for the protocol gallery-text, in OUT/gallery-SPLIT.jsonl.
    for_gallery: bool = False
    # Images of this run at most; 0: all.
    limit: Annotated[int, Within(0)] = 0
    # Do not ask before spending.
    yes: bool = False
    # Forget the records that are not "ok" and try these images again: after a failure, or with more attempts.
    again: bool = False
    # Of transformers: asks at a time.
    batch: Annotated[int, Within(1, 1024)] = 1
    # Of transformers: torch device.
    device: str = "cpu"
    # What is asked for, and what is accepted.
    texts: Texts = field(default_factory=Texts)
    # How a model is asked, and how often.
    sampling: Sampling = field(default_factory=Sampling)
    # The server, and how fast it is asked.
    service: Service = field(default_factory=Service)
    # Prices and limits.
    budget: Budget = field(default_factory=Budget)

    def check(self) -> None:
        self.require(
            bool(self.model) or self.provider == "template", "model", f"given for the provider {self.provider}"
        )
        if self.split != "train" and not self.for_gallery:
            raise ValueError(
                f"no text is generated from images of the {self.split} split, which holds queries; --for-gallery makes "
                "texts of gallery images for the protocol gallery-text, in a file of their own"
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
    if result.stopped:
        console.print(f"{result.stopped}; the same command goes on with the {result.left} images left", highlight=False)
    print(result.descriptions)


def confirm(question: str) -> bool:
    """Asks on a terminal. Raises ValueError where there is none."""
    if not sys.stdin.isatty():
        raise ValueError(f"{question} Nobody can be asked here; --yes goes on without asking")
    return input(f"{question} Go on? [y/N] ").strip().lower() in ("y", "yes")


def generate(
    options: Options,
    environment: Mapping[str, str],
    console: Console,
    leave: Callable[[str], bool],
) -> Result:
    """Generates what is missing. `leave` is asked for before money is spent, unless options.yes.

    Raises what reading the data, the styles and the schema raises, ValueError for texts of other settings in the folder,
    RuntimeError when another process works there, and Stopped when the server refuses or fails for good.
    """
    fields: dict[str, Any] = {"dataset": options.source.name, "root": str(options.source.root)}
    records = read_records(DataConfig(**fields))[options.split]
    texts = options.texts
    styles = read_styles(texts.styles, texts.examples) if texts.styles else no_styles()
    schema = load_schema(texts.schema)
    task = _task(options, schema.without(texts.leave_out) if texts.leave_out else schema, styles)
    items, made_with = to_items(records, styles), _settings(options, task, styles)
    provider = _provider(options, items, styles, environment)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = "descriptions" if options.split == "train" else f"gallery-{options.split}"
    path = options.out / f"{stem}.jsonl"
    answers = Answers(options.out / "answers.jsonl")
    try:
        claim(options.out / "generation.json", made_with)
        if options.again and path.exists():
            console.print(f"{drop_unusable(path)} images are tried again", highlight=False)
        stored = Records(path)
        try:
            run = Run(task, items, options.limit, answers, stored, options.budget, console)
            return asyncio.run(run.go(provider, (lambda told: True) if options.yes else leave))
        finally:
            stored.lines.close()
    finally:
        answers.lines.close()


def _task(options: Options, schema: Schema, styles: Styles) -> Task:
    texts = options.texts

    @cache
    def prompt(kind: Kind, style: int) -> Prompt:
        return build_prompt(schema, kind, styles.examples[style], texts.target_words)

    limits = Limits(texts.words, texts.attributes, texts.hedging)
    # Rendered people of one description exist, and a template would say the same again.
    near = None if options.provider == "template" else NearDuplicates()
    params: dict[str, Any] = {"provider": options.provider}
    if options.provider == "template":
        params["version"] = TEMPLATES
    return Task(options.model or "template", params, options.sampling, prompt, Judge(schema, limits, near))


def _settings(options: Options, task: Task, styles: Styles) -> dict[str, Any]:
    """What the texts in a folder have in common."""
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
    options: Options, items: Sequence[Item], styles: Styles, environment: Mapping[str, str]
) -> Provider | Online:
    if options.provider == "openai":
        return Online(options.service, read_key(options.service, environment), options.model)
    if options.provider == "transformers":
        return TransformersProvider(options.model, options.batch, options.device)
    # It imports scikit-learn, which no other provider needs.
    from training.describe.template_provider import TemplateProvider, read_scenes

    return TemplateProvider(read_scenes(options.source.root, [item.file_path for item in items]), styles.examples)


if __name__ == "__main__":
    sys.exit(cli.run(main))
