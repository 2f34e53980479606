"""metrics.jsonl and its TensorBoard events: the same numbers, each once, whatever interrupted the run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import read_events, read_lines, tiny_config
from training.engine import metrics_log
from training.engine.metrics_log import MetricsLog
from training.train import train
from training.utils.io import read_json


def step_line(step: int) -> dict[str, object]:
    numbers = {"a": 0.5 * step, "b": 2.0}
    line = {"step": step, "epoch": 1, "loss": 1.0 / step, "lr": 1e-3, "scale": 1.0, "skipped": False}
    return line | {"images": 6, "seconds": 0.5, "losses": numbers, "weights": numbers, "norms": {}}


def write(run_dir: Path, finished: int, steps: range) -> None:
    with MetricsLog(run_dir, finished) as log:
        for step in steps:
            log.step(step_line(step))
        log.flush()


def test_events_say_what_the_lines_say(tmp_path: Path) -> None:
    train(tiny_config(make_pedes(tmp_path / "data")), tmp_path / "run")
    lines, events = read_lines(tmp_path / "run"), read_events(tmp_path / "run")
    steps = [line for line in lines if line["kind"] == "step"]
    expected = {name: [(line["step"], line[name]) for line in steps] for name in ("loss", "lr", "scale")}
    for group in ("losses", "weights", "norms"):
        for task in steps[0][group]:
            expected[f"{group}/{task}"] = [(line["step"], line[group][task]) for line in steps]
    for name in ("R1", "R5", "R10", "mAP", "mINP", "beta"):
        validations = [line for line in lines if line["kind"] == "validation"]
        expected[f"validation/{name}"] = [(line["step"], line[name]) for line in validations]
    assert events.keys() >= expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in events[name]] == [step for step, _ in points], name
        assert [value for _, value in events[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


def test_images_per_second(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 3))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.value for point in events.Scalars("images_per_second")] == [12.0, 12.0]


def test_points_behind_the_checkpoint_are_replaced(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 9))
    metrics_log.truncate(tmp_path, 5)
    write(tmp_path, 5, range(6, 8))
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert [step for step, _ in read_events(tmp_path)["losses/a"]] == [1, 2, 3, 4, 5, 6, 7]


def test_event_files_of_quick_restarts_are_read_in_the_order_of_their_making(tmp_path: Path) -> None:
    """Their names hold a counter as text: the eleventh file of a process would come before the ninth of one second."""
    for finished in range(3):
        write(tmp_path, finished, range(finished + 1, finished + 2))
    files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len({path.name.split(".")[3] for path in files}) == len(files) == 3
    assert [step for step, _ in read_events(tmp_path)["loss"]] == [1, 2, 3]


def test_a_clock_that_was_set_back_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir(parents=True)
    (tmp_path / "tensorboard" / "events.out.tfevents.9999999999.host.1.0").touch()
    write(tmp_path, 0, range(1, 2))
    assert [step for step, _ in read_events(tmp_path)["loss"]] == [1]


def test_an_event_that_a_kill_cut_short_hides_nothing(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 9))
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    write(tmp_path, 6, range(7, 10))
    assert [step for step, _ in read_events(tmp_path)["loss"]] == list(range(1, 10))


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    lines = [{"kind": "step", "step": 1, "epoch": 1}, {"kind": "step", "step": 2, "epoch": 1}]
    lines += [{"kind": "validation", "step": 2, "epoch": 1}, {"kind": "step", "step": 3, "epoch": 2}]
    for steps, kept in {0: 0, 1: 1, 2: 3, 3: 4, 9: 4}.items():
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "st')
        metrics_log.truncate(tmp_path, steps)
        assert read_lines(tmp_path) == lines[:kept]
    metrics_log.truncate(tmp_path / "new", 0)


def test_numbers_that_json_has_no_words_for(tmp_path: Path) -> None:
    values = {"info_nce": math.nan, "triplet": 0.25, "gate": -math.inf}
    path = metrics_log.write_nonfinite(tmp_path, 7, 2, values, ("a.jpg", "b.jpg"))
    assert read_json(path) == {
        "step": 7,
        "epoch": 2,
        "values": {"info_nce": "nan", "triplet": 0.25, "gate": "-inf"},
        "files": ["a.jpg", "b.jpg"],
    }


def test_nonfinite_file_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    config = tiny_config(make_pedes(tmp_path / "data"))
    train(config, tmp_path / "run")
    (tmp_path / "run" / "nonfinite.json").write_text("{}")
    train(config, tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "nonfinite.json").exists()


def test_without_tensorboard_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        RuntimeError, match="needs the package tensorboard .*; install it with `pip install tensorboard`"
    ):
        MetricsLog(tmp_path, 0)
    assert not list(tmp_path.iterdir())
