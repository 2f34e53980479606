"""The whole pipeline on one device, as `make gpu` runs it, on the CPU: what it compares, and every command once."""

import json
import subprocess
import sys

import pytest

from bench.harness.results import ROOT
from bench.pipeline import whole
from bench.pipeline.reliability_stages import TINY


def write_evaluation(folder, name, r1, mean):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"metrics": {"R1": r1, "mAP": mean, "R5": 0.0}}))


def test_devices_that_disagree_are_named(tmp_path):
    for folder, identity in (("card", 30.0), ("cpu", 31.5)):
        write_evaluation(tmp_path / folder, "eval.json", 60.0, 40.25)
        write_evaluation(tmp_path / folder, "eval-identity.json", identity, 20.0)
    card, cpu = (whole.results(tmp_path / name) for name in ("card", "cpu"))
    assert card == {"eval R1": 60.0, "eval mAP": 40.25, "eval-identity R1": 30.0, "eval-identity mAP": 20.0}
    assert whole.differences(cpu, card) == ["eval-identity R1: 31.50, expected 30.00"]
    assert whole.differences({}, {"eval R1": 60.0}) == ["eval R1: nan, expected 60.00"]
    assert whole.differences(card, card) == []


def test_the_speed_is_the_median_steps(tmp_path):
    lines = [{"kind": "step", "images": 64, "seconds": s} for s in (9.0, 0.5, 0.5)] + [{"kind": "validation"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "resources.json").write_text(json.dumps({"memory_mb": 812.4}))
    assert whole.speed(tmp_path) == "128 images a second, 812 MB"


def test_a_command_that_fails_ends_it():
    with pytest.raises(RuntimeError, match=r"(?s)train ended with 2:.*RECIPE"):
        whole.run(["train", "--out", "nowhere"])


@pytest.mark.slow
def test_every_command(tmp_path):
    words = [
        "--device",
        "cpu",
        "--ids",
        "80",
        "--folder",
        str(tmp_path / "made"),
        *TINY,
        "--optim.save-every-steps",
        "0",
    ]
    command = [sys.executable, "-m", "bench.pipeline.whole", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = [line.split(" s  ")[1].split()[0] for line in done.stdout.splitlines() if " s  " in line]
    ways = "prepare train evaluate disentangle gallery search search evaluate train"
    assert commands == ways.split()
    assert "device cpu in fp32; " in done.stdout and "eval-rerank R1 " in done.stdout
