"""Writes the model of a run as a folder for others: `python -m training.export RUN --out FOLDER`.

The folder holds weights (safetensors), configuration, tokenizer, preprocessing and a model card; it needs neither the run nor its
data. `training.export.person_search.PersonSearch.from_pretrained(FOLDER)` loads it, `hf upload NAME FOLDER` publishes it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.utils import cli
from training.utils.io import write_bytes
from training.utils.locks import folder_lock


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folder of `python -m training.train`.
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    # New or empty folder to write to.
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]


def main(argv: Sequence[str]) -> None:
    """Entry point. Raises FileExistsError for a folder that is not empty, and what reading the run raises."""
    arguments = cli.parse(Arguments, argv, "training.export", __doc__)
    # Not at the top: --help need not wait for torch.
    from training.engine.checkpoint import load_run
    from training.evaluation.run_folder import Run
    from training.export.model_card import model_card
    from training.export.person_search import PersonSearch

    out, run = arguments.out, Run(arguments.run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"--out {out} already exists and is not an empty folder")
    trained = load_run(arguments.run, device="cpu")
    evaluation = run.evaluation if run.is_finished else None
    with folder_lock(out):
        PersonSearch.of_run(trained).save_pretrained(out)
        write_bytes(out / "README.md", model_card(trained, evaluation).encode())
    print(out)


if __name__ == "__main__":
    sys.exit(cli.run(main))
