"""Build, tests, sanitizer and benchmark of the kernels on a machine with a GPU: `make gpu`, or `python3 -m bench.gpu`.

Checks the machine, then runs the steps of bench/gpu/plan.py, each within its share of ten minutes; `--plan` prints them and
needs no GPU. Logs are written to build/gpu/, rows to bench/results/, and both as one archive to the folder RESULTS, where it is
set. Exit code 2: unsuitable machine; 1: a step failed; 0: all steps passed.

Needs only torch, setuptools, ninja and pytest (triton comes with torch), and neither git nor a network.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

from bench.gpu import archive, plan, steps
from bench.gpu.commands import Commands
from bench.gpu.steps import Outcome, Run, say
from bench.harness import results

SKIPPABLE = ("build", "sanitizer", "peers", "bench", "tune", "training", "pipeline")


def obstacles() -> list[str]:
    """Reasons why this machine is unsuitable; empty if it is suitable."""
    found = []
    if torch.version.cuda is None:
        found.append(f"torch {torch.__version__} is not a CUDA build; GPU_PYTHON={sys.executable} must have one")
    elif not torch.cuda.is_available():
        found.append("this PyTorch finds no GPU (is the driver loaded? try nvidia-smi)")
    # A CPU build of torch has no CUDA_HOME, whatever is installed.
    places = ["nvcc", *([f"{cpp_extension.CUDA_HOME}/bin/nvcc"] if cpp_extension.CUDA_HOME else [])]
    if not any(shutil.which(place) for place in places):
        found.append("nvcc was not found; install the CUDA toolkit or set CUDA_HOME")
    if not cpp_extension.is_ninja_available():
        found.append("ninja was not found; install it with `pip install ninja` and have its folder on the PATH")
    for package in ("setuptools", "pytest"):
        if importlib.util.find_spec(package) is None:
            found.append(f"the package {package} is not installed for {sys.executable}")
    return found


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu", description=__doc__)
    parser.add_argument("--plan", action="store_true", help="print the steps with their times, and run nothing")
    parser.add_argument("--cores", type=int, default=plan.CORES, help="of the machine that --plan is about")
    parser.add_argument("--skip", nargs="*", default=[], choices=SKIPPABLE, help="steps to leave out")
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"], choices=["cuda", "triton"])
    return parser.parse_args(words)


def run_steps(options: argparse.Namespace) -> list[Outcome]:
    """Runs the plan. Where the build fails, Triton continues alone: it needs none."""
    cores = os.cpu_count() or 1
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, {cores} cores")
    if cores < plan.CORES:
        say(f"the shares are for {plan.CORES} cores: here some steps may be stopped, and their cases are not measured")
    planned = [step for step in plan.all_steps() if step.name not in plan.IN_PROCESS]
    within = [plan.without(step, plan.IN_PROCESS) for step in planned]
    return Run(within, Commands(steps.LOGS, options.backends, options.skip), steps.LOGS).all()


def main() -> None:
    """Checks the machine, runs all steps, and exits with the list of those that failed."""
    options = arguments()
    if options.plan:
        say("\n".join(plan.lines(options.cores)))
        return
    reasons = obstacles()
    folder = os.environ.get("RESULTS")
    if folder:
        reasons += archive.obstacles(Path(folder))
    if reasons:
        say(
            "make gpu needs a machine with an NVIDIA GPU, a CUDA build of torch, nvcc and ninja:\n* "
            + "\n* ".join(reasons)
        )
        sys.exit(2)
    archive.clear(steps.LOGS)
    try:
        outcomes = run_steps(options)
    finally:
        if folder:
            say(f"rows and logs: {archive.pack(steps.LOGS, results.RESULTS, Path(folder))}")
    failed = [outcome.name for outcome in outcomes if not outcome.passed]
    say(f"failed or stopped: {', '.join(failed)}" if failed else "all steps passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
