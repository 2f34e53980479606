"""Writes the model of a run as a folder for others: `python -m training.export RUN FOLDER`.

--form onnx: both encoders as ONNX, with which search, gallery and page need no PyTorch. --form weights: safetensors,
configuration, tokenizer, preprocessing and a model card, which need neither the run nor its data;
`training.export.person_search.PersonSearch.from_pretrained(FOLDER)` loads them, `hf upload NAME FOLDER` publishes them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

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
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    # ONNX, or weights for PyTorch.
    form: Literal["onnx", "weights"] = "onnx"


def main(argv: Sequence[str]) -> None:
    """Entry point. Raises FileExistsError for a folder that is not empty, and what reading the run and exporting raise."""
    arguments = cli.parse(Arguments, argv, "training.export", __doc__)
    out = arguments.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"FOLDER {out} already exists and is not an empty folder")
    if arguments.form == "onnx":
        _write_onnx(arguments.run, out)
    else:
        _write_weights(arguments.run, out)


def _write_onnx(run_dir: Path, out: Path) -> None:
    # Not at the top: --help need not wait for torch.
    from training.export.to_onnx import export_run

    parity = export_run(run_dir, out)
    print(
        f"{out}: largest difference from PyTorch {parity.image_difference:.1e} of {parity.images} images, "
        f"{parity.text_difference:.1e} of {parity.texts} texts; one thread: "
        f"image {1e3 * parity.image_seconds:.1f} ms (PyTorch {1e3 * parity.image_seconds_torch:.1f}), "
        f"text {1e3 * parity.text_seconds:.1f} ms (PyTorch {1e3 * parity.text_seconds_torch:.1f})"
    )


def _write_weights(run_dir: Path, out: Path) -> None:
    from training.engine.checkpoint import load_run
    from training.evaluation.run_folder import Run
    from training.export.model_card import model_card
    from training.export.person_search import PersonSearch

    run = Run(run_dir)
    trained = load_run(run_dir, device="cpu")
    evaluation = run.evaluation if run.is_finished else None
    with folder_lock(out):
        PersonSearch.of_run(trained).save_pretrained(out)
        write_bytes(out / "README.md", model_card(trained, evaluation).encode())
    print(out)


if __name__ == "__main__":
    sys.exit(cli.run(main))
