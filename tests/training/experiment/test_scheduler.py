"""Jobs side by side, each in processes of its own, and what is said about them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.support import ROOT
from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import tiny_config
from training.config import Config, to_dict
from training.config.ablations import FULL, PROTOCOLS, TITLES, Row, alongside
from training.evaluation.protocols.protocol_names import BESIDE_DUAL
from training.evaluation.result import METRICS, Counts, Evaluation
from training.experiment import jobs, scheduler
from training.experiment.child_process import GLIBC_TUNABLES, run_command
from training.experiment.jobs import Job, missing_jobs
from training.experiment.plan import plan
from training.experiment.summary import run_folder
from training.utils.io import write_json, write_record

CHILD = "tests.support.child_processes"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
Tick = Callable[[], None]


@pytest.fixture
def base(tmp_path: Path) -> Config:
    return tiny_config(make_pedes(tmp_path / "pedes"))


def value_of(words: Sequence[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_runs_go_on_side_by_side(base: Config, tmp_path: Path) -> None:
    together, meeting = [], threading.Barrier(2, timeout=60)

    def launch(words: Sequence[str], *, log: Path, tick: Tick = print) -> None:
        if words[0] == "training.experiment.timing":
            file, out = words[1], Path(value_of(words, "--out"))
            write_json(out, {file: {"start": 30.0, "training": 40.0, "evaluation": 20.0}})
            return
        tick()
        if words[0] == "training.train":
            # Passes only when the other run has come as far.
            meeting.wait()
            together.append(int(value_of(words, "--seed")))
        else:
            Path(words[1]).mkdir()
            values = dict.fromkeys(METRICS, 1.0)
            evaluation = Evaluation(
                metrics=values,
                metrics_beta0=values,
                beta=0.0,
                chance=values,
                counts=Counts(queries=1, gallery=1, ids=1),
                config=to_dict(base),
            )
            write_record(Path(words[1]) / "eval.json", evaluation)

    console = Console(file=StringIO(), width=150, soft_wrap=True)
    missing = missing_jobs(plan("synthetic", base)[1], (0, 1, 2, 3), tmp_path, console, launch, 2)
    scheduler.run_jobs(missing, console, launch, 2)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "about 3 min in all: 100 s each, at most 100 s (synthetic), 2 at a time;" in text
    assert sorted(together) == [0, 1, 2, 3] and "[4/4]" in text and "; done" in text


def test_the_first_run_that_fails_ends_those_beside_it(base: Config, tmp_path: Path) -> None:
    beside, ended = threading.Event(), []

    def launch(words: Sequence[str], *, log: Path, tick: Tick = print) -> None:
        tick()
        if value_of(words, "--seed") == "0":
            assert beside.wait(60)
            raise RuntimeError("no memory")
        beside.set()
        try:
            for _ in range(600):
                time.sleep(0.1)
                tick()
        except Exception as error:
            ended.append(type(error).__name__)
            raise

    row = Row("table1", FULL, "Full", base)
    three = [Job(row, seed, run_folder(tmp_path, row.key, seed), 10.0) for seed in (0, 1, 2)]
    with pytest.raises(RuntimeError, match="Full, seed 0 .* failed: no memory"):
        scheduler.run_jobs(three, Console(file=StringIO()), launch, 2)
    # The third has not begun, or has been ended too.
    assert set(ended) == {"_StopRequest"}


def test_a_job_is_a_command_that_can_be_repeated_by_hand(base: Config, tmp_path: Path) -> None:
    row = Row("table1", FULL, "Full", base)
    job = Job(row, 4, run_folder(tmp_path, row.key, 4))
    words = ["training.train", "--out", str(job.folder), "--seed", "4", "--config"]
    assert job.command == [*words, str(tmp_path / f"{row.key}.json")]
    job.folder.mkdir(parents=True)
    write_json(job.folder / "config.json", to_dict(base))
    continued = [*words, str(job.folder / "config.json"), "--resume"]
    assert job.command == continued
    moved = replace(base, data=replace(base.data, root="elsewhere"))
    assert job._replace(row=replace(row, config=moved)).command == [*continued, "--data.root=elsewhere"]


def test_a_run_is_evaluated_by_the_protocols_of_all_its_tables(base: Config, tmp_path: Path) -> None:
    def launch(words: Sequence[str], *, log: Path, tick: Tick = print) -> None:
        write_json(Path(value_of(words, "--out")), dict.fromkeys(words[1:-2], {"start": 1.0}))

    deep = replace(base, model=replace(base.model, bdam=replace(base.model.bdam, self_layers=2)))
    rows = plan("all", deep, None, [FULL, "no-mamba", "no-gate"])[1]
    found = missing_jobs(rows, [0], tmp_path, Console(file=StringIO()), launch)
    protocols = {job.row.name: job.protocols for job in found}
    assert {name: {*names} for name, names in protocols.items()} == {
        FULL: {"rerank", "identity", "other-outfit"},
        "no-gate": {"identity", "other-outfit"},
        "no-mamba": {"rerank"},
    }
    job = found[[job.row.name for job in found].index("no-mamba")]
    # dual at last: what it writes says that the run is finished.
    root = f"--data.root={base.data.root}"
    evaluation = ["training.evaluate", str(job.folder), root, "--protocol=rerank", "--protocol=dual"]
    # This data has no factors of its images.
    assert job.measurements == [evaluation] and not any(job.disentangled for job in found)
    (Path(base.data.root) / "factors.jsonl").touch()
    again = missing_jobs(rows, [0], tmp_path, Console(file=StringIO()), launch)
    # Table 2 does not ask for it, and one embedding has no branches to compare.
    assert {job.row.name for job in again if job.disentangled} == {FULL, "no-gate"}
    plain = alongside(replace(base, recipe="synthetic-tables"), "synthetic-baseline")
    (job,) = missing_jobs([Row("table1", "plain", "", plain)], [0], tmp_path, Console(file=StringIO()), launch)
    assert not job.disentangled
    assert again[0].measurements[0] == ["training.disentangle", str(again[0].folder), root]
    assert set(PROTOCOLS) == set(TITLES), "every table says what its rows can differ in"
    assert all(name in BESIDE_DUAL for names in PROTOCOLS.values() for name in names)


def test_durations_in_words() -> None:
    assert [jobs.minutes(x) for x in (59.6, 150, 7199, 9000)] == ["60 s", "2 min", "120 min", "2.5 h"]


def test_a_process_of_its_own_hands_over_errors_and_its_end(tmp_path: Path) -> None:
    log, ticks = tmp_path / "log", []
    log.write_text("before\n")
    run_command([CHILD, "sleep", "0.6"], log=log, threads=3, tick=lambda: ticks.append(1))
    assert ticks
    assert log.read_text() == f"before\nOMP_NUM_THREADS=3 python -m {CHILD} sleep 0.6\nthreads 3\n"
    with pytest.raises(RuntimeError, match=f"^two words; what it printed is in {log}"):
        run_command([CHILD, "fail", "two\n words"], log=log)
    assert "error: two words\n" in log.read_text()
    with pytest.raises(RuntimeError, match="^TypeError: defect; what it printed"):
        run_command([CHILD, "defect", "defect"], log=log)
    assert "Traceback" in log.read_text()
    with pytest.raises(RuntimeError, match="^its process ended with status 3; what it printed"):
        run_command([CHILD, "exit", "3"], log=log)
    with pytest.raises(RuntimeError, match=r"its process was ended by signal 9 \(out of memory\?\); what it printed"):
        run_command([CHILD, "vanish"], log=log)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
@pytest.mark.skipif(HUGE_PAGES.is_file() and "[always]" in HUGE_PAGES.read_text(), reason="huge pages anyway")
def test_a_process_keeps_the_memory_that_it_frees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def page_faults(log: Path) -> int:
        run_command([CHILD, "allocate"], log=log)
        return int(log.read_text().split()[-1])

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    kept = page_faults(tmp_path / "kept")
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    # 20 times 72 MB are 368,640 pages of 4 kB; kept, at most 18,432 and those of Python itself.
    assert kept < 50_000 < 150_000 < page_faults(tmp_path / "own choice")


def test_make_demo_keeps_freed_memory_like_the_runs_of_an_experiment() -> None:
    assert f"demo: export GLIBC_TUNABLES ?= {GLIBC_TUNABLES}\n" in (ROOT / "Makefile").read_text()


def test_an_interruption_ends_the_process(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def interrupt() -> None:
        with open(pipe) as file:
            assert file.readline() == "here\n"
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_command([CHILD, "stay", str(pipe)], log=tmp_path / "log", tick=interrupt)
    assert time.monotonic() - started < 50


@pytest.mark.timeout(120)
def test_a_process_does_not_outlive_the_one_that_started_it(tmp_path: Path) -> None:
    pipe, log = tmp_path / "pipe", tmp_path / "log"
    os.mkfifo(pipe)
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom training.experiment.child_process import GLIBC_TUNABLES, run_command\n"
        f"run_command([{CHILD!r}, 'stay', {str(pipe)!r}], log=Path({str(log)!r}))"
    )
    parent = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    with open(pipe) as file:
        assert file.readline() == "here\n"
        started = time.monotonic()
        parent.kill()
        parent.wait()
        # The end of the pipe comes when nobody holds it open any more.
        assert file.read() == "" and time.monotonic() - started < 50
