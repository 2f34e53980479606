"""selective_scan's CUDA kernels, run on the CPU by the emulation, against the float64 reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

import bdam_fast
from bdam_fast import _tuning
from tests.support.cuda_host import build
from tests.support.operators import leaves, packed_index, same_bits
from tests.support.operators.kernels import SCAN
from tests.support.operators.selective_scan import (
    check_growing_state,
    check_scan,
    run_scan,
    scan_problem,
    with_own_dtypes,
    without_softplus,
)

pytestmark = pytest.mark.usefixtures("emulated_backend")


def run(problem: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
    """Output, last state and every gradient."""
    return run_scan(leaves(problem), backend="cuda", **kwargs)


def check(problem: dict[str, Tensor], seq_idx: Tensor | None = None, **flags: bool) -> dict[str, Tensor]:
    """Against the reference; the output is the same where no states are saved."""
    got = check_scan(problem, "cuda", seq_idx=seq_idx, **flags)
    arguments = SCAN.raw_arguments({**problem, "seq_idx": seq_idx}, **flags, save_states=0)
    plain, _, nothing = SCAN.raw("cuda")(*arguments)
    assert same_bits(got["out"], plain) and nothing.numel() == 0
    return got


@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 31, 32, 33, 65, 77])
def test_lengths(length, order):
    check(scan_problem(1, 8, length, 16, order=order))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("states", [1, 3, 8, 16, 17, 32, 64, 100, 256])
def test_states_dtypes_and_orders(states, order, dtype):
    """The usual case, with vectors where the order has them: 8 channels and 16 steps are whole ones of every dtype."""
    check(scan_problem(2, 8, 16, states, dtype=dtype, order=order))


@pytest.mark.parametrize("channels", [1, 3, 33, 130, 136])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_channels(channels, order):
    check(scan_problem(1, channels, 11, 16, dtype=torch.bfloat16, order=order))
    check(scan_problem(1, channels, 24, 32, order=order))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [5, 23, 48, 77])
def test_rows_of_adjacent_steps(length, reverse, dtype):
    """Rows of an odd length begin at every place of an aligned word; more channels than a block has."""
    check(scan_problem(2, 133, length, 16, dtype=dtype, order="bdl"), reverse=reverse)


@pytest.mark.parametrize("states", [3, 32, 64])
@pytest.mark.parametrize("reverse", [False, True])
def test_rows_of_other_states_and_packed(reverse, states):
    problem = scan_problem(1, 37, 29, states, dtype=torch.bfloat16, order="bdl")
    check(problem, reverse=reverse)
    check(problem, reverse=reverse, seq_idx=packed_index(1, 29))


def shifted(tensor: Tensor, elements: int) -> Tensor:
    """The tensor in memory that begins some elements after an aligned place."""
    return torch.empty(tensor.numel() + elements, dtype=tensor.dtype)[elements:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("reverse", [False, True])
def test_rows_may_begin_anywhere(reverse):
    """At one place in all tensors words are read whole, else elements one by one."""
    problem = scan_problem(2, 9, 45, 16, dtype=torch.bfloat16, order="bdl")
    flags = {"reverse": reverse, "save_states": 0}
    out, last, _ = SCAN.raw("cuda")(*SCAN.raw_arguments(problem, **flags))
    for places in ((3, 3, 3), (3, 3, 4)):
        moved = problem | {n: shifted(problem[n], k) for n, k in zip(("u", "delta", "z"), places, strict=True)}
        again = SCAN.raw("cuda")(*SCAN.raw_arguments(moved, **flags))
        assert torch.allclose(again[0].float(), out.float(), rtol=8e-3, atol=1e-3)
        assert torch.allclose(again[1], last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("states", [3, 16, 40])
@pytest.mark.parametrize("order", ["bld", "bdl"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_reverse_and_packing(packed, reverse, order, states):
    problem = scan_problem(2, 12, 40, states, order=order)
    check(problem, reverse=reverse, seq_idx=packed_index(2, 40) if packed else None)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("groups", [(3, 3), (3, 1), (1, 3), (None, 1), (3, None), (None, None)], ids=str)
@pytest.mark.parametrize("states", [5, 16, 40])
def test_groups_and_constant_projections(states, groups, packed):
    problem = scan_problem(2, 12, 21, states, groups=groups)
    check(problem, reverse=packed, seq_idx=packed_index(2, 21) if packed else None)
    check(scan_problem(1, 9, 10, states, groups=groups, dtype=torch.bfloat16, order="bdl"))


@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("initial_state",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_optional_arguments(order, softplus, absent):
    problem = scan_problem(2, 8, 24, 16, absent=absent, order=order, dtype=torch.bfloat16)
    problem = problem if softplus else without_softplus(problem)
    check(problem, delta_softplus=softplus)
    check(problem, delta_softplus=softplus, return_last_state=False)


@pytest.mark.parametrize("order", ["bld", "bdl"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [512, 771])
def test_a_long_length_is_split_in_chunks(length, packed, order):
    """Three and six chunks, the last one shorter; see chunk_length in selective_scan_cuda.h."""
    problem = scan_problem(1, 3, length, 5, order=order)
    check(problem, reverse=packed, seq_idx=packed_index(1, length) if packed else None)
    long_sequence = torch.full((1, length), 2, dtype=torch.int32)
    check(problem, seq_idx=long_sequence)


@pytest.mark.parametrize("order", ["bld", "bdl"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_state_of_zero_stays_zero_where_the_decay_overflows(order, reverse):
    check_growing_state("cuda", 512, order, reverse)


def test_chunks_of_every_kind():
    for order in ("bld", "bdl"):  # vectors of channels and rows, in every pass
        check(scan_problem(1, 8, 523, 16, dtype=torch.bfloat16, order=order))
        check(scan_problem(1, 8, 523, 16, order=order), reverse=True)
    check(scan_problem(1, 4, 520, 16, dtype=torch.bfloat16, order="bld"))
    check(scan_problem(1, 4, 520, 16, groups=(2, 1)), seq_idx=packed_index(1, 520))
    check(scan_problem(1, 4, 520, 16, groups=(2, None)), seq_idx=packed_index(1, 520))  # left whole
    check(scan_problem(1, 4, 520, 20, absent=("initial_state", "z")), return_last_state=False)


def test_every_argument_may_have_its_own_dtype():
    problem = with_own_dtypes(scan_problem(2, 9, 20, 4, dtype=torch.bfloat16))
    got = check(problem)
    assert (got["out"].dtype, got["last"].dtype) == (torch.bfloat16, torch.float32)
    assert [got[f"d{n}"].dtype for n in ("A", "B", "D")] == [torch.float64, torch.float16, torch.float16]


@pytest.mark.parametrize("saved_steps", [8, 16])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_an_upstream_gradient_in_the_other_order(order, saved_steps):
    """Elements are read one by one then, in the place of vectors or rows."""
    problem = leaves(scan_problem(1, 16, 24, 16, order=order))
    with _tuning.fixed({"selective_scan.saved_steps": saved_steps}):
        out = bdam_fast.selective_scan(**problem, delta_softplus=True, backend="cuda")
        upstream = torch.randn_like(out)
        other = upstream.contiguous() if order == "bld" else upstream.transpose(1, 2).contiguous().transpose(1, 2)
        assert upstream.stride() == out.stride() != other.stride()
        found = [torch.autograd.grad(out, [*problem.values()], g, retain_graph=True) for g in (upstream, other)]
    for own, same in zip(*found, strict=True):
        torch.testing.assert_close(own, same, rtol=1e-4, atol=1e-5)


def test_empty_batch():
    problem = scan_problem(0, 4, 9, 16)
    got = run(problem)
    assert got["out"].shape == (0, 4, 9) and got["dA"].abs().max() == 0 and got["dD"].abs().max() == 0


@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("states", [16, 40])
def test_bits_do_not_depend_on_the_order_of_threads(monkeypatch, order, states):
    problem = scan_problem(1, 136, 24, states, order=order, dtype=torch.bfloat16, groups=(2, 1))
    results = []
    for threads in ("forward", "reverse", "random:1", "random:2"):
        monkeypatch.setenv("BDAM_HOST_ORDER", threads)
        results.append(run(problem))
    for other in results[1:]:
        assert all(same_bits(value, other[name]) for name, value in results[0].items())


@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_padding_is_not_read(order):
    """NaN in padded steps reaches nothing."""
    problem, index = scan_problem(2, 8, 24, 16, order=order), packed_index(2, 24)
    clean = run(problem, seq_idx=index)
    padded = (index < 0)[:, None]
    dirty = {n: v.masked_fill(padded, torch.nan) if n in "u delta z B C".split() else v for n, v in problem.items()}
    for name, value in run(dirty, seq_idx=index).items():
        assert same_bits(value, clean[name]), name


def test_nan_stays_in_its_channel():
    problem = scan_problem(1, 8, 24, 16)
    problem["u"][0, 2, 5] = torch.nan
    got = run(problem)
    assert all(torch.isnan(got[name][:, 2]).any() for name in ("out", "ddelta", "dz"))
    for name in ("out", "du", "ddelta", "dz", "dinitial_state"):
        assert got[name][:, [0, 1, 3, 4, 5, 6, 7]].isfinite().all(), name


@pytest.mark.parametrize("value", [-1e4, -30.0, 19.999, 20.001, 1e4])
def test_extreme_steps(value):
    problem = scan_problem(1, 8, 16, 16)
    problem["delta"] = torch.full_like(problem["delta"], value)
    check(problem)


@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_cases(dtype, order):
    """Cases that the sanitized process runs: every access, every number of states and every edge of a tile."""
    for states in (3, 16, 20, 40, 70, 130):
        for channels, length in ((8, 16), (9, 5), (16, 1), (24, 24)):
            problem = scan_problem(1, channels, length, states, order=order, dtype=dtype)
            check(problem)
            check(problem, reverse=True, seq_idx=packed_index(1, length))
    check(scan_problem(2, 6, 9, 16, groups=(None, 3), order=order, dtype=dtype))
    check(scan_problem(1, 3, 513, 16, order=order, dtype=dtype))


@pytest.mark.slow  # a minute and a half, nearly all of it in the compiler
def test_no_access_out_of_bounds():
    build.library(sanitize="selective_scan")
    arguments = ("-m", "pytest", "-s", "-p", "no:cacheprovider", __file__, "-k", "small")
    done = build.run_sanitized(*arguments, family="selective_scan")
    assert done.returncode == 0 and done.stdout.count(".") >= 6, done.stdout[-3000:] + done.stderr[-3000:]
