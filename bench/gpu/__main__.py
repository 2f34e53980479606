"""Build, tests, sanitizer and benchmark of the kernels on a machine with a GPU: `make gpu`, or `python3 -m bench.gpu`.

Checks the machine, builds the CUDA kernels in place for its GPU, runs the GPU tests (each operator and backend in a
process of its own, in parallel), the small ones again under compute-sanitizer, and measures what passed its tests. Logs are
written to build/gpu/, rows to bench/results/. Exit code 2: unsuitable machine; 1: a step failed; 0: all steps passed.

Needs only torch, setuptools and pytest (triton comes with torch), and no network.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

import torch
from torch.utils import cpp_extension

from bench.gpu import steps
from bench.gpu.steps import RESERVE, TAIL, Clock, Outcome, Step, execute, say, start, stop

# Time limit of each step, seconds.
BUILD, TESTS, SANITIZER, BENCH = 240.0, 200.0, 90.0, 210.0
FILES = {
    "selective_scan": "tests/gpu/test_selective_scan.py",
    "causal_conv1d": "tests/gpu/test_causal_conv1d.py",
    "updates": "tests/gpu/test_updates.py",
    "hsic": "tests/gpu/test_hsic.py",
}
BACKENDS = {"selective_scan": ("cuda", "triton"), "causal_conv1d": ("cuda", "triton"), "updates": ("cuda", "triton")}
BACKENDS["hsic"] = ("triton",)
# Processes for the tests of an operator and backend where one would take too long: Triton compiles some hundred variants.
SHARES = {("selective_scan", "triton"): 4, ("causal_conv1d", "triton"): 2, ("hsic", "triton"): 2}
SHARES[("selective_scan", "cuda")] = 2


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
    for package in ("setuptools", "pytest"):
        if importlib.util.find_spec(package) is None:
            found.append(f"the package {package} is not installed for {sys.executable}")
    return found


def build_step() -> Step:
    """Step that builds both extensions in place, the CUDA kernels for this GPU only, on all cores."""
    major, minor = torch.cuda.get_device_capability()
    environment = {
        "BDAM_FAST_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}",
        "MAX_JOBS": str(os.cpu_count() or 1),
    }
    return Step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], environment)


def load_step() -> Step:
    """Step that loads the built extension."""
    code = "from bdam_fast import _native; print(_native.cuda_extension().__file__)"
    return Step("load", [sys.executable, "-c", code])


def test_steps(backends: Sequence[str]) -> list[Step]:
    """Steps of the GPU tests, one process or more for each operator and backend."""
    made = []
    pairs = [(name, backend) for name in FILES for backend in BACKENDS[name] if backend in backends]
    for op, backend in pairs:
        shares = SHARES.get((op, backend), 1)
        for number in range(1, shares + 1):
            environment = {"BDAM_FAST_GPU_TESTS": "required", "BDAM_FAST_GPU_BACKENDS": backend}
            environment |= {"BDAM_FAST_GPU_SHARE": f"{number}/{shares}", "OMP_NUM_THREADS": "1"}
            options = ["--tb=short", "--maxfail=10", "-p", "no:cacheprovider"]
            command = [sys.executable, "-m", "pytest", FILES[op], *options]
            made.append(Step(f"test-{op}-{backend}-{number}", command, environment))
    return made


def sanitizer_steps(backends: Sequence[str]) -> list[Step]:
    """Steps of compute-sanitizer: small cases under memcheck, those of the CUDA kernels with channels and groups under racecheck.

    Every tensor is an allocation of its own (PyTorch's cache would hide accesses between two), and the references run on the
    CPU, so that only our kernels are checked.
    """
    environment = {"BDAM_FAST_GPU_TESTS": "required", "BDAM_FAST_GPU_REFERENCE": "cpu"}
    environment |= {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    made = []
    tools = [("memcheck", "cuda", ""), ("memcheck", "triton", ""), ("racecheck", "cuda", "channels or packed")]
    for tool, backend, chosen in tools:
        if backend not in backends:
            continue
        command = f"compute-sanitizer --tool {tool} --error-exitcode 9 --target-processes application-only".split()
        command += [sys.executable, "-m", "pytest", "tests/gpu", "-m", "sanitize", "-x", "-p", "no:cacheprovider"]
        command += ["-k", chosen] if chosen else []
        made.append(Step(f"{tool}-{backend}", command, environment | {"BDAM_FAST_GPU_BACKENDS": backend}))
    return made


def passed_backends(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Backends of each measured operator whose tests all passed."""
    passed = {outcome.name for outcome in outcomes if outcome.passed}

    def all_passed(op: str, backend: str) -> bool:
        return {f"test-{op}-{backend}-{n}" for n in range(1, SHARES.get((op, backend), 1) + 1)} <= passed

    return {op: [b for b in BACKENDS[op] if all_passed(op, b)] for op in FILES if op != "updates"}


def bench_step(chosen: dict[str, list[str]], seconds: float, with_peers: bool) -> Step:
    """Step that measures the chosen backends; without the peers' sources where these are not compiled."""
    words = [f"{op}={','.join(backends)}" for op, backends in chosen.items() if backends]
    command = [sys.executable, "-m", "bench.gpu.run", "--seconds", f"{seconds:.0f}", "--ops", *words]
    return Step("bench", command, {} if with_peers else {"BDAM_FAST_PEERS": ""})


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--skip", nargs="*", default=[], choices=["build", "sanitizer", "bench"], help="steps to leave out"
    )
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"], choices=["cuda", "triton"])
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit; the benchmark gets the rest")
    return parser.parse_args(words)


def wait_for_peers(process: subprocess.Popen[bytes] | None, seconds: float) -> bool:
    """Waits for the build of the peers; stops it after so many seconds (the next call continues it) and returns False."""
    if process is None:
        return True
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        stop(process)
        say(f"the peers were not compiled in time and are not measured; see {steps.LOGS / 'peers.log'}")
        return False
    for line in (steps.LOGS / "peers.log").read_text(errors="replace").splitlines()[-TAIL:]:
        say(line[:200])
    return True


def measure(outcomes: list[Outcome], peers: subprocess.Popen[bytes] | None, clock: Clock) -> None:
    """Runs the benchmark of the backends that passed their tests, and prints its table."""
    chosen = passed_backends(outcomes)
    if not any(chosen.values()):
        say("no backend passed its tests, so nothing is measured")
        return
    ready = wait_for_peers(peers, clock.left(BENCH, reserve=BENCH / 2))
    seconds = clock.left(BENCH, reserve=2 * RESERVE)
    outcomes += execute([bench_step(chosen, seconds, ready)], seconds + RESERVE)
    say(outcomes[-1].log.read_text(errors="replace"))


def run_steps(options: argparse.Namespace) -> list[Outcome]:
    """Runs all steps in order. Where the build fails, Triton continues alone: it needs none."""
    clock = Clock(60 * options.minutes)
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, {os.cpu_count()} cores")
    outcomes: list[Outcome] = []
    peers = None
    if "bench" not in options.skip:
        peers = start(Step("peers", ["nice", sys.executable, "-m", "bench.gpu.peers"]))
    try:
        backends = list(options.backends)
        if "cuda" in backends:
            for step in ([] if "build" in options.skip else [build_step()]) + [load_step()]:
                outcomes += execute([step], clock.left(BUILD))
            if not outcomes[-1].passed:
                backends.remove("cuda")
        outcomes += execute(test_steps(backends), clock.left(TESTS))
        if "sanitizer" not in options.skip:
            if shutil.which("compute-sanitizer"):
                outcomes += execute(sanitizer_steps(backends), clock.left(SANITIZER))
            else:
                say("compute-sanitizer is not on the PATH: no check for accesses out of bounds and races")
        if "bench" not in options.skip:
            measure(outcomes, peers, clock)
    finally:
        if peers is not None:
            stop(peers)
    return outcomes


def main() -> None:
    """Checks the machine, runs all steps, and exits with the list of those that failed."""
    options = arguments()
    reasons = obstacles()
    if reasons:
        say("make gpu needs a machine with an NVIDIA GPU, a CUDA build of torch and nvcc:\n* " + "\n* ".join(reasons))
        sys.exit(2)
    outcomes = run_steps(options)
    failed = [outcome.name for outcome in outcomes if not outcome.passed]
    say(f"failed or not finished: {', '.join(failed)}" if failed else "all steps passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
