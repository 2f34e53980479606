"""The whole pipeline on one device, command by command as a user gives them: `python -m bench.pipeline.whole --device cuda`.

Renders a small set, trains on it, evaluates, measures the disentanglement, builds a gallery and searches it; then evaluates and
continues the same run on the CPU, where its numbers must be those of the card. `make gpu` runs it; it prints the times.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.harness.results import ROOT

# Largest difference in R-1 and mAP, in points, between two devices: other rounding swaps neighbours of nearly equal scores.
ALLOWED = 1.0
PROTOCOLS = ("dual", "identity", "rerank")


def run(words: Sequence[str]) -> str:
    """The output of `python -m training.WORDS`. Prints its seconds; raises RuntimeError with its last words if it fails."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"training.{words[0]}", *words[1:]], cwd=ROOT, capture_output=True, text=True
    )
    print(f"{time.perf_counter() - started:7.1f} s  {' '.join(words)}", flush=True)
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def results(run_dir: Path) -> dict[str, float]:
    """R-1 and mAP of every protocol evaluated in a run, in points."""
    found = {}
    for path in sorted(run_dir.glob("eval*.json")):
        metrics = json.loads(path.read_text())["metrics"]
        found |= {f"{path.stem} {name}": metrics[name] for name in ("R1", "mAP")}
    return found


def speed(run_dir: Path) -> str:
    """Images a second of the steps of a run, the median, and the peak memory of its training, as text."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    seconds = median(line["seconds"] / line["images"] for line in lines if line["kind"] == "step")
    memory = json.loads((run_dir / "resources.json").read_text())["memory_mb"]
    return f"{1 / seconds:.0f} images a second, {memory:.0f} MB"


def differences(found: dict[str, float], expected: dict[str, float]) -> list[str]:
    """Numbers that another device computes otherwise, as text."""
    lines = [f"{name}: {found.get(name, math.nan):.2f}, expected {value:.2f}" for name, value in expected.items()]
    far = [abs(found.get(name, math.inf) - value) > ALLOWED for name, value in expected.items()]
    return [line for line, is_far in zip(lines, far, strict=True) if is_far]


def evaluate(run_dir: Path, device: str) -> dict[str, float]:
    """Evaluates a run on a device."""
    run(["evaluate", str(run_dir), *(w for name in PROTOCOLS for w in ("--protocol", name)), "--device", device])
    return results(run_dir)


def stages(folder: Path, device: str, ids: int, epochs: int, more: Sequence[str]) -> list[str]:
    """Runs every stage in an empty folder; returns what is wrong.

    Args:
        ids: identities that are rendered, a tenth of them each for validation and test.
        epochs: of the training; one more is trained on the CPU.
        more: further words for `train`.
    """
    data, run_dir, gallery = str(folder / "data"), folder / "run", str(folder / "gallery")
    run(["prepare", "synthetic", data, "--ids", str(ids), "--val-ids", str(ids // 10), "--test-ids", str(ids // 10)])
    train = ["train", "synthetic", "--out", str(run_dir), "--data.root", data, *more, "--optim.epochs"]
    said = run([*train, str(epochs), "--device", device])
    print(next(line for line in said.splitlines() if line.startswith("device ")), speed(run_dir), sep="; ", flush=True)
    other = folder / "other"
    shutil.copytree(run_dir, other)
    found = evaluate(run_dir, device)
    print(", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
    run(["disentangle", str(run_dir), "--device", device])
    run(["gallery", "add", gallery, f"{data}/imgs", "--run", str(run_dir), "--device", device])
    words = ["search", str(run_dir), "a woman in a red coat", "--gallery", gallery, "--weak", "--json", "--device"]
    ranked = [[hit["path"] for hit in json.loads(run([*words, name]))["results"]] for name in (device, "cpu")]
    problems = differences(evaluate(other, "cpu"), found)
    if set(ranked[0][:1]) - set(ranked[1][:3]):
        problems.append(f"the best image is {ranked[0][0]} on {device}, and not among the first three on the CPU")
    train[train.index(str(run_dir))] = str(other)
    run([*train, str(epochs + 1), "--device", "cpu", "--resume", "--extend"])
    return problems


def main() -> None:
    """Runs all; exit code 1 where a stage fails or two devices disagree."""
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline.whole", description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "whole", help="emptied first")
    parser.add_argument("--ids", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=2)
    options, more = parser.parse_known_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    try:
        problems = stages(options.folder, options.device, options.ids, options.epochs, more)
    except RuntimeError as error:
        problems = [str(error)]
    sys.exit("\n".join(problems) if problems else 0)


if __name__ == "__main__":
    main()
