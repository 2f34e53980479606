"""Tuned sizes of the Triton kernels: the table that the dispatch reads, and the measurement that writes it, by a fake timer."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bdam_fast import _backend, _native, _operators, _tuning
from bench.gpu import tune
from bench.harness.results import ROOT

CARD = "NVIDIA X100"
GPU = torch.device("cuda", 0)
SIZE = "causal_conv1d.tile"


@pytest.fixture
def table(monkeypatch, tmp_path):
    """The place of a table that is not there yet, on a machine with one card."""
    path = tmp_path / "tuned.json"
    monkeypatch.setattr(_tuning, "TABLE", path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: CARD)
    monkeypatch.setattr(_backend, "_warned", set())
    _tuning._sizes.cache_clear()
    yield path
    _tuning._sizes.cache_clear()


def sizes_now():
    _tuning._sizes.cache_clear()
    return {name: _tuning.size(name, GPU) for name in _tuning.CHOICES}


DEFAULTS = {name: choices[0] for name, choices in _tuning.CHOICES.items()}


def test_without_a_table_the_defaults_hold(table):
    assert sizes_now() == DEFAULTS
    expected = {"causal_conv1d.tile": 1024, "selective_scan.states": 512}
    expected |= {"selective_scan.block_channels": 128, "selective_scan.saved_steps": 8, "hsic.features": 16}
    assert expected == DEFAULTS


def test_a_table_holds_for_its_card_and_its_sizes(table):
    table.write_text(json.dumps({CARD: {SIZE: 2048}, "another": {"selective_scan.states": 256}}))
    assert sizes_now() == DEFAULTS | {SIZE: 2048}
    assert _tuning.size(SIZE, torch.device("cpu")) == 1024
    table.write_text(json.dumps({"another": {SIZE: 2048}}))
    assert sizes_now() == DEFAULTS


BAD = [
    ("{", "is not JSON that can be read"),
    ("[]", "must hold an object of sizes for each card"),
    (json.dumps({CARD: 3}), "must hold an object of sizes for each card"),
    (json.dumps({CARD: {SIZE: 1000}}), "causal_conv1d.tile = 1000 of NVIDIA X100 must be one of 1024, 512, 2048"),
    (json.dumps({CARD: {"hsic.tile": 64}}), "hsic.tile = 64 of NVIDIA X100 must be no size of a kernel"),
]


@pytest.mark.parametrize(("text", "words"), BAD)
def test_a_bad_table_is_ignored_with_a_warning(table, text, words):
    table.write_text(text)
    with pytest.raises(ValueError, match="tuned.json") as error:
        _tuning.read(table)
    assert words in str(error.value)
    with pytest.warns(RuntimeWarning, match="the tuned sizes are not used") as warned:
        assert sizes_now() == DEFAULTS == sizes_now()
    assert len(warned) == 1
    with pytest.raises(ValueError, match="tuned.json"):
        tune.write(CARD, {}, table)
    assert table.read_text() == text


def timer_of(times):
    """A timer on which the variants take these times, in milliseconds, by their sizes."""

    def timing(runs, rounds, tick):
        for run in runs:
            run.variant.call()
            run.samples = [times[int(run.variant.name)]] * rounds

    return timing


def right():
    return [torch.ones(3)]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({1024: 2.0, 512: 3.0, 2048: 1.5}, 2048),
        ({1024: 2.0, 512: 1.0, 2048: 1.5}, 512),
        ({1024: 1.0, 512: 0.99, 2048: 1.5}, 1024),
        ({1024: 1.0, 512: 1.2, 2048: 1.5}, 1024),
    ],
)
def test_the_fastest_size_is_taken_unless_it_is_noise(times, expected, capsys):
    assert tune.best(SIZE, right, timer_of(times)) == expected
    assert f"512 {times[512]:.4g} ms" in capsys.readouterr().out
    assert not _tuning._override


def test_a_size_with_other_results_is_refused(capsys):
    def wrong():
        return [torch.ones(3) * (2 if _tuning.size(SIZE, GPU) == 2048 else 1)]

    assert tune.best(SIZE, wrong, timer_of({1024: 2.0, 512: 1.9, 2048: 0.1})) == 512
    assert "causal_conv1d.tile = 2048 is refused: its results differ by 1.0e+00" in capsys.readouterr().out


def test_what_is_measured_is_what_the_dispatch_reads(table):
    """Cards beside each other; the table is read again by the next process, here by an empty cache."""
    tune.write("another", {SIZE: 512}, table)
    tune.write(CARD, {SIZE: tune.best(SIZE, right, timer_of({1024: 2.0, 512: 3.0, 2048: 1.5}))}, table)
    assert _tuning.read(table) == {CARD: {SIZE: 2048}, "another": {SIZE: 512}}
    assert sizes_now()[SIZE] == 2048
    assert [path.name for path in table.parent.iterdir()] == ["tuned.json"]


def test_every_size_has_a_call_that_tunes_it():
    """And the call does compute: here without a GPU, on the CPU."""
    calls = [(name, make) for sizes in tune.CALLS.values() for name, make in sizes.items()]
    assert sorted(name for name, _ in calls) == sorted(_tuning.CHOICES)
    for backend, sizes in tune.CALLS.items():
        for make in sizes.values():
            with pytest.raises(ValueError, match=f'backend="{backend}" needs tensors on a GPU'):
                make((1, 4, 3), "cpu")()


def test_a_size_is_measured_with_the_best_of_those_before_it(monkeypatch, capsys):
    """And a backend that fails leaves its defaults."""
    seen = []

    def call(shape):
        def results():
            seen.append(dict(_tuning._override))
            return right()

        return results

    def broken(shape):
        raise RuntimeError("no such kernel\nat line 3")

    monkeypatch.setitem(_tuning.CHOICES, "one", (1, 2))
    monkeypatch.setitem(_tuning.CHOICES, "two", (1, 3))
    monkeypatch.setattr(tune, "CALLS", {"cuda": {"one": call, "two": call, "three": broken}})
    assert tune.measure_backend("cuda", timer_of({1: 2.0, 2: 1.0, 3: 1.5})) == {"one": 2, "two": 3}
    assert {"one": 2} in seen and {"one": 2, "two": 3} in seen and {"one": 1, "two": 3} not in seen
    assert "cuda is not tuned any further: no such kernel\n" in capsys.readouterr().out


def test_the_cuda_library_takes_the_table_of_each_card(table, monkeypatch):
    """When the operator is loaded, and while sizes are fixed; without a card the first place stands for the emulation's."""
    told = []
    library = SimpleNamespace(set_narrow_backward=lambda card, on: told.append((card, on)), call_counts=dict)
    monkeypatch.setattr(_native, "_attempt_cuda", lambda: (library, ""))
    table.write_text(json.dumps({CARD: {"selective_scan.block_channels": 64}}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: (CARD, "another")[index])
    monkeypatch.setattr(_operators.OPERATORS["selective_scan"], "_loaded", {})
    _operators.OPERATORS["selective_scan"].raw("cuda")
    assert told == [(0, True), (1, False)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with _tuning.fixed({"selective_scan.block_channels": 64}):
        assert told[2:] == [(0, True)]
    assert told[3:] == [(0, False)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_tuning_needs_a_gpu():
    done = subprocess.run([sys.executable, "-m", "bench.gpu.tune"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "tune: there is no GPU that this PyTorch can use\n"
