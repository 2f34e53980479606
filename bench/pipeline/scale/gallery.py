"""A large gallery evaluated by several processes: `python -m bench.pipeline.scale.gallery --images 20000`.

Makes a set of tiny noise images with a caption each, trains a miniature model on it, evaluates it in one process and by ranks of
torchrun with one thread each, and compares all that eval.json and eval-queries.npz say. The seconds of both are those of
whole commands, with their start.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from bench.pipeline.reliability_stages import TINY, evaluated
from bench.pipeline.scale.kills import ROOT, finish, torchrun
from training.utils.io import write_json

HEIGHT, WIDTH, PER_PERSON = 32, 16, 4
COLOURS = "red green blue white black yellow brown pink grey purple orange violet".split()
CLOTHES = "coat shirt jacket sweater dress blouse".split()


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Images of the gallery, each with one query.
    images: int = 20_000
    # Processes that share the evaluation.
    ranks: int = 2
    # Seed of the images and captions.
    seed: int = 0


def make_set(root: Path, images: int, seed: int) -> None:
    """Writes a set in the layout of CUHK-PEDES: 24 training images, 12 of validation, and so many test images."""
    draw, records = np.random.default_rng(seed), []
    for split, count in {"train": 24, "val": 12, "test": images}.items():
        (root / "imgs" / split).mkdir(parents=True)
        for i in range(count):
            name = f"{split}/{i:06d}.jpg"
            colour = draw.integers(0, 256, 3)
            pixels = draw.integers(0, 64, (HEIGHT, WIDTH, 3)) + colour * 3 // 4
            Image.fromarray(pixels.astype(np.uint8)).save(root / "imgs" / name)
            words = [f"a person in a {draw.choice(COLOURS)} {draw.choice(CLOTHES)} and {draw.choice(COLOURS)} shoes"]
            person = len(records) // PER_PERSON + 1
            record = {"split": split, "captions": words, "file_path": name, "id": person}
            records.append(record | {"processed_tokens": [words[0].split()]})
    write_json(root / "reid_raw.json", records)


def alone(words: Sequence[str]) -> None:
    """Runs a command of the pipeline in one process, with one thread as torchrun gives. Raises CalledProcessError."""
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=own, check=True)


def result(run: Path, work: Path) -> Any:
    """Results of the evaluation of a run, which goes back to where it was before it."""
    found = evaluated(work)
    for path in (*run.glob("eval*"), *run.glob("calibration*"), *run.glob("diagnosis*")):
        path.unlink()
    return found


def main() -> None:
    """Entry point. Raises SystemExit with status 1 where the results differ."""
    arguments = tyro.cli(Arguments, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        root, run = work / "data", work / "run"
        make_set(root, arguments.images, arguments.seed)
        train = ["training.train", "synthetic-captions", "--out", str(run), "--data.root", str(root), *TINY]
        alone([*train, "--optim.epochs", "2"])
        begun = time.perf_counter()
        alone(["training.evaluate", str(run)])
        seconds = [time.perf_counter() - begun]
        one, begun = result(run, work), time.perf_counter()
        finish(torchrun("--standalone", "--nproc-per-node", str(arguments.ranks), "-m", "training.evaluate", str(run)))
        seconds.append(time.perf_counter() - begun)
        several = result(run, work)
    values, _ = one
    print(f"counts {values['counts']}; metrics of one process {values['metrics']}")
    same = several == one
    print(
        f"{arguments.ranks} ranks: every metric, count and rank of a query {'equal to the bit' if same else 'NOT equal'}"
    )
    print(f"seconds of the commands: one process {seconds[0]:.1f}, {arguments.ranks} ranks {seconds[1]:.1f}")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
