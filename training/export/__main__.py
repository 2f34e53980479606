"""Writes the model of a run as a folder for others: `python -m training.export RUN FOLDER`.

--form onnx: both encoders as ONNX, with which search, gallery and page need no PyTorch, and the fusion, where the run has one,
as fusion.pt2 for re-ranking with PyTorch and the operators, without the classes of the model. --form weights: safetensors,
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
    # ONNX with weights of 8 bits, a model with galleries of its own; prints the R-1 that is lost on the validation split.
    int8: bool = False


def main(argv: Sequence[str]) -> None:
    """Entry point. Raises FileExistsError for a folder that is not empty, and what reading the run and exporting raise."""
    arguments = cli.parse(Arguments, argv, "training.export", __doc__)
    out = arguments.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"FOLDER {out} already exists and is not an empty folder")
    if arguments.form == "onnx":
        _write_onnx(arguments.run, out, arguments.int8)
    elif arguments.int8:
        raise ValueError("--int8 is for --form onnx, got --form weights")
    else:
        _write_weights(arguments.run, out)


def _write_onnx(run_dir: Path, out: Path, int8: bool) -> None:
    # Not at the top: --help need not wait for torch.
    from training.export.to_onnx import export_run

    parity = export_run(run_dir, out, int8)
    print(
        f"{out}: largest difference from PyTorch {parity.image_difference:.1e} of {parity.images} images, "
        f"{parity.text_difference:.1e} of {parity.texts} texts; one thread: "
        f"image {1e3 * parity.image_seconds:.1f} ms (PyTorch {1e3 * parity.image_seconds_torch:.1f}), "
        f"text {1e3 * parity.text_seconds:.1f} ms (PyTorch {1e3 * parity.text_seconds_torch:.1f})"
    )
    if parity.fusion_difference is None:
        print("no fusion.pt2: the run was trained without a fusion and a matching head, so results cannot be re-ranked")
    else:
        print(f"fusion.pt2: largest difference {parity.fusion_difference:.1e} of {parity.pairs} pairs")
    if parity.r1_int8 is not None:
        print(f"int8: R-1 on the validation split {parity.r1_int8:.2f}, before {parity.r1:.2f}")


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
