"""selective_scan in Triton, interpreted, against the float64 reference."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bdam_fast import _tuning
from bdam_fast.ops.selective_scan import triton_arguments, triton_cut, triton_impl
from tests.support.operators import leaves, packed_index, same_bits
from tests.support.operators.kernels import SCAN
from tests.support.operators.selective_scan import (
    EXTREMES,
    check_scan,
    run_scan,
    scan_problem,
    with_own_dtypes,
    without_softplus,
)

pytestmark = pytest.mark.usefixtures("poison")
check = partial(check_scan, backend="triton")


def run(problem: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
    """Output, last state and every gradient."""
    return run_scan(leaves(problem), backend="triton", **kwargs)


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 31, 32, 33, 65])
def test_lengths(length):
    check(scan_problem(1, 5, length, 3, order="bdl" if length % 2 else "bld"), reverse=length % 3 == 0)


@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_dtypes_and_memory_orders(dtype, order, reverse):
    check(scan_problem(1, 7, 10, 6, dtype=dtype, order=order), reverse=reverse)


@pytest.mark.parametrize("states", [1, 3, 8, 16, 17, 256])
def test_states(states):
    check(scan_problem(1, 5, 9, states))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "length"), [(torch.float32, 20), (torch.bfloat16, 16), (torch.bfloat16, 11)], ids=str
)
def test_sixteen_states_that_are_read_by_fours(dtype, length, packed, reverse):
    problem = scan_problem(2, 6, length, 16, dtype=dtype, groups=(2, 1))
    assert triton_arguments.fours(16, problem["B"], problem["C"])
    check(problem, reverse=reverse, seq_idx=packed_index(2, length) if packed else None)


@pytest.mark.parametrize("length", [8, 12, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_tiles_in_accesses_of_16_bytes(dtype, length, reverse):
    problem = scan_problem(1, 6, length, 5, dtype=dtype, order="bdl")
    assert triton_arguments.tiling(problem["u"]) == (
        1 if dtype == torch.bfloat16 and length > 8 else 16 // dtype.itemsize,
        True,
    )
    check(problem, reverse=reverse)


def test_which_projections_are_read_by_fours():
    rows = torch.zeros(2, 9, 48)
    slices = [rows[..., at : at + 16].transpose(1, 2) for at in (0, 4, 16, 2)]
    assert [triton_arguments.fours(16, t) for t in slices] == [True, True, True, False]
    assert triton_arguments.fours(16, slices[0], torch.zeros(6, 16)) and not triton_arguments.fours(
        16, slices[0], slices[3]
    )
    others = [rows[..., :15].transpose(1, 2), torch.zeros(2, 16, 9), torch.zeros(2, 9, 46)[..., 4:20].transpose(1, 2)]
    assert not any(triton_arguments.fours(t.shape[1], t) for t in others)
    assert not triton_arguments.fours(8, rows[..., :8].transpose(1, 2))
    half = torch.zeros(2, 9, 48, dtype=torch.bfloat16)
    assert [triton_arguments.fours(16, half[..., at : at + 16].transpose(1, 2)) for at in (4, 2)] == [True, False]


@pytest.mark.parametrize("shape", [(2, 70, 4, 4), (1, 20, 9, 64), (3, 1, 3, 2), (1, 37, 12, 16)], ids=str)
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_several_programs(shape, order):
    check(scan_problem(*shape, order=order), reverse=shape[0] == 2)


@pytest.mark.parametrize("order", ["bld", "bdl"])
@pytest.mark.parametrize("value", _tuning.CHOICES["selective_scan.states"][1:])
def test_every_size_that_a_card_s_table_may_hold(value, order):
    """A program has fewer channels then, and another program takes the rest."""
    with _tuning.fixed({"selective_scan.states": value}):
        assert triton_cut.blocks_of(37, 16, torch.device("cpu"))[:2] == (value // 16 // 8, 16)
        check(scan_problem(1, 37, 10, 16, order=order), reverse=order == "bdl")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("groups", [(1, 1), (2, 2), (2, 1), (1, 2), (None, 1), (2, None), (None, None)], ids=str)
def test_projections_reverse_and_packing(groups, packed, reverse):
    length = 11 if packed else 5
    problem = scan_problem(1, 6, length, 5, groups=groups, order="bdl" if packed != reverse else "bld")
    check(problem, reverse=reverse, seq_idx=packed_index(1, length) if packed else None)


def test_several_blocks_of_a_group():
    check(scan_problem(2, 40, 5, 64, groups=(2, 1)))


@pytest.mark.parametrize(
    "absent",
    [("D",), ("z",), ("delta_bias",), ("initial_state",), ("D", "z", "delta_bias", "initial_state")],
    ids=str,
)
@pytest.mark.parametrize("softplus", [False, True])
def test_optional_arguments(absent, softplus):
    problem = scan_problem(1, 4, 10, 3, absent=absent)
    problem = problem if softplus else without_softplus(problem)
    check(problem, delta_softplus=softplus, return_last_state=softplus)


def test_every_argument_may_have_its_own_dtype():
    problem = with_own_dtypes(scan_problem(1, 9, 10, 4, dtype=torch.bfloat16))
    check(problem)
    check(scan_problem(1, 3, 4, 4, groups=(None, None)) | {"B": torch.randn(3, 4).half()})


def test_expanded_and_misaligned_views():
    problem = scan_problem(2, 5, 10, 4)
    problem["u"] = problem["u"][:1].expand(2, -1, -1)
    problem["B"] = problem["B"][:, :, :1].expand(-1, -1, 10)
    problem["delta"] = torch.randn(2 * 5 * 10 + 1)[1:].view(2, 10, 5).transpose(1, 2)
    problem["A"] = problem["A"][:, :1].expand(-1, 4)
    problem["z"] = torch.randn(10, 5, 2).permute(2, 1, 0)
    check(problem)


@pytest.mark.parametrize("shape", [(0, 4, 5, 3), (2, 4, 0, 3), (0, 4, 0, 3)], ids=str)
def test_empty(shape):
    problem = scan_problem(*shape)
    got = check(problem)
    assert got["dA"].abs().sum() == 0
    if shape[0]:  # no step at all: the state passes through
        assert torch.equal(got["last"], problem["initial_state"])


def test_what_is_not_asked_for_is_empty():
    """States, and gradients of absent inputs."""
    tensors = SCAN.raw_arguments(scan_problem(1, 4, 20, 3, absent=("D", "z", "delta_bias", "initial_state")))[:10]
    results = triton_impl.forward(*tensors, True, False, False, False)
    assert [r.shape for r in results] == [(1, 4, 20), (0,), (0,)]
    assert [r.dtype for r in results[1:]] == [torch.float32] * 2
    out, _, saved = triton_impl.forward(*tensors, True, False, False, True)
    assert saved.shape == triton_impl.saved_shape(1, 4, 20, 3)
    absent = triton_impl.backward(out, None, *tensors, saved, True, False)[5:]
    assert [(gradient.shape, gradient.dtype) for gradient in absent] == [((0,), out.dtype)] * 4


@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_upstream_gradient_with_any_strides(order):
    tensors = SCAN.raw_arguments(scan_problem(2, 6, 8, 4, order=order))[:10]
    _, _, saved = triton_impl.forward(*tensors, True, False, False, True)
    dense = torch.randn(2, 6, 8)
    views = [dense.contiguous(), dense.transpose(0, 2).contiguous().transpose(0, 2), dense.mT.contiguous().mT]
    runs = [triton_impl.backward(view, None, *tensors, saved, True, False) for view in views]
    for other in runs[1:]:
        assert all(same_bits(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_at_every_call(dtype):
    problem = scan_problem(1, 10, 3, 64, dtype=dtype)
    runs = [run(problem, seq_idx=torch.zeros(1, 3, dtype=torch.int32)) for _ in range(2)]
    assert [name for name in runs[0] if not same_bits(runs[0][name], runs[1][name])] == []


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_what_stands_in_padding_is_not_read(order, reverse):
    problem = scan_problem(1, 6, 24, 3, order=order)
    index = torch.tensor([[-1, -1, 0, 0, 0, -1, 0, 1, 1, 1, 1, 1, -1, -1, 1, 1, 7, 7, -1, 3, 3, 3, -1, -1]]).int()
    for name in ("u", "delta", "z", "B", "C"):
        problem[name] = problem[name].masked_fill((index < 0)[:, None], float("nan"))
    got = check(problem, seq_idx=index, reverse=reverse)
    assert got["out"][:, :, index[0] < 0].abs().sum() == 0
    for name in ("du", "ddelta", "dz", "dB", "dC"):
        assert got[name][:, :, index[0] < 0].abs().sum() == 0, name


@pytest.mark.parametrize("order", ["bld", "bdl"])
@pytest.mark.parametrize("groups", [(1, 1), (1, None)], ids=str)
def test_padding_gives_zero_beside_a_state_that_is_no_number(groups, order):
    problem = scan_problem(1, 4, 8, 3, order=order, groups=groups, absent=("z",))
    index = torch.tensor([[-1, 0, 0, -1, -1, 0, 0, -1]]).int()
    problem["initial_state"][:, 2] = float("nan")
    got = run(problem, seq_idx=index)
    assert got["out"][:, 2, index[0] >= 0].isnan().all()
    for name in ("out", "du", "ddelta", "dB", "dC")[: 5 if groups[1] else 4]:
        assert got[name][:, :, index[0] < 0].abs().sum() == 0, name


def test_everything_is_padding():
    problem = scan_problem(1, 3, 10, 2)
    got = check(problem, seq_idx=torch.full((1, 10), -1).int())
    assert torch.equal(got["last"], problem["initial_state"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e4, -1e4])
def test_extreme_values_stay_in_their_channel(bad):
    """Seven channels are broken, each in another argument; the two last must not notice."""
    problem = scan_problem(1, 9, 5, 3)
    broken = {name: value.clone() for name, value in problem.items()}
    where = ("u", "delta", "z", "A", "D", "delta_bias", "initial_state")
    for channel, name in enumerate(where):
        broken[name][(channel,) if name in ("A", "D", "delta_bias") else (slice(None), channel)] = bad
    clean, got = run(problem), run(broken)
    for name in ("out", "last", "du", "ddelta", "dz", "dinitial_state"):
        assert same_bits(got[name][:, 7:], clean[name][:, 7:]), name
    for name in ("dA", "dD", "ddelta_bias"):
        assert same_bits(got[name][7:], clean[name][7:]), name
    if bad != bad:
        assert got["out"][:, :7].isnan().all()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_decay_of_minus_infinity_forgets_at_once(reverse):
    problem = scan_problem(1, 3, 5, 2, absent=("initial_state",))
    problem["A"] = torch.full((3, 2), -float("inf"))
    out = run(problem, reverse=reverse)["out"]
    expected = run_scan(leaves(problem), backend="reference", reverse=reverse)["out"]
    assert out.isfinite().all()
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(("delta", "A", "softplus"), EXTREMES)
def test_extreme_steps_and_decays(delta, A, softplus):
    problem = scan_problem(1, 4, 5, 3, absent=("delta_bias",))
    problem["delta"] = torch.full((1, 4, 5), delta) + 1e-3 * problem["delta"].abs()
    problem["A"] = torch.full((4, 3), A)
    check(problem, delta_softplus=softplus)
