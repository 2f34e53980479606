"""Variants of selective_scan's CUDA backward, in the emulation: half of the saved states, and fewer channels a block."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bdam_fast import _tuning
from bdam_fast.ops.selective_scan import fake, saving
from tests.cuda_host.test_selective_scan import check, run
from tests.support.cuda_host import build
from tests.support.operators import packed_index, same_bits
from tests.support.operators.kernels import SCAN
from tests.support.operators.selective_scan import scan_problem, without_softplus

pytestmark = pytest.mark.usefixtures("emulated_backend")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BOTH = {"selective_scan.block_channels": 64, "selective_scan.saved_steps": 16}


@pytest.fixture
def half():
    """States are saved before every second tile."""
    with _tuning.fixed({"selective_scan.saved_steps": 16}):
        yield


@pytest.fixture
def narrow():
    """The backward has 64 channels a block."""
    with _tuning.fixed({"selective_scan.block_channels": 64}):
        yield


def saved(problem: dict[str, Tensor], save_states: int, **others: Any) -> Tensor:
    """The states that a forward saves."""
    arguments = SCAN.raw_arguments(problem | others, save_states=save_states)
    return SCAN.raw("cuda")(*arguments)[2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("length", [1, 8, 9, 16, 17, 24, 31, 48, 77])
def test_half_of_the_states(half, length, order, dtype):
    check(scan_problem(2, 8, length, 16, dtype=dtype, order=order))


@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("channels", [1, 5, 130, 136])
def test_half_of_the_states_of_any_channels(half, channels, order):
    check(scan_problem(1, channels, 29, 13, dtype=torch.bfloat16, order=order), reverse=True)
    check(scan_problem(1, channels, 32, 16, order=order))


@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
def test_half_of_the_states_of_a_split_length(half, order):
    check(scan_problem(1, 8, 523, 16, dtype=torch.bfloat16, order=order))
    check(scan_problem(1, 8, 540, 16, order=order), reverse=True)


@pytest.mark.parametrize("length", [1, 8, 9, 16, 24, 77])
def test_half_of_the_states_is_every_second(length):
    problem = scan_problem(2, 5, length, 16)
    rows, tiles = -(-length // 16), -(-length // 8)
    all_, kept = saved(problem, 1), saved(problem, 2)
    assert kept.shape == (2, rows * 16 * 5) and all_.shape == (2, tiles * 16 * 5)
    assert same_bits(kept.view(2, rows, -1), all_.view(2, tiles, -1)[:, ::2])
    for count, states in ((1, all_), (2, kept)):
        shape = fake.saved_shape(build.NAMESPACE, *(problem[n] for n in ("u", "A", "B", "C")), count)
        assert shape == states.shape


def test_the_state_between_is_that_of_the_forward():
    """A gradient from half of the states has the bits of that from all of them, where dt is rounded alike."""
    problem = scan_problem(1, 8, 40, 16)
    arguments = SCAN.raw_arguments(problem, save_states=1)
    upstream = [torch.randn(1, 8, 40), torch.randn(1, 8, 16)]
    backward = getattr(torch.ops, build.NAMESPACE).selective_scan_backward
    every, second = (
        backward(*SCAN.backward_arguments(upstream, [saved(problem, count)], arguments)) for count in (1, 2)
    )
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(every, second, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 9, 16, 77])
@pytest.mark.parametrize("channels", [8, 64, 72, 136])
def test_fewer_channels_a_block(narrow, channels, length, dtype):
    check(scan_problem(2, channels, length, 16, dtype=dtype, order="bld"))


@pytest.mark.parametrize("order", ["bdl", "strided"])
def test_fewer_channels_a_block_only_by_vectors_of_channels(narrow, order):
    check(scan_problem(1, 136, 16, 16, order=order))
    check(scan_problem(1, 136, 16, 8, order="bld"))
    check(scan_problem(1, 136, 16, 16, order="bld"), seq_idx=packed_index(1, 16))


def test_fewer_channels_a_block_of_a_split_length_and_groups(narrow):
    check(scan_problem(1, 72, 523, 16, dtype=torch.bfloat16, order="bld"))
    check(scan_problem(2, 144, 21, 16, groups=(2, 1), order="bld"), reverse=True)


def test_fewer_channels_a_block_is_another_order_of_sums(narrow):
    """So that it is known to have run; and it is the default's no more afterwards."""
    problem = scan_problem(1, 136, 24, 16, order="bld")
    own = run(problem)
    with _tuning.fixed({"selective_scan.saved_steps": 8}):
        default = run(problem)
    assert not same_bits(own["dB"], default["dB"]) and torch.allclose(own["dB"], default["dB"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [9, 40, 523])
def test_both(length, dtype):
    with _tuning.fixed(BOTH):
        check(scan_problem(1, 72, length, 16, dtype=dtype, order="bld"))


@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_bits_do_not_depend_on_the_order_of_threads(monkeypatch, order):
    problem = scan_problem(1, 136, 24, 16, order=order, dtype=torch.bfloat16, groups=(2, 1))
    results = []
    with _tuning.fixed(BOTH):
        for threads in ("forward", "reverse", "random:1", "random:2"):
            monkeypatch.setenv("BDAM_HOST_ORDER", threads)
            results.append(run(problem))
    for other in results[1:]:
        assert all(same_bits(value, other[name]) for name, value in results[0].items())


def test_nan_stays_in_its_channel(half):
    """Also in the state that is computed, and beside channels that are not there."""
    for channels, bad in ((8, 7), (5, 4)):
        problem = scan_problem(1, channels, 32, 16, order="bld")
        problem["u"][0, bad, 5] = torch.nan
        got = run(problem)
        good = [c for c in range(channels) if c != bad]
        assert all(got[name][:, good].isfinite().all() for name in ("out", "du", "ddelta", "dz"))
        assert all(torch.isnan(got[name][:, bad]).any() for name in ("out", "ddelta", "dz"))


WITHOUT_VARIANTS = [
    {"states": 8},
    {"states": 17},
    {"absent": ("z",)},
    {"groups": (None, 1)},
    {"groups": (1, None)},
]


@pytest.mark.parametrize("make", WITHOUT_VARIANTS, ids=str)
def test_other_cases_save_all_states(half, make):
    problem = scan_problem(1, 8, 24, **{"states": 16, **make})
    check(problem)
    tensors = tuple(problem.get(name) for name in SCAN.inputs)
    assert saving.every(build.NAMESPACE, True, tensors) == 1
    with pytest.raises(RuntimeError, match="save_states = 2 needs z, softplus, B and C per step, 9 to 16 states"):
        saved(problem, 2)


def test_packed_and_without_softplus_all_states_are_saved(half):
    check(scan_problem(1, 8, 24, 16), seq_idx=packed_index(1, 24))
    check(without_softplus(scan_problem(1, 8, 24, 16)), delta_softplus=False)
    with pytest.raises(RuntimeError, match="save_states must be 0, 1 or 2, got 3"):
        saved(scan_problem(1, 8, 24, 16), 3)


def test_many_bytes_are_halved(monkeypatch):
    """2 x 8 x 3 tiles x 16 states x 4 bytes are 3072."""
    problem = scan_problem(2, 8, 24, 16)
    tensors = tuple(problem.get(name) for name in SCAN.inputs)
    assert saving.every(build.NAMESPACE, True, tensors) == 1
    for many, expected in ((3072, 2), (3073, 1)):
        monkeypatch.setattr(saving, "MANY", many)
        assert saving.every(build.NAMESPACE, True, tensors) == expected
        assert saving.every(build.NAMESPACE, False, tensors) == saving.every("bdam_fast", True, tensors) == 1
    monkeypatch.setattr(saving, "MANY", 3072)
    check(problem)


def test_a_length_that_is_not_known_leaves_it_to_the_table(monkeypatch):
    """A graph's length is no plain int; a comparison with it would be a guard."""
    monkeypatch.setattr(saving, "MANY", 0)
    problem = scan_problem(2, 8, 24, 16)
    tensors = [problem.get(name) for name in SCAN.inputs]
    length = type("Length", (int,), {})(24)
    tensors[0] = SimpleNamespace(device=torch.device("cpu"), shape=(2, 8, length))
    assert saving.every(build.NAMESPACE, True, tuple(tensors)) == 1
    with _tuning.fixed({"selective_scan.saved_steps": 16}):
        assert saving.every(build.NAMESPACE, True, tuple(tensors)) == 2
