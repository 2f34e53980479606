"""Text-to-image person re-identification, from data to pages of results."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training.utils import cli

COMMANDS = {
    "prepare": (
        "training.prepare",
        "renders the synthetic pedestrians; checks or packs a data set; shows the form of own data",
    ),
    "describe": ("training.describe.__main__", "generates the texts of training images, in the styles of the captions"),
    "train": ("training.train", "trains a recipe, or the configuration of another run, into a run folder"),
    "evaluate": ("training.evaluate", "evaluates the test split of a run, once"),
    "search": ("training.search", "finds the images that a text describes"),
    "export": ("training.export.__main__", "writes the model of a run for others: ONNX, or weights with a model card"),
    "serve": ("training.serve", "serves the page on which a gallery is searched"),
    "gallery": ("training.gallery", "embeds folders of images into a gallery that grows"),
    "disentangle": ("training.disentangle.__main__", "measures how far identity and clothing are separated in runs"),
    "experiment": (
        "training.experiment.__main__",
        "trains and compares the rows of the paper's tables over several seeds",
    ),
    "report": ("training.report.__main__", "writes the page of a run or of an experiment"),
}


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first word names, or lists all. Raises ValueError for an unknown name."""
    cli.dispatch(COMMANDS, argv, "training", __doc__)


if __name__ == "__main__":
    sys.exit(cli.run(main))
