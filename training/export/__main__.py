"""Writes the model of a run as ONNX: `python -m training.export RUN DIR`; search and gallery then need no PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.utils import cli


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folder of `python -m training.train`.
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    # New folder for image.onnx, text.onnx, the tokenizer, preprocess.json and parity.json.
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]


def main(argv: Sequence[str]) -> None:
    """Entry point: exports, and prints how far the result is from PyTorch. Raises what `export_run` raises."""
    arguments = cli.parse(Arguments, argv, "training.export", __doc__)
    # Not at the top: --help need not wait for torch.
    from training.export.to_onnx import export_run

    parity = export_run(arguments.run, arguments.out)
    print(
        f"{arguments.out}: largest difference from PyTorch {parity.image_difference:.1e} of {parity.images} images, "
        f"{parity.text_difference:.1e} of {parity.texts} texts; one thread: "
        f"image {1e3 * parity.image_seconds:.1f} ms (PyTorch {1e3 * parity.image_seconds_torch:.1f}), "
        f"text {1e3 * parity.text_seconds:.1f} ms (PyTorch {1e3 * parity.text_seconds_torch:.1f})"
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
