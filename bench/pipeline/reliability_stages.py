"""Stages of the pipeline on a miniature set, with what each must have written in the end; run in forks of a warm process."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.engine import checkpoint
from training.retrieval.ingest import check_images
from training.retrieval.store import Gallery
from training.utils import cli
from training.utils.io import read_json

# Loaded once, so that a stage begins at once and a kill at a random moment hits its work.
PRELOADED = (
    "torch.utils.tensorboard",
    "transformers",
    "training.data.images.pack",
    "training.describe.text_generation",
    "training.describe.template_provider",
    "training.engine.train_run",
    "training.evaluation.bounds.oracle_metrics",
    "training.evaluation.diagnosis.diagnose",
    "training.evaluation.dual",
    "training.evaluation.metric_tables",
    "training.evaluation.run_evaluation",
    "training.gallery",
    "training.report.run_page",
    "training.retrieval.gallery_search",
    "training.synthetic.dataset",
)
SET = "--ids 12 --val-ids 2 --test-ids 4 --images-per-id 4 --height 160 --width 64".split()
# A model of a few thousand weights, which saves after every step.
TINY = (
    "--data.image-size 32 16 --data.ids-per-batch 3 --data.images-per-id 2 --data.text-length 24 --model.visual.width 16 "
    "--model.visual.layers 1 --model.visual.heads 2 --model.visual.patch-size 8 --model.text.width 16 --model.text.layers 1 "
    "--model.text.heads 2 --model.bdam.self-layers 1 --model.bdam.heads 2 --model.fusion.width 8 --model.fusion.state 4 "
    "--model.embedding 8 --optim.epochs 4 --optim.warmup-epochs 1 --optim.save-every-steps 1 --optim.ema 0.9"
).split()


class Outcome(NamedTuple):
    """Exit status of a command (negative: the signal that ended it), its seconds and its output."""

    status: int
    seconds: float
    output: str


@dataclass(frozen=True)
class Stage:
    """A command, the folder it starts from, how it is continued, and what it must have written in the end."""

    name: str
    # Module that has main(argv), and its words; "DATA" and "WORK" stand for the folders.
    module: str
    words: Sequence[str]
    result: Callable[[Path, str], Any]
    # Copied to the working folder before the command; "" for an empty one.
    start: str = ""
    again: Sequence[str] = ()

    def run(self, base: Path, work: Path, seconds: float | None = None, *, again: bool = False) -> Outcome:
        """Runs the command in `work`, and kills it after so many seconds."""
        places = {"DATA": str(base / "data"), "WORK": str(work)}
        words = [re.sub("DATA|WORK", lambda m: places[m[0]], w) for w in (*self.words, *(self.again if again else ()))]
        return forked(self.module, words, seconds)

    def prepare(self, base: Path, work: Path) -> None:
        """Makes `work` what the command starts from."""
        shutil.rmtree(work, ignore_errors=True)
        if self.start:
            shutil.copytree(base / self.start, work)
        else:
            work.mkdir()


def forked(
    module: str, words: Sequence[str], seconds: float | None = None, limit: Callable[[], None] | None = None
) -> Outcome:
    """The outcome of main(words) of a module in a fork of this process, killed by SIGKILL after `seconds`."""
    log, started = Path(f"/tmp/reliability-{os.getpid()}.log"), time.perf_counter()
    process = os.fork()
    if not process:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if limit:
            limit()
        status = 1
        try:
            status = cli.run(importlib.import_module(module).main, words)
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        # Before waitpid, so that the process id is still its own even if it has ended.
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    elapsed = time.perf_counter() - started
    return Outcome(os.waitstatus_to_exitcode(status), elapsed, log.read_text(errors="replace"))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def plain(value: Any) -> Any:
    """A checkpoint as values that can be compared: tensors as the digests of their bytes."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return hashlib.sha256(value.numpy().tobytes()).hexdigest() if hasattr(value, "numpy") else value


def _packed(work: Path, output: str) -> Any:
    index, rows = json.loads((work / "cache/32x16.json").read_text()), (work / "cache/32x16.u8").read_bytes()
    size = 3 * 32 * 16
    return {
        name: hashlib.sha256(rows[row * size : (row + 1) * size]).hexdigest()
        for name, (*_, row) in index["files"].items()
    }


def _trained(work: Path, output: str) -> Any:
    run = work / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k not in ("seconds", "crc32")} for line in lines]
    states = {name: plain(checkpoint.load(run / name)) for name in ("best.pt", "last.pt")}
    return kept, states, digests(run / "tokenizer"), read_json(run / "config.json"), read_json(run / "calls.json")


def evaluated(work: Path, output: str = "") -> Any:
    """Results of an evaluation, without its times and the digest of best.pt: a flip that changes no content changes that one."""
    values = read_json(work / "run/eval.json")
    names = (
        "metrics",
        "metrics_beta0",
        "beta",
        "chance",
        "counts",
        "examples",
        "histograms",
        "checkpoint",
        "calls",
        "config",
    )
    with np.load(work / "run/eval-queries.npz") as arrays:
        values["checkpoint"].pop("sha256")
        return {name: values[name] for name in names}, {name: arrays[name].tolist() for name in arrays}


def _found(work: Path, output: str) -> Any:
    return [line for line in output.splitlines() if ".jpg" in line]


def _gallery(work: Path, output: str) -> Any:
    """Embeddings and facts of every image by its name, as sealed; the same twice is a fault too."""
    gallery = Gallery(work / "gallery")
    faults = list(check_images(gallery, True, lambda done: None))
    snapshot = gallery.snapshot()
    rows = [(Path(row.path).name, row.sha256, row.camera, row.position) for row in gallery.all_rows()]
    gallery.close()
    # Other images in its batch change the last bits of an embedding.
    return faults, sorted((*row, np.round(snapshot.table_PW[at], 4).tolist()) for *row, at in rows)


def _generated(work: Path, output: str) -> Any:
    rows = [json.loads(line) for line in (work / "texts/descriptions.jsonl").read_text().splitlines()]
    return sorted((row["file_path"], row["status"], row.get("identity", ""), row.get("clothing", "")) for row in rows)


RUN = "WORK/run"
STAGES = (
    Stage("prepare", "training.prepare", ["synthetic", "WORK/set", *SET], lambda work, _: digests(work / "set")),
    Stage(
        "pack", "training.prepare", ["pack", "cuhk-pedes", "DATA", "WORK/cache", "--image-size", "32", "16"], _packed
    ),
    Stage(
        "train",
        "training.train",
        ["synthetic", "--out", RUN, "--data.root", "DATA", *TINY],
        _trained,
        again=["--resume"],
    ),
    Stage("evaluate", "training.evaluate", [RUN], evaluated, start="trained"),
    Stage("search", "training.search", [RUN, "a man in a red jacket"], _found, start="trained"),
    Stage(
        "gallery add",
        "training.gallery",
        ["add", "WORK/gallery", "DATA/imgs", "--run", RUN, "--batch-size", "4"],
        _gallery,
        start="trained",
    ),
    Stage(
        "gallery check",
        "training.gallery",
        ["check", "WORK/gallery", "--content"],
        _gallery,
        start="filled",
    ),
    Stage(
        "gallery search",
        "training.search",
        [RUN, "a man in a red jacket", "--gallery", "WORK/gallery"],
        _found,
        start="filled",
    ),
    Stage(
        "generate",
        "training.describe.generate",
        ["cuhk-pedes", "DATA", "--out", "WORK/texts", "--provider", "template"],
        _generated,
    ),
    Stage(
        "report",
        "training.report.__main__",
        [RUN],
        lambda work, _: (work / "run/report.html").read_bytes(),
        start="evaluated",
    ),
)


def build(base: Path) -> None:
    """Renders the set, trains and evaluates a run: the folders that the stages start from. Raises RuntimeError."""
    for name in PRELOADED:
        importlib.import_module(name)
    by_name = {stage.name: stage for stage in STAGES}
    commands = [("training.prepare", ["synthetic", str(base / "data"), *SET])]
    for module, words in commands:
        _require(forked(module, words))
    for name, folder in (("train", "trained"), ("evaluate", "evaluated"), ("gallery add", "filled")):
        by_name[name].prepare(base, base / folder)
        _require(by_name[name].run(base, base / folder))
    _require(by_name["search"].run(base, base / "evaluated"))


def _require(outcome: Outcome) -> None:
    if outcome.status:
        raise RuntimeError(f"a stage failed before anything was done to it: {outcome.output[-500:]}")
