"""The Triton kernels of causal_conv1d under Triton's interpreter, against the reference in float64."""

from functools import partial

import pytest
import torch

from bdam_fast import _tuning
from bdam_fast.ops.causal_conv1d import triton_impl
from tests.support.operators import leaves, packed_index, same_bits, stream
from tests.support.operators.causal_conv1d import check_conv, conv_problem, run_conv
from tests.support.operators.kernels import CONV

pytestmark = pytest.mark.usefixtures("poison")

check = partial(check_conv, backend="triton")


def run(problem, **kwargs):
    """Output, final states and every gradient."""
    return run_conv(leaves(problem), backend="triton", **kwargs)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
def test_widths_orders_and_directions(width, order):
    for reverse in (False, True) if width in (1, 4, 8) else (width % 2 == 0,):
        activation = "silu" if width != 4 or reverse else None
        check(conv_problem(1, 19, 11, width, order=order), order=order, reverse=reverse, activation=activation)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 65])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_lengths(length, order):
    for reverse in (False, True) if length < 4 else (length % 2 == 0,):
        check(conv_problem(1, 3, length, order=order), order=order, reverse=reverse)
    check(conv_problem(1, 3, length, 5, order=order), order=order, seq_idx=packed_index(1, length))


@pytest.mark.parametrize(("tile", "programs"), [(8, 1), (8, 1000), (32, 1), (32, 6)])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_many_tiles_and_chunks(monkeypatch, tile, programs, order):
    """Small tiles, so that short sequences are cut as long ones are: several tiles a program, several programs."""
    monkeypatch.setitem(_tuning._override, "causal_conv1d.tile", tile)
    monkeypatch.setattr(triton_impl, "PROGRAMS", programs)
    for reverse in (False, True):
        check(conv_problem(1, 3, 21, 3, order=order), order=order, reverse=reverse)
        check(conv_problem(1, 3, 21, 3, order=order), order=order, seq_idx=packed_index(1, 21), reverse=reverse)


@pytest.mark.parametrize("value", _tuning.CHOICES["causal_conv1d.tile"])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_every_size_that_a_card_s_table_may_hold(value, order):
    """Tiles that are not filled, and by the smallest one that are."""
    with _tuning.fixed({"causal_conv1d.tile": value}):
        check(conv_problem(1, 67, 19, order=order), order=order)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
def test_dtypes(dtype, order):
    for reverse in (False, True):
        check(conv_problem(1, 9, 13, dtype=dtype, order=order), order=order, reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_parameters_of_other_dtypes_and_strides(dtype):
    problem = conv_problem(2, 9, 13, dtype=torch.bfloat16)
    problem |= {n: problem[n].to(dtype) for n in ("weight", "bias", "initial_states")}
    problem["weight"] = torch.randn(8, 18).to(dtype)[::2, ::2].T
    problem["initial_states"] = torch.randn(2, 3, 9).to(dtype).transpose(1, 2)
    dfinal = torch.randn(9, 1, 2).expand(-1, 3, -1).permute(2, 0, 1)
    check(problem, upstream=(torch.randn(2, 13, 9).mT, dfinal))
    check(problem, upstream=(torch.ones(1, dtype=torch.bfloat16).expand(2, 9, 13), dfinal))
    problem["x"] = torch.randn(2, 1, 13).bfloat16().expand(2, 9, 13)
    check(problem)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("absent", [(), ("bias",), ("initial_states",), ("bias", "initial_states")], ids=str)
@pytest.mark.parametrize("silu", [False, True])
def test_absent_arguments(absent, final, silu):
    options = {"activation": "silu" if silu else None, "return_final_states": final}
    for reverse in (False, True):
        problem = conv_problem(1, 5, 9, absent=absent)
        got = check(problem, reverse=reverse, **options)
        arguments = CONV.raw_arguments(problem, silu=silu, reverse=reverse)[:-1]
        alone, nothing = triton_impl.forward(*arguments, False)
        grads = triton_impl.backward(alone, None, *arguments)
        assert same_bits(got["out"], alone)
        assert nothing.shape == (0,)
        assert [g.shape == (0,) for g in grads] == [name in absent for name in CONV.inputs[:4]]
    check(problem, seq_idx=packed_index(1, 9), **options)


INDICES = {
    "one": [3] * 12,
    "new every step": list(range(12)),
    "padding first": [-1, -7, -1, 0, 0, 0, 0, 0, 1, 1, 1, 1],
    "padding last": [0, 0, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1],
    "padding within": [0, -1, 0, -1, -1, 0, 0, 2, -1, 2, 2, -1],
    "short last": [0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 9, -1],
    "an index again": [0, 0, 1, 1, 0, 0, 0, 2147483647, 0, 0, 0, 0],
    "only padding": [-1] * 12,
    "one step": [-1, -1, -1, -1, 5] + [-1] * 7,
}


@pytest.mark.parametrize("kind", INDICES)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences(kind, reverse):
    """Against the reference; what stands in the padding, NaN too, is read into nothing."""
    index = torch.tensor([INDICES[kind], INDICES["padding within"]], dtype=torch.int32)
    for width, order in ((4, "bld"), (7, "bdl")) if kind == "padding within" else ((3, "bld"),):
        problem = conv_problem(2, 5, 12, width, order=order)
        upstream = [stream(2, 5, 12, torch.float32, order), torch.randn(2, 5, width - 1)]
        got = check(problem, seq_idx=index, reverse=reverse, upstream=upstream)
        padding = (index < 0)[:, None].expand(2, 5, 12)
        for value in (problem["x"], upstream[0]):
            value[padding] = float("nan")
        again = run(problem, seq_idx=index, reverse=reverse, upstream=upstream)
        assert all(same_bits(again[name], value) for name, value in got.items())
        assert all(again[name][padding].abs().sum() == 0 for name in ("out", "dx"))


def test_strided_and_empty_seq_idx():
    problem = conv_problem(2, 5, 9)
    check(problem, seq_idx=packed_index(2, 18)[:, ::2])
    check(conv_problem(0, 5, 9), seq_idx=packed_index(0, 9))
    check(conv_problem(0, 5, 0))


def test_nan_stays_in_its_window_and_channel():
    """A broken value reaches only the gradients of the taps that multiply it, at either end of the sequence."""
    for at in (0, 8):
        problem = conv_problem(1, 3, 9, 4)
        problem["x"][0, 1, at] = float("nan")
        exact = run_conv(leaves(problem, torch.float64), backend="reference", activation=None)
        got = run(problem, activation=None)
        for name, value in got.items():
            assert torch.equal(value.isnan(), exact[name].isnan()), name


def test_extreme_values():
    problem = conv_problem(1, 4, 5, 1, absent=("initial_states",)) | {
        "weight": torch.ones(4, 1),
        "bias": torch.zeros(4),
    }
    problem["x"][0, :, 2] = torch.tensor([1e4, -1e4, 88.0, -88.0])
    check(problem)


def test_same_bits_again():
    problem = conv_problem(2, 5, 40)
    first, again = run(problem), run(problem)
    assert all(same_bits(again[name], value) for name, value in first.items())


def test_the_order_of_programs_does_not_matter(monkeypatch, programs_from_the_last):
    monkeypatch.setitem(_tuning._override, "causal_conv1d.tile", 8)
    monkeypatch.setattr(triton_impl, "PROGRAMS", 6)
    problem = conv_problem(2, 3, 17)
    forwards = run(problem)
    programs_from_the_last()
    assert [name for name, value in run(problem).items() if not same_bits(value, forwards[name])] == []
