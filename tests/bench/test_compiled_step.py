"""The training step that `make gpu` times, on the CPU: with another compiler, and with ways that fail."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from bench.harness.results import ROOT
from bench.pipeline import compiled_step
from bench.pipeline.compiled_step import Way
from bench.pipeline.full_size_step import random_batch
from training.config import EncoderConfig
from training.config.recipes import get_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config():
    """The recipe with encoders of width 16 and six images."""
    config = get_recipe("synthetic")
    small = EncoderConfig(width=16, layers=1, heads=2, patch_size=8, stem="plain")
    data = replace(config.data, image_size=(32, 16), text_length=8, ids_per_batch=3)
    model = replace(config.model, visual=small, text=replace(small, patch_size=16), embedding=8)
    return replace(config, data=data, model=replace(model, fusion=replace(model.fusion, width=8, state=4)))


def test_the_compiled_step_is_measured_and_has_the_same_losses(config, capsys):
    batch = random_batch(config, compiled_step.VOCABULARY, 6)
    ways = (Way("eager"), Way("compiled", "aot_eager"))
    compiled = []

    def measure(way):
        compiled.append(way.compiler)
        return compiled_step.measure(config, batch, CPU, way, 2)

    medians, problems = compiled_step.compare(ways, measure)
    assert problems == [] and medians.keys() == {"eager", "compiled"} and compiled == ["", "aot_eager"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("fastest: ")


def test_the_published_sizes_are_measured(config, monkeypatch):
    monkeypatch.setattr(compiled_step, "STEPS", 4)
    said = compiled_step.measure_published(CPU, config, 50)
    assert re.fullmatch(r"published sizes, 6 images: \d+\.\d ms a step, \d+ images a second, 0 MiB", said)


def test_the_ways_with_a_compiler_are_compiled_side_by_side(monkeypatch):
    started = []

    class Process:
        def __init__(self, command, cwd):
            started.append(command[-3:])

        def wait(self):
            return len(started) - 1

    monkeypatch.setattr(compiled_step.subprocess, "Popen", Process)
    assert compiled_step.compile_ways() == 1
    assert started == [["--compile", "--way", "1"], ["--compile", "--way", "2"]]


def test_the_way_reaches_the_compiler(config, monkeypatch):
    asked = []
    monkeypatch.setattr(compiled_step, "configure_model", lambda model, *rest: asked.append(rest))
    for way in compiled_step.WAYS:
        compiled_step.make_stepper(config, CPU, way)
    assert [(optim.compile, *rest) for optim, *rest in asked] == [
        (True, "inductor", None),
        (True, "inductor", "reduce-overhead"),
    ]


def test_a_way_that_fails_or_is_wrong_leaves_the_others(capsys):
    found = {"eager": ([4.0, 5.0, 6.0], [2.0, 1.0]), "wrong": ([1.0], [2.0, 1.1]), "fast": ([2.0, 3.0], [2.0, 1.01])}

    def measure(way):
        if way.name == "broken":
            raise NotImplementedError("no graph of this\nand more")
        return found[way.name]

    medians, problems = compiled_step.compare([Way(n) for n in ("eager", "broken", "wrong", "fast")], measure)
    assert medians == {"eager": 5.0, "fast": 2.5}
    assert problems == ["broken: NotImplementedError: no graph of this", "wrong: its losses differ by 1.0e-01"]
    assert capsys.readouterr().out.splitlines()[-1] == "fastest: fast, 0.50 of eager"
    assert compiled_step.compare([Way("broken")], measure)[0] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_the_step_needs_a_gpu():
    done = subprocess.run(
        [sys.executable, "-m", "bench.pipeline.compiled_step"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr == "training: there is no GPU that this PyTorch can use\n"
