"""Commands of the steps of `make gpu`; which steps there are, and when each runs, stands in plan.py."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from bench.gpu import outcomes, plan
from bench.gpu.processes import BACKENDS, MEASURED, PROCESSES
from bench.gpu.steps import Outcome, Step

# Steps that need the library; where it was not built or does not load, Triton goes on alone.
NEED_LIBRARY = ("test-*-cuda-*", "memcheck-cuda", "racecheck-cuda")
SANITIZER = "compute-sanitizer"
# Packages that the training step imports, and the kernels do not; and those that the commands of the pipeline import besides.
PIPELINE = ("PIL", "numpy", "rich", "transformers")
COMMANDS = (*PIPELINE, "jinja2", "matplotlib", "scipy", "sklearn", "tensorboard", "threadpoolctl", "tyro")


def absent_packages(names: Sequence[str]) -> str:
    """The reason why the pipeline cannot run here; empty where it can."""
    absent = [package for package in names if importlib.util.find_spec(package) is None]
    return f"the training pipeline needs {', '.join(absent)}, not installed here" if absent else ""


class Commands:
    """Makes each step of a run.

    Args:
        folder: where the logs and the outcomes of the tests are written.
        backends: those that are tested and measured.
        skip: `build`, `sanitizer`, `tune`, `training`, `peers` or `bench`: steps to leave out.
    """

    def __init__(self, folder: Path, backends: Sequence[str] = ("cuda", "triton"), skip: Sequence[str] = ()):
        self.folder, self.backends, self.skip = folder, tuple(backends), tuple(skip)

    def __call__(self, name: str, done: Mapping[str, Outcome]) -> Step | str:
        """The step of a name, or the reason why it is left out."""
        kind = name.partition("-")[0]
        if kind in self.skip or (kind in ("memcheck", "racecheck") and "sanitizer" in self.skip):
            return "--skip names it"
        if kind == "test":
            _, op, backend, number = name.split("-")
            return self._unless_absent(backend, done) or self._test(name, op, backend, int(number))
        if kind in ("memcheck", "racecheck"):
            backend = name.partition("-")[2]
            return self._unless_absent(backend, done) or self._sanitizer(name, kind, backend)
        return getattr(self, f"_{kind}")(done)

    def _unless_absent(self, backend: str, done: Mapping[str, Outcome]) -> str:
        if backend not in self.backends:
            return f"--backends does not name {backend}"
        if backend == "cuda" and not self._loaded(done):
            return "the library was not built or does not load"
        return ""

    @staticmethod
    def _loaded(done: Mapping[str, Outcome]) -> bool:
        return "load" in done and done["load"].passed

    def _build(self, _: Mapping[str, Outcome]) -> Step | str:
        """Both extensions in place, the CUDA kernels for this GPU only."""
        if "cuda" not in self.backends:
            return "--backends does not name cuda"
        environment = {
            "BDAM_FAST_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": "{}.{}".format(*torch.cuda.get_device_capability()),
            "MAX_JOBS": str(plan.by_name()["build"].lanes),
        }
        return Step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], environment)

    def _load(self, _: Mapping[str, Outcome]) -> Step | str:
        if "cuda" not in self.backends:
            return "--backends does not name cuda"
        code = "from bdam_fast import _native; print(_native.cuda_extension().__file__)"
        return Step("load", [sys.executable, "-c", code])

    def _peers(self, _: Mapping[str, Outcome]) -> Step:
        """Below the other steps: what the peers lack at the end of their share is not waited for."""
        command = ["nice", sys.executable, "-m", "bench.gpu.peers"]
        return Step("peers", command, {"MAX_JOBS": str(plan.by_name()["peers"].lanes)})

    def _compile(self, _: Mapping[str, Outcome]) -> Step | str:
        """Triton's kernels of the benchmark's cases, so that no case waits for a compiler; without the peers, which are built."""
        if "triton" not in self.backends:
            return "--backends does not name triton"
        words = [f"{op}=triton" for op in MEASURED]
        command = [sys.executable, "-m", "bench.gpu.run", "--compile", *self._seconds(), "--ops", *words]
        return Step("compile", command, {"BDAM_FAST_PEERS": ""})

    def _sizes(self, _: Mapping[str, Outcome]) -> Step | str:
        """Triton's kernels with the sizes that are tuned."""
        if "triton" not in self.backends or "tune" in self.skip:
            return "Triton is not tuned"
        return Step("sizes", [sys.executable, "-m", "bench.gpu.tune", "--compile"])

    def _tune(self, done: Mapping[str, Outcome]) -> Step | str:
        there = [b for b in self.backends if b != "cuda" or self._loaded(done)]
        if not there:
            return "the library was not built or does not load"
        return Step("tune", [sys.executable, "-m", "bench.gpu.tune", "--backends", *there])

    def _inductor(self, _: Mapping[str, Outcome]) -> Step | str:
        """The training step, compiled: what is measured later comes from the compiler's caches."""
        return self._training_step("inductor", "--compile")

    def _training(self, _: Mapping[str, Outcome]) -> Step | str:
        return self._training_step("training")

    def _training_step(self, name: str, *words: str) -> Step | str:
        if "training" in self.skip:
            return "--skip names it"
        command = [sys.executable, "-m", "bench.pipeline.compiled_step", *words]
        return absent_packages(PIPELINE) or Step(name, command)

    def _pipeline(self, _: Mapping[str, Outcome]) -> Step | str:
        """Every command of the pipeline on the card, on a small set."""
        command = [sys.executable, "-m", "bench.pipeline.whole", "--device", "cuda"]
        return absent_packages(COMMANDS) or Step("pipeline", command)

    @staticmethod
    def _seconds() -> list[str]:
        return ["--seconds", f"{plan.bench_seconds():.0f}"]

    def _test(self, name: str, op: str, backend: str, number: int) -> Step:
        environment = {"BDAM_FAST_GPU_TESTS": "required", "BDAM_FAST_GPU_BACKENDS": backend, "OMP_NUM_THREADS": "1"}
        environment |= {"BDAM_FAST_GPU_SHARE": f"{number}/{PROCESSES[op, backend]}"}
        environment |= {"BDAM_FAST_GPU_SAMPLE": "1" if backend == "triton" else "0"}
        environment |= {"BDAM_FAST_GPU_OUTCOMES": str(self.folder / f"{name}{outcomes.SUFFIX}")}
        (self.folder / f"{name}{outcomes.SUFFIX}").unlink(missing_ok=True)
        command = [sys.executable, "-m", "bench.gpu.testing", f"tests/gpu/test_{op}.py"]
        command += ["--tb=short", "-p", "no:cacheprovider"]
        return Step(name, command, environment)

    def _sanitizer(self, name: str, tool: str, backend: str) -> Step | str:
        """A sample of the small cases, as many as the share allows.

        Every tensor is an allocation of its own (PyTorch's cache would hide accesses between two), and the references run on
        the CPU, so that only our kernels are checked.
        """
        if shutil.which(SANITIZER) is None:
            return "compute-sanitizer is not on the PATH: no check for accesses out of bounds and races"
        environment = {"BDAM_FAST_GPU_TESTS": "required", "BDAM_FAST_GPU_REFERENCE": "cpu"}
        environment |= {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "BDAM_FAST_GPU_BACKENDS": backend}
        environment |= {"BDAM_FAST_GPU_SAMPLE": "1"}
        command = f"{SANITIZER} --tool {tool} --error-exitcode 9 --target-processes application-only".split()
        command += [sys.executable, "-m", "pytest", "tests/gpu", "-m", "sanitize", "-x", "-p", "no:cacheprovider"]
        few = {"racecheck-cuda": ["-k", "channels or packed"], "memcheck-triton": ["-k", "orders or packed"]}
        return Step(name, [*command, *few.get(name, [])], environment)

    def _bench(self, done: Mapping[str, Outcome]) -> Step | str:
        """The backends that were tested, without the cases whose tests failed."""
        refused = outcomes.refused(self.folder, done)
        chosen = {op: self.measured(op, refused) for op in MEASURED}
        words = [f"{op}={','.join(backends)}" for op, backends in chosen.items() if backends]
        if not words:
            return "no backend passed a test, so nothing is measured"
        file = self.folder / "failed.json"
        file.write_text(json.dumps([test.plain() for test in refused.tests], indent=1))
        command = [sys.executable, "-m", "bench.gpu.run", *self._seconds(), "--failed", str(file), "--ops", *words]
        ready = "peers" in done and done["peers"].passed
        return Step("bench", command, {} if ready else {"BDAM_FAST_PEERS": ""})

    def measured(self, op: str, refused: outcomes.Refused) -> list[str]:
        """Backends of an operator that ran tests."""
        known = [b for b in BACKENDS[op] if b in self.backends]
        return [b for b in known if (op, b) not in refused.untested]
