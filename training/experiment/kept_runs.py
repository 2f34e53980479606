"""Finished runs as small files that a repository can hold, so that an experiment continues on another machine:
FOLDER/KEY-seedN-MACHINE.zip, with what tables and pages need of a run folder and no weights.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from training.config import Config
from training.config.ablations import Row, stored_key
from training.data.datasets import fingerprint_of
from training.engine.metrics_log import parse_line
from training.evaluation.diagnosis.diagnosis_result import DIAGNOSIS
from training.evaluation.disentangle_result import RESULT
from training.evaluation.result import Evaluation, Metrics
from training.evaluation.run_folder import (
    CALLS,
    EVALUATION,
    METRICS_LOG,
    ORACLE,
    QUERIES,
    RESOURCES,
    Run,
    protocol_queries,
)
from training.experiment.same_data import require_fingerprint
from training.experiment.summary import run_folder
from training.utils.io import decode, parse_json, read_json, write_bytes

# Files of a run folder that are kept; metrics.jsonl without its steps, eval.json without examples and histograms.
FILES = ("config.json", CALLS, RESOURCES, METRICS_LOG, ORACLE, DIAGNOSIS, RESULT, QUERIES, protocol_queries("rerank"))
NAMES = re.compile("|".join(map(re.escape, FILES)) + r"|eval[\w-]*\.json")
# Date of every member, so that the same run always gives the same bytes; the earliest that a zip file can hold.
DATE = (1980, 1, 1, 0, 0, 0)


class KeptRun(NamedTuple):
    """A file of a kept run, and what its name says."""

    path: Path
    key: str
    seed: int
    machine: str


def keep(run_dir: Path, key: str, seed: int, folder: Path) -> Path:
    """Writes the finished run of a configuration (ablations.run_key) and seed into `folder` and returns the file, which is left
    alone where it has the same content."""
    run = Run(run_dir)
    path = folder / f"{key}-seed{seed}-{_slug(run.machine)}.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for source in sorted(run_dir.iterdir()):
            if NAMES.fullmatch(source.name):
                member = zipfile.ZipInfo(source.name, DATE)
                archive.writestr(member, _content(source), zipfile.ZIP_DEFLATED, 9)
    if not path.is_file() or path.read_bytes() != buffer.getvalue():
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
    return path


def _content(source: Path) -> bytes:
    if source.name == METRICS_LOG:
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        return "".join(x for x in lines if parse_line(x, str(source)).get("kind") == "validation").encode()
    if source.name == EVALUATION:
        values = read_json(source) | {"examples": [], "histograms": {}}
        return json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n"
    return source.read_bytes()


def exchange(rows: Sequence[Row], seeds: Sequence[int], out: Path, folder: Path, console: Console) -> None:
    """Keeps the finished runs of an experiment in `folder` and unpacks those that are there and not in OUT; prints how many.

    Of a run that several machines have done, that of the machine with most runs of the experiment is unpacked. A run that has
    begun in OUT is left to continue. Raises ValueError for a kept run of another configuration, seed or data than it should
    be, or that cannot be read.
    """
    configs = {(row.key, seed): row.config for row in rows for seed in seeds}
    for key, seed in configs:
        if Run(path := run_folder(out, key, seed)).is_finished:
            keep(path, key, seed, folder)
    everything = kept_runs(folder)
    own = [run for run in everything if (run.key, run.seed) in configs]
    share = Counter(run.machine for run in own)
    own.sort(key=lambda run: (-share[run.machine], run.machine))
    fingerprints: dict[Any, str | None] = {}
    restored = 0
    for run in own:
        target, config = run_folder(out, run.key, run.seed), configs[run.key, run.seed]
        if target.exists():
            continue
        _check_data(run, read_kept(run), config, fingerprints)
        _unpack(run.path, target)
        restored += 1
    text = f"{folder}: {len(everything)} kept runs, {len(own)} of this experiment, {restored} unpacked"
    absent = None in fingerprints.values()
    console.print(f"{text}{'; the data is not here to compare its fingerprint' * absent}", highlight=False)


def read_twins(
    rows: Sequence[Row], seeds: Sequence[int], out: Path, folder: Path
) -> dict[tuple[str, int], list[Metrics]]:
    """Metrics of the kept runs of other machines than that of the run in OUT, by key and seed. Raises ValueError for a kept run
    that is not what its name says, or of different data than that run."""
    twins: dict[tuple[str, int], list[Metrics]] = {}
    keys = {row.key for row in rows}
    for kept in kept_runs(folder):
        run = Run(run_folder(out, kept.key, kept.seed))
        if kept.key not in keys or kept.seed not in seeds or not run.is_finished or kept.machine == _slug(run.machine):
            continue
        evaluation, data = read_kept(kept), run.evaluation.data
        _require_fingerprint(kept, evaluation, str(run.folder), data.fingerprint if data else "")
        twins.setdefault((kept.key, kept.seed), []).append(evaluation.metrics)
    return twins


def kept_runs(folder: Path) -> list[KeptRun]:
    """The kept runs of a folder by name; other files are ignored."""
    found = []
    for path in sorted(folder.glob("*.zip")):
        if match := re.fullmatch(r"([0-9a-f]{12})-seed(\d+)-(.+)", path.stem):
            found.append(KeptRun(path, match[1], int(match[2]), match[3]))
    return found


def read_kept(run: KeptRun) -> Evaluation:
    """The eval.json of a kept run. Raises ValueError when the file cannot be read or is not what its name says."""
    try:
        with zipfile.ZipFile(run.path) as archive:
            content = archive.read(EVALUATION)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{run.path} is not a kept run ({error}); without it its run is trained again") from error
    source = f"{run.path}: {EVALUATION}"
    evaluation = decode(Evaluation, parse_json(content.decode(), source), source)
    found = stored_key(evaluation.config), evaluation.config["seed"]
    if found != (run.key, run.seed):
        raise ValueError(
            f"{run.path} holds configuration {found[0]} with seed {found[1]}, expected {run.key} with seed {run.seed} as "
            "its name says; delete or rename it"
        )
    return evaluation


def _check_data(run: KeptRun, evaluation: Evaluation, config: Config, known: dict[Any, str | None]) -> None:
    """Compares the run's data with the data of its configuration, where that exists; `known`: fingerprints read before."""
    if config.data not in known:
        known[config.data] = fingerprint_of(config.data)
    if (fingerprint := known[config.data]) is not None:
        _require_fingerprint(run, evaluation, config.data.root, fingerprint)


def _require_fingerprint(run: KeptRun, evaluation: Evaluation, source: str, expected: str) -> None:
    require_fingerprint(str(run.path), evaluation, source, expected, "move it away to train its run again")


def _unpack(path: Path, target: Path) -> None:
    """Fills the run folder `target`, which appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack") as temporary:
        whole = Path(temporary) / target.name
        whole.mkdir()
        with zipfile.ZipFile(path) as archive:
            for name in filter(NAMES.fullmatch, archive.namelist()):
                (whole / name).write_bytes(archive.read(name))
        os.replace(whole, target)


def _slug(machine: str) -> str:
    """The machine as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", machine.lower())).strip("-")
