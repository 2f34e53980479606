"""Generates two texts for every training image, one about the person and one about the clothes, with a multimodal model.

Writes OUT/descriptions.jsonl, which training reads (--data.descriptions), OUT/answers.jsonl with every answer that was ever
paid for, and OUT/generation.json with the settings. The same command continues an interrupted generation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from training.config.fields import Stage, Within
from training.describe.llm.executor import Sampling
from training.describe.llm.limits import Budget
from training.describe.llm.service import Service
from training.describe.options import CheckOptions, confirm
from training.utils import cli


@dataclass(frozen=True)
class Texts(CheckOptions):
    """Requirements on the texts: style, attributes, length."""

    # Folder of `python -m training.describe styles`; without it all texts are in one neutral style.
    styles: Path | None = None
    # Example captions of the style in a prompt.
    examples: Annotated[int, Within(0, 10)] = 5
    # Smallest and largest number of words that the prompt asks for.
    target_words: tuple[int, int] = (10, 45)


@dataclass(frozen=True)
class Source:
    """Data set and its folder."""

    # Kind of the data set.
    name: Annotated[Literal["cuhk-pedes", "icfg-pedes", "rstpreid", "own"], tyro.conf.Positional]
    # Folder of the data set.
    root: Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class GenerationOptions(Stage):
    """Choice of the images, the model and the texts, which `export-requests` and `import-answers` share."""

    # Data set and its folder.
    source: Source
    # Folder to write to.
    out: Path
    # Model name on the server, or name or folder for transformers.
    model: str = ""
    # Training needs texts of train only; val and test require --for-gallery.
    split: Literal["train", "val", "test"] = "train"
    # Texts of gallery images for the protocol gallery-text, in OUT/gallery-SPLIT.jsonl.
    for_gallery: bool = False
    # Images of this run at most; 0: all.
    limit: Annotated[int, Within(0)] = 0
    # Remove the records that are not "ok" and retry these images: after a failure, or with more attempts.
    again: bool = False
    # Requirements on the texts.
    texts: Texts = field(default_factory=Texts)
    # Sampling parameters and number of attempts.
    sampling: Sampling = field(default_factory=Sampling)
    # Prices and spending limits.
    budget: Budget = field(default_factory=Budget)

    def check(self) -> None:
        if self.split != "train" and not self.for_gallery:
            raise ValueError(
                f"no text is generated from images of the {self.split} split, which holds queries; --for-gallery writes "
                "texts of gallery images for the protocol gallery-text, to a separate file"
            )
        self.require(self.split != "train" or not self.for_gallery, "for_gallery", "off for the train split")


@dataclass(frozen=True)
class Arguments(GenerationOptions):
    """Arguments of the command."""

    # An OpenAI-compatible server; a local model of transformers; or, for synthetic sets, templates.
    provider: Literal["openai", "transformers", "template"] = "openai"
    # Spend without asking for confirmation.
    yes: bool = False
    # Batch size of transformers.
    batch: Annotated[int, Within(1, 1024)] = 1
    # Device of transformers: auto (the first CUDA device where there is one, else the CPU), cpu, cuda or cuda:N.
    device: str = "auto"
    # Server, rate limits, timeouts and retries.
    service: Service = field(default_factory=Service)

    def check(self) -> None:
        needed = self.provider != "template"
        self.require(bool(self.model) or not needed, "model", f"given for the provider {self.provider}")
        super().check()


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `text_generation.generate` raises."""
    arguments = cli.parse(Arguments, argv, "training.describe generate", __doc__)
    # Not at the top: --help need not wait for them.
    from training.describe.text_generation import generate
    from training.utils.terminal import make_console

    console = make_console(stderr=True)
    result = generate(arguments, os.environ, console, confirm)
    if result.stop_reason:
        remedy = f"run the same command to continue with the remaining {result.remaining} images"
        console.print(f"{result.stop_reason}; {remedy}", highlight=False)
    print(result.descriptions)


if __name__ == "__main__":
    sys.exit(cli.run(main))
