"""The Triton kernels of causal_conv1d under Triton's interpreter, against the reference in float64."""

import pytest
import torch

from bdam_fast.ops.causal_conv1d import triton_impl
from bdam_fast.ops.causal_conv1d.reference import causal_conv1d_reference
from tests.support.operators import assert_close, leaves, packed_index, same_bits, stream

pytestmark = pytest.mark.usefixtures("poison")

NAMES = ("x", "weight", "bias", "initial_states")


def conv_problem(batch=2, channels=5, length=9, width=4, *, dtype=torch.float32, order="bld", absent=()):
    """Tensor arguments of the raw operator and its upstream gradients."""
    problem = {
        "x": stream(batch, channels, length, dtype, order),
        "weight": torch.randn(channels, width),
        "bias": torch.randn(channels),
        "initial_states": torch.randn(batch, channels, width - 1),
        "dout": stream(batch, channels, length, dtype, order),
        "dfinal": torch.randn(batch, channels, width - 1),
    }
    return {name: value for name, value in problem.items() if name not in absent}


def by_reference(problem, dtype, seq_idx, silu, reverse):
    """Every result by the reference and plain autograd, all tensors converted to `dtype` if one is given."""
    tensors = {n: t if dtype is None else t.to(dtype) for n, t in problem.items()}
    own = leaves({n: tensors[n] for n in NAMES if n in tensors})
    out, final = causal_conv1d_reference(
        own["x"], own["weight"], own.get("bias"), silu, own.get("initial_states"), reverse, seq_idx
    )
    dfinal = tensors["dfinal"].to(final.dtype) if "dfinal" in tensors else torch.zeros_like(final)
    grads = torch.autograd.grad((out, final), list(own.values()), (tensors["dout"], dfinal), materialize_grads=True)
    return {"out": out.detach(), "final": final.detach(), **{f"d{n}": g for n, g in zip(own, grads, strict=True)}}


def by_kernels(problem, seq_idx, silu, reverse):
    args = (*(problem.get(n) for n in NAMES), seq_idx, silu, reverse)
    out, final = triton_impl.forward(*args, True)
    grads = triton_impl.backward(problem["dout"], problem.get("dfinal"), *args)
    for name, gradient in zip(NAMES, grads, strict=True):
        if name in problem:
            like = torch.empty_like(problem[name])
            assert (gradient.stride(), gradient.dtype) == (like.stride(), like.dtype)
        else:
            assert gradient.shape == (0,)
    found = {f"d{n}": g for n, g in zip(NAMES, grads, strict=True) if n in problem}
    return {"out": out, "final": final, **found}


def check(problem, seq_idx=None, silu=True, reverse=False):
    exact = by_reference(problem, torch.float64, seq_idx, silu, reverse)
    same = by_reference(problem, None, seq_idx, silu, reverse)
    got = by_kernels(problem, seq_idx, silu, reverse)
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == same[name].dtype, f"{name}: {value.dtype}, expected {same[name].dtype}"
        assert_close(name, value, exact[name], same[name])
    return got


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
def test_widths_orders_and_directions(width, order):
    for reverse in (False, True) if width in (1, 4, 8) else (width % 2 == 0,):
        check(conv_problem(1, 19, 11, width, order=order), reverse=reverse, silu=width != 4 or reverse)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 65])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_lengths(length, order):
    for reverse in (False, True) if length < 4 else (length % 2 == 0,):
        check(conv_problem(1, 3, length, order=order), reverse=reverse)
    check(conv_problem(1, 3, length, 5, order=order), packed_index(1, length))


@pytest.mark.parametrize(("tile", "programs"), [(8, 1), (8, 1000), (32, 1), (32, 6)])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_many_tiles_and_chunks(monkeypatch, tile, programs, order):
    """Small tiles, so that short sequences are cut as long ones are: several tiles a program, several programs."""
    monkeypatch.setattr(triton_impl, "TILE", tile)
    monkeypatch.setattr(triton_impl, "PROGRAMS", programs)
    for reverse in (False, True):
        check(conv_problem(1, 3, 21, 3, order=order), reverse=reverse)
        check(conv_problem(1, 3, 21, 3, order=order), packed_index(1, 21), reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
def test_dtypes(dtype, order):
    for reverse in (False, True):
        check(conv_problem(1, 9, 13, dtype=dtype, order=order), reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_parameters_of_other_dtypes_and_strides(dtype):
    problem = conv_problem(2, 9, 13, dtype=torch.bfloat16)
    problem |= {n: problem[n].to(dtype) for n in ("weight", "bias", "initial_states")}
    problem["weight"] = torch.randn(8, 18).to(dtype)[::2, ::2].T
    problem["initial_states"] = torch.randn(2, 3, 9).to(dtype).transpose(1, 2)
    problem["dfinal"] = torch.randn(9, 1, 2).expand(-1, 3, -1).permute(2, 0, 1)
    check(problem)
    check(problem | {"dout": torch.ones(1, dtype=torch.bfloat16).expand(2, 9, 13)})
    problem["x"] = torch.randn(2, 1, 13).bfloat16().expand(2, 9, 13)
    check(problem)


ABSENT = [
    ("bias",),
    ("initial_states",),
    ("dfinal",),
    ("bias", "initial_states", "dfinal"),
    ("initial_states", "dfinal"),
]


@pytest.mark.parametrize("absent", ABSENT, ids=str)
@pytest.mark.parametrize("silu", [False, True])
def test_absent_arguments(absent, silu):
    for reverse in (False, True):
        problem = conv_problem(1, 5, 9, absent=absent)
        got = check(problem, silu=silu, reverse=reverse)
        args = (*(problem.get(n) for n in NAMES), None, silu, reverse)
        alone, nothing = triton_impl.forward(*args, False)
        assert same_bits(got["out"], alone)
        assert nothing.shape == (0,)
    check(problem, packed_index(1, 9), silu=silu)


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
        got = check(problem, index, reverse=reverse)
        padding = (index < 0)[:, None].expand(2, 5, 12)
        for name in ("x", "dout"):
            problem[name][padding] = float("nan")
        again = by_kernels(problem, index, True, reverse)
        assert all(same_bits(again[name], value) for name, value in got.items())
        assert all(again[name][padding].abs().sum() == 0 for name in ("out", "dx"))


def test_strided_and_empty_seq_idx():
    problem = conv_problem(2, 5, 9)
    check(problem, packed_index(2, 18)[:, ::2])
    check(conv_problem(0, 5, 9), packed_index(0, 9))
    check(conv_problem(0, 5, 0))


def test_nan_stays_in_its_window_and_channel():
    """A broken value reaches only the gradients of the taps that multiply it, at either end of the sequence."""
    for at in (0, 8):
        problem = conv_problem(1, 3, 9, 4)
        problem["x"][0, 1, at] = float("nan")
        exact = by_reference(problem, torch.float64, None, False, False)
        got = by_kernels(problem, None, False, False)
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
    first = by_kernels(problem, None, True, False)
    assert all(same_bits(by_kernels(problem, None, True, False)[name], value) for name, value in first.items())
