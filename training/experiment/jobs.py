"""Jobs of an experiment: the runs that are not finished, and the seconds that each will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from training.config import DataConfig, to_dict
from training.config.ablations import DISENTANGLED, PROTOCOLS, Row
from training.data.datasets import fingerprint_of, read_dataset
from training.data.ground_truth import FACTORS
from training.data.suitability import require_other_texts
from training.evaluation.run_folder import Run
from training.experiment.same_data import require_fingerprint
from training.experiment.summary import run_folder
from training.utils.io import read_json, write_json

# child_process.run_command, or its substitute in tests.
Launch = Callable[..., None]
# Fields of DataConfig that say where files are.
PLACES = ("root", "descriptions", "cache")
# Seconds that a run's two processes need to import everything.
IMPORTS = 10.0


class Job(NamedTuple):
    """One configuration with one seed to train and evaluate, and the seconds that this will take."""

    row: Row
    seed: int
    folder: Path
    seconds: float = 0.0
    # Protocols to measure beside dual.
    protocols: tuple[str, ...] = ()
    # Measure the disentanglement too.
    disentangled: bool = False
    # See `engine.device.select_device`.
    device: str = "auto"

    @property
    def label(self) -> str:
        """Words for the user: row and seed."""
        return f"{self.row.label}, seed {self.seed}"

    @property
    def command(self) -> list[str]:
        """Words of `python -m` that train the run, or continue it."""
        own = self.folder / "config.json"
        words = ["training.train", "--out", str(self.folder), "--seed", str(self.seed), *device_words(self.device)]
        if not own.exists():
            return [*words, "--config", str(config_file(self.folder.parent))]
        # A run that another table has begun keeps the name of that table's row; its data may have been moved.
        before, now = read_json(own)["data"], to_dict(self.row.config)["data"]
        moved = [f"--data.{name}={now[name]}" for name in PLACES if now[name] != before.get(name)]
        return [*words, "--config", str(own), "--resume", *moved]

    @property
    def measurements(self) -> list[list[str]]:
        """Words of `python -m` that measure the trained run: dual at last, so that a finished run has everything else."""
        protocols = (f"--protocol={name}" for name in (*self.protocols, "dual"))
        # best.pt may be older than a move of the data.
        words = [str(self.folder), f"--data.root={self.row.config.data.root}", *device_words(self.device)]
        evaluation = ["training.evaluate", *words, *protocols]
        probes = ["training.disentangle", *words]
        return [probes, evaluation] if self.disentangled else [evaluation]


def device_words(device: str) -> list[str]:
    """Words of a command for a device that is not chosen by itself."""
    return [] if device == "auto" else ["--device", device]


def config_file(folder: Path) -> Path:
    """The configuration of the runs in a folder (one for each seed), beside that folder."""
    return folder.with_name(f"{folder.name}.json")


def missing_jobs(
    rows: Sequence[Row],
    seeds: Sequence[int],
    out: Path,
    console: Console,
    launch: Launch,
    jobs: int = 1,
    device: str = "auto",
) -> list[Job]:
    """The runs that are not finished, once for each configuration and seed, all of a seed before the next, so that a part is
    whole tables over fewer seeds; with the seconds that each will take. Prints their number and how long all take, `jobs` at a
    time. Writes OUT/KEY.json, the configuration of the runs OUT/KEY/seed*.

    A configuration that another seed has finished will take as long as that; others are timed for a few steps. Raises
    what reading the data and a training step raise.
    """
    # The first row of several that share a run names it.
    configurations: dict[str, Row] = {}
    for row in rows:
        configurations.setdefault(row.key, row)
    protocols: dict[str, dict[str, None]] = {}
    for row in rows:
        protocols.setdefault(row.key, {}).update(dict.fromkeys(PROTOCOLS.get(row.table, ())))
    disentangled = {row.key for row in rows if _can_be_disentangled(row)}
    everything = [
        Job(row, seed, run_folder(out, key, seed), 0.0, (*protocols[key],), key in disentangled, device)
        for seed in seeds
        for key, row in configurations.items()
    ]
    finished = [job for job in everything if Run(job.folder).is_finished]
    missing = [job for job in everything if job not in finished]
    text = f"{len(rows)} rows are {len(configurations)} configurations x {len(seeds)} seeds = {len(everything)} runs"
    require_same_data(finished)
    console.print(f"{text}: {len(finished)} finished, {len(missing)} to run", highlight=False)
    if not missing:
        return []
    for data in {job.row.config.data for job in missing}:
        # Data that cannot be read is found out before anything is written.
        dataset = read_dataset(data)
        for job in missing:
            if job.row.config.data == data:
                require_other_texts(job.row.config, dataset)
    seconds = _estimate({job.row.key: job.row for job in missing}, seeds, out, launch, device)
    missing = [job._replace(seconds=seconds[job.row.key]) for job in missing]
    total = sum(job.seconds for job in missing)
    longest = max(missing, key=lambda job: job.seconds)
    each = f"{total / len(missing):.0f} s each, at most {longest.seconds:.0f} s ({longest.row.label})"
    text = f"about {minutes(total / jobs)} in all: {each}{f', {jobs} at a time' if jobs > 1 else ''}"
    console.print(f"{text}; {out} can be continued at any time", highlight=False)
    return missing


def require_same_data(finished: Sequence[Job]) -> None:
    """Raises ValueError for a finished run of other data than those of its row, where these are on this machine."""
    known: dict[DataConfig, str | None] = {}
    for job in finished:
        data = job.row.config.data
        expected = known[data] = known[data] if data in known else fingerprint_of(data)
        if expected:
            require_fingerprint(str(job.folder), Run(job.folder).evaluation, data.root, expected, "another --out")


def _can_be_disentangled(row: Row) -> bool:
    """True for a row of DISENTANGLED that has two branches and whose data has the factors of its images."""
    two_branches = row.config.model.architecture == "decoupling"
    return row.table in DISENTANGLED and two_branches and (Path(row.config.data.root) / FACTORS).is_file()


def threads_of(rows: Sequence[Row], seeds: Sequence[int], out: Path) -> int | None:
    """Number of threads of most of the experiment's finished runs, the smaller of two equally frequent; None without a run."""
    finished = [run for row in rows for seed in seeds if (run := Run(run_folder(out, row.key, seed))).is_finished]
    counts = Counter(
        int(run.evaluation.versions["threads"]) for run in finished if "threads" in run.evaluation.versions
    )
    return min(counts, key=lambda threads: (-counts[threads], threads), default=None)


def _estimate(rows: dict[str, Row], seeds: Sequence[int], out: Path, launch: Launch, device: str) -> dict[str, float]:
    """Seconds of a run of each row, by key; `rows` are those that have runs to do."""
    parts: dict[str, dict[str, float]] = {
        key: run.evaluation.seconds
        for key in rows
        for seed in seeds
        if (run := Run(run_folder(out, key, seed))).is_finished
    }
    out.mkdir(parents=True, exist_ok=True)
    files = {key: config_file(out / key) for key in rows}
    for key, row in rows.items():
        write_json(files[key], to_dict(row.config))
    unknown = {key: str(file) for key, file in files.items() if key not in parts}
    if unknown:
        timing = out / "timing.json"
        words = ["training.experiment.timing", *unknown.values(), "--out", str(timing), *device_words(device)]
        launch(words, log=out / "timing.log")
        measured = read_json(timing)
        parts |= {key: measured[file] for key, file in unknown.items()}
    return {key: IMPORTS + sum(parts[key].values()) for key in rows}


def minutes(seconds: float) -> str:
    """A duration in words: seconds below two minutes, hours above two hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
