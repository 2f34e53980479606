"""causal_conv1d_update's CUDA C++ kernel on the CPU emulation against the float64 reference."""

import pytest
import torch

from bdam_fast.ops.causal_conv1d_update.reference import causal_conv1d_update_reference
from tests.ops.causal_conv1d_update.test_values import NAMES, update_problem
from tests.ops.selective_state_update.test_values import copy_of
from tests.support.cuda_host import build, emulated
from tests.support.operators import assert_close, same_bits


@pytest.fixture(scope="module", autouse=True)
def kernels():
    """The emulated operators, with every result NaN before a kernel runs."""
    module = emulated.module()
    module.set_poison(True)
    yield module
    module.set_poison(False)


def run(problem, silu=True):
    """(out, new state), leaving the problem's own state alone but for its memory order."""
    tensors = {**{n: problem.get(n) for n in NAMES}, "conv_state": copy_of(problem["conv_state"])}
    out = torch.ops.bdam_fast_emulated.causal_conv1d_update(*tensors.values(), silu)
    return out, tensors["conv_state"]


def check(problem, silu=True):
    tensors = [problem.get(n) for n in NAMES]
    exact, _ = causal_conv1d_update_reference(*(t if t is None else t.double() for t in tensors), silu)
    same, after = causal_conv1d_update_reference(*tensors, silu)
    out, state = run(problem, silu)
    assert out.dtype == problem["x"].dtype and same_bits(state, after)
    assert_close("out", out, exact, same)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", ["bdl", "bld", "strided"])
def test_small_widths_entries_and_memory_orders(width, order):
    for entries in (width - 1, width, width + 3):
        for length in (0, 1, 2, 5):
            check(update_problem(2, 19, length, width, entries, order=order))


@pytest.mark.parametrize("channels", [1, 3, 127, 128, 129, 300])
def test_channels(channels):
    for silu in (False, True):
        check(update_problem(2, channels), silu)
    check(update_problem(2, channels, absent=("bias",)))


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("state", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("x", DTYPES, ids=str)
def test_dtypes(x, state):
    for entries, length in ((3, 0), (4, 2), (6, 0)):
        problem = update_problem(2, 35, length, dtype=x, entries=entries)
        check(problem | {"conv_state": problem["conv_state"].to(state)})
    strided = torch.randn(4, 36).double()[:, ::2].T
    check(update_problem(2, 18, dtype=x) | {"weight": strided, "bias": torch.randn(36).half()[::2]})


def test_empty():
    assert [t.shape for t in run(update_problem(0, 5))] == [(0, 5), (0, 5, 4)]
    problem = update_problem(2, 5, 1)
    problem["x"] = problem["x"][:, :, :0]
    out, state = run(problem)
    assert out.shape == (2, 5, 0) and torch.equal(state, problem["conv_state"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e4])
@pytest.mark.parametrize("where", NAMES)
def test_extreme_values_stay_in_their_channel(where, bad):
    problem = update_problem(2, 37)
    broken = {n: v.clone() for n, v in problem.items()}
    broken[where][(slice(None),) * (where in ("x", "conv_state")) + (18,)] = bad
    others = torch.arange(37) != 18
    for clean, got in zip(run(problem), run(broken), strict=True):
        assert same_bits(clean[:, others], got[:, others])


def test_writes_nothing_but_the_state():
    whole = torch.randn(4, 2 * 19, 40)
    for view in (whole[1:3, 1::2, 3:7], whole[1:3, :19, 36:]):
        problem = update_problem(2, 19)
        before, copy = whole.clone(), view.clone()
        torch.ops.bdam_fast_emulated.causal_conv1d_update(problem["x"], view, problem["weight"], None, True)
        assert torch.equal(view, torch.cat([copy, problem["x"][:, :, None]], 2)[:, :, 1:])
        view.copy_(copy)
        assert torch.equal(whole, before)


def test_a_refused_call_leaves_the_state_as_it_was():
    problem = update_problem(2, 6)
    state = problem["conv_state"].clone()
    for changes in ({"x": torch.ones(2, 6).double()}, {"bias": torch.ones(5)}, {"weight": torch.ones(6, 9)}):
        tensors = {**problem, **changes, "conv_state": state}
        with pytest.raises(RuntimeError, match="causal_conv1d_update: "):
            torch.ops.bdam_fast_emulated.causal_conv1d_update(*(tensors[n] for n in NAMES), True)
        assert torch.equal(state, problem["conv_state"])


def test_no_access_out_of_bounds():
    build.library(sanitize="causal_conv1d_update")
    done = build.run_sanitized(
        "-m", "pytest", "-s", "-p", "no:cacheprovider", __file__, "-k", "small", family="causal_conv1d_update"
    )
    assert done.returncode == 0 and done.stdout.count(".") >= 24, done.stdout[-3000:] + done.stderr[-3000:]


def test_calls_are_counted(kernels):
    kernels.reset_call_counts()
    run(update_problem())
    assert {n: c for n, c in kernels.call_counts().items() if c} == {"causal_conv1d_update.cuda.forward": 1}
