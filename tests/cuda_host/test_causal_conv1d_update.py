"""causal_conv1d_update's CUDA C++ kernel on the CPU emulation against the float64 reference."""

from functools import partial

import pytest
import torch

from tests.support.cuda_host import build
from tests.support.operators import same_bits
from tests.support.operators.updates import CAUSAL_CONV1D_UPDATE, update_problem

pytestmark = pytest.mark.usefixtures("emulated_backend")
check, run = (partial(f, backend="cuda") for f in (CAUSAL_CONV1D_UPDATE.check, CAUSAL_CONV1D_UPDATE.run))


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", ["bdl", "bld", "strided"])
def test_small_widths_entries_and_memory_orders(width, order):
    for entries in (width - 1, width, width + 3):
        for length in (0, 1, 2, 5):
            check(update_problem(2, 19, length, width, entries, order=order))


@pytest.mark.parametrize("channels", [1, 3, 127, 128, 129, 300])
def test_channels(channels):
    for activation in (None, "silu"):
        check(update_problem(2, channels), activation=activation)
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
@pytest.mark.parametrize("where", CAUSAL_CONV1D_UPDATE.names)
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
        problem = update_problem(2, 19, absent=("bias",)) | {"conv_state": view}
        before, copy = whole.clone(), view.clone()
        CAUSAL_CONV1D_UPDATE.public(**problem, backend="cuda")
        assert torch.equal(view, torch.cat([copy, problem["x"][:, :, None]], 2)[:, :, 1:])
        view.copy_(copy)
        assert torch.equal(whole, before)


def test_a_refused_call_leaves_the_state_as_it_was():
    problem = update_problem(2, 6)
    state = problem["conv_state"].clone()
    for changes in ({"x": torch.ones(2, 6).double()}, {"bias": torch.ones(5)}, {"weight": torch.ones(6, 9)}):
        arguments = CAUSAL_CONV1D_UPDATE.raw_arguments({**problem, **changes, "conv_state": state})
        with pytest.raises(RuntimeError, match="causal_conv1d_update: "):
            CAUSAL_CONV1D_UPDATE.operator.raw("cuda")(*arguments)
        assert torch.equal(state, problem["conv_state"])


def test_no_access_out_of_bounds():
    build.library(sanitize="causal_conv1d_update")
    done = build.run_sanitized(
        "-m", "pytest", "-s", "-p", "no:cacheprovider", __file__, "-k", "small", family="causal_conv1d_update"
    )
    assert done.returncode == 0 and done.stdout.count(".") >= 24, done.stdout[-3000:] + done.stderr[-3000:]


def test_calls_are_counted(emulated_backend):
    emulated_backend.reset_call_counts()
    run(update_problem())
    assert {n: c for n, c in emulated_backend.call_counts().items() if c} == {"causal_conv1d_update.cuda.forward": 1}
