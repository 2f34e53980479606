"""Two texts for every training image, one about the person and one about the clothes, from a multimodal model.

Writes OUT/descriptions.jsonl, which training reads (--data.descriptions), OUT/answers.jsonl, every answer that was ever paid
for, and OUT/generation.json, what the texts are made with. The same command goes on where an interrupted one ended.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from training import cli
from training.config import DataConfig
from training.data.datasets import read_records
from training.describe.inputs import Styles, claim, drop_unusable, no_styles, read_styles, to_items
from training.describe.progress import Reporter, show_summary
from training.describe.template import VERSION, TemplateProvider, read_scenes
from training.fields import Stage, Within
from training.semantics.client import Client, Service, read_key
from training.semantics.generation import Generator, Item, Judge, Sampling, Tally, Task
from training.semantics.pacing import Budget, BudgetSpent, Halt, Meter
from training.semantics.prompts import Prompt, build_prompt, load_schema
from training.semantics.providers import OpenAIProvider, Provider, TransformersProvider
from training.semantics.quality import Limits, NearDuplicates
from training.semantics.schema import KINDS, Kind, Schema
from training.semantics.store import Answers, Records

# Images whose answers tell what the rest will cost.
PILOT = 5


@dataclass(frozen=True)
class Texts(Stage):
    """What is asked for, and what is accepted."""

    # Folder of `python -m training.describe styles`; without it all texts are in one neutral style.
    styles: Path | None = None
    # Captions that the prompt shows of a style.
    examples: Annotated[int, Within(0, 10)] = 5
    # Attribute schema, in place of the package's own; sensitive attributes that no text may mention.
    schema: Path | None = None
    leave_out: tuple[str, ...] = ()
    # Words that the prompt asks for, and that a text may have; attributes that it must cover.
    target_words: tuple[int, int] = (10, 45)
    words: tuple[int, int] = Limits().words
    attributes: Annotated[int, Within(1)] = Limits().attributes
    # Reject "appears to be", "possibly" and the like.
    hedging: bool = False


@dataclass(frozen=True)
class Options(Stage):
    """Options of one generation."""

    name: Annotated[Literal["cuhk-pedes", "icfg-pedes", "rstpreid", "own"], tyro.conf.Positional]
    root: Annotated[Path, tyro.conf.Positional]
    out: Path
    # An OpenAI-compatible server; a local model of transformers; or, for synthetic sets, templates.
    provider: Literal["openai", "transformers", "template"] = "openai"
    # Name at the server, or name or folder for transformers.
    model: str = ""
    # Images of val and test get texts for the protocol gallery-text only: with --for-gallery, in OUT/gallery-SPLIT.jsonl.
    split: Literal["train", "val", "test"] = "train"
    for_gallery: bool = False
    # Images of this run at most; 0: all.
    limit: Annotated[int, Within(0)] = 0
    # Do not ask before spending.
    yes: bool = False
    # Forget the records that are not "ok" and try these images again, with more attempts than before or after a failure.
    again: bool = False
    # Of transformers: asks at a time, and torch device.
    batch: Annotated[int, Within(1, 1024)] = 1
    device: str = "cpu"
    texts: Texts = field(default_factory=Texts)
    sampling: Sampling = field(default_factory=Sampling)
    service: Service = field(default_factory=Service)
    budget: Budget = field(default_factory=Budget)

    def check(self) -> None:
        self.require(bool(self.model) or self.provider == "template", "model", f"given for the provider {self.provider}")
        if self.split != "train" and not self.for_gallery:
            raise ValueError(
                f"no text is generated from images of the {self.split} split, which holds queries; --for-gallery makes "
                "texts of gallery images for the protocol gallery-text, in a file of their own"
            )
        self.require(self.split != "train" or not self.for_gallery, "for_gallery", "off for the train split")


@dataclass(frozen=True)
class Result:
    """What a generation has come to."""

    descriptions: Path
    # Records by status, earlier runs included, and images that have none yet.
    statuses: dict[str, int]
    left: int
    # Why it ended before the last image; "" if it did not.
    stopped: str


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `generate` raises."""
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    options = tyro.cli(
        Options, args=argv, prog="python -m training.describe generate", description=__doc__, config=flat
    )
    console = Console(stderr=True)
    result = generate(options, os.environ, console, _confirm)
    if result.stopped:
        console.print(f"{result.stopped}; run the same command with a larger budget to go on", highlight=False)
    print(result.descriptions)


def _confirm(question: str) -> bool:
    """Asks on a terminal. Raises ValueError where there is none."""
    if not sys.stdin.isatty():
        raise ValueError(f"{question} Nobody can be asked here; --yes goes on without asking")
    return input(f"{question} Go on? [y/N] ").strip().lower() in ("y", "yes")


def generate(
    options: Options,
    environment: Mapping[str, str],
    console: Console,
    confirm: Callable[[str], bool],
) -> Result:
    """Generates what is missing. `confirm` is asked before money is spent, unless options.yes.

    Raises what reading the data, the styles and the schema raises, ValueError for texts of other settings in the folder,
    RuntimeError when another process works there, and Stopped when the server refuses or fails for good.
    """
    fields: dict[str, Any] = {"dataset": options.name, "root": str(options.root)}
    records = read_records(DataConfig(**fields))[options.split]
    texts = options.texts
    styles = read_styles(texts.styles, texts.examples) if texts.styles else no_styles()
    schema = load_schema(texts.schema)
    task = _task(options, schema.without(texts.leave_out) if texts.leave_out else schema, styles)
    key = read_key(options.service, environment) if options.provider == "openai" else ""
    items = to_items(records, styles)
    local = _local_provider(options, items, styles)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = "descriptions" if options.split == "train" else f"gallery-{options.split}"
    path = options.out / f"{stem}.jsonl"
    answers = Answers(options.out / "answers.jsonl")
    try:
        claim(options.out / "generation.json", _settings(options, task, styles))
        if options.again and path.exists():
            console.print(f"{drop_unusable(path)} images are tried again", highlight=False)
        stored = Records(path)
        try:
            return asyncio.run(_Run(options, task, items, answers, stored, console, confirm).go(local, key))
        finally:
            stored.lines.close()
    finally:
        answers.lines.close()


def _task(options: Options, schema: Schema, styles: Styles) -> Task:
    texts = options.texts

    @lru_cache(maxsize=None)
    def prompt(kind: Kind, style: int) -> Prompt:
        return build_prompt(schema, kind, styles.examples[style], texts.target_words)

    limits = Limits(texts.words, texts.attributes, texts.hedging)
    # Rendered people of one description exist, and a template would say the same again.
    near = None if options.provider == "template" else NearDuplicates()
    params: dict[str, Any] = {"provider": options.provider}
    if options.provider == "template":
        params["version"] = VERSION
    return Task(options.model or "template", params, options.sampling, prompt, Judge(schema, limits, near))


def _settings(options: Options, task: Task, styles: Styles) -> dict[str, Any]:
    """What the texts in a folder have in common."""
    texts = {name: value for name, value in asdict(options.texts).items() if name not in ("styles", "schema")}
    return {
        "name": options.name,
        "model": task.model,
        "params": task.params,
        "texts": {name: list(value) if isinstance(value, tuple) else value for name, value in texts.items()},
        "styles": styles.digest,
        "prompts": {str(style): task.prompt_hash(style) for style in sorted(styles.sizes)},
    }


def _local_provider(options: Options, items: Sequence[Item], styles: Styles) -> Provider | None:
    if options.provider == "template":
        return TemplateProvider(read_scenes(options.root, [item.file_path for item in items]), styles.examples)
    if options.provider == "transformers":
        return TransformersProvider(options.model, options.batch, options.device)
    return None


@dataclass
class _Run:
    """One generation inside its event loop."""

    options: Options
    task: Task
    items: list[Item]
    answers: Answers
    records: Records
    console: Console
    confirm: Callable[[str], bool]
    tally: Tally = field(default_factory=Tally)

    async def go(self, local: Provider | None, key: str) -> Result:
        options, stored = self.options, self.answers
        self._count_earlier()
        todo = [item for item in self.items if item.file_path not in self.records.done]
        todo = todo[: options.limit or None]
        meter = Meter(
            options.budget, len(stored), stored.counted, stored.prompt_tokens, stored.completion_tokens, stored.seconds
        )
        halt = Halt()
        client = Client(options.service, key, meter, halt)
        async with client:
            provider = local or OpenAIProvider(client, options.model)
            with Reporter(len(todo), meter, self.tally, self.console) as reporter:
                work = Generator(self.task, provider, stored, self.records, meter, halt, reporter.recorded)
                first = PILOT if local is None and not stored.counted else 0
                await work.run(todo[:first])
            rest = todo[first:]
            if rest and halt.error is None and local is None:
                self._ask_leave(meter, len(rest))
            with Reporter(len(rest), meter, self.tally, self.console) as reporter:
                await replace_reporter(work, reporter).run(rest)
        return self._result(meter, halt)
