"""causal_conv1d_update: steps against the float64 reference and against the convolution, and what they write."""

import pytest
import torch

import bdam_fast
from tests.ops.selective_state_update.test_values import copy_of
from tests.support.operators import assert_close, same_bits, stream

pytestmark = pytest.mark.usefixtures("kernels")
BACKENDS = ["cpu", "reference"]
NAMES = ("x", "conv_state", "weight", "bias")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def update_problem(
    batch=2, channels=5, length=0, width=4, entries=None, *, dtype=torch.float32, order="bdl", absent=()
):
    """Tensor arguments of causal_conv1d_update; `length` 0 is x (B, D). The state lies in memory like x."""
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    x = stream(batch, channels, max(length, 1), dtype, order)
    problem = {
        "x": x if length else x[:, :, 0],
        "conv_state": stream(batch, channels, width if entries is None else entries, kind, order),
        "weight": torch.randn(channels, width, dtype=kind),
        "bias": torch.randn(channels, dtype=kind),
    }
    return {name: value for name, value in problem.items() if name not in absent}


def run_update(problem, dtype=None, **kwargs):
    """(out, new state), leaving the problem's own state alone but for its memory order."""
    tensors = {n: v if dtype is None else v.to(dtype) for n, v in problem.items()}
    tensors["conv_state"] = copy_of(tensors["conv_state"])
    out = bdam_fast.causal_conv1d_update(**tensors, **{"activation": "silu", **kwargs})
    return out, tensors["conv_state"]


def check_update(problem, backend="cpu", **kwargs):
    exact = run_update(problem, torch.float64, backend="reference", **kwargs)
    same = run_update(problem, backend="reference", **kwargs)
    got = run_update(problem, backend=backend, **kwargs)
    assert same_bits(got[1], same[1])
    assert got[0].dtype == problem["x"].dtype
    assert_close("out", got[0], exact[0], same[0])
    return got


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", ["bdl", "bld", "strided"])
def test_widths_entries_and_memory_orders(isa, width, order):
    for entries in (width - 1, width, width + 3):
        for length in (0, 1, 2, 5):
            check_update(update_problem(2, 19, length, width, entries, order=order))


@pytest.mark.parametrize("channels", [1, 3, 4, 8, 16, 17, 33, 255, 257, 600])
def test_channels(isa, channels):
    for activation in (None, "swish"):
        check_update(update_problem(2, channels), activation=activation)
    check_update(update_problem(2, channels, absent=("bias",)))


@pytest.mark.parametrize("length", [0, 1, 3, 4, 31, 32, 33, 70])
@pytest.mark.parametrize("order", ["bdl", "bld"])
def test_lengths(isa, length, order):
    check_update(update_problem(2, 21, length, order=order))
    check_update(update_problem(2, 21, length, 3, 40, order=order))


@pytest.mark.parametrize("state", DTYPES, ids=str)
@pytest.mark.parametrize("x", DTYPES, ids=str)
def test_dtypes(isa, x, state):
    for entries in (3, 4):
        problem = update_problem(2, 35, dtype=x, entries=entries)
        problem["conv_state"] = problem["conv_state"].to(state)
        check_update(problem)


def test_parameters_of_other_dtypes_and_strides(isa):
    problem = update_problem(2, 18)
    check_update(problem | {"weight": torch.randn(4, 36).double()[:, ::2].T, "bias": torch.randn(36).half()[::2]})
    check_update(problem | {"weight": torch.randn(18, 4).bfloat16(), "bias": torch.randn(1).expand(18)})
    check_update(problem | {"x": torch.randn(2, 1).expand(-1, 18)})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("entries", [3, 4, 7])
@pytest.mark.parametrize("cuts", [(1,) * 6, (2, 1, 3), (6,)], ids=str)
def test_steps_are_the_convolution(backend, entries, cuts):
    problem = update_problem(2, 18, 6, entries=entries)
    state = problem["conv_state"].clone()
    outs = [
        bdam_fast.causal_conv1d_update(x, state, problem["weight"], problem["bias"], "silu", backend=backend)
        for x in problem["x"].split(cuts, 2)
    ]
    expected, final = bdam_fast.causal_conv1d(
        *(problem[n] for n in ("x", "weight", "bias")),
        "silu",
        initial_states=problem["conv_state"][:, :, entries - 3 :],
        return_final_states=True,
        backend=backend,
    )
    torch.testing.assert_close(torch.cat(outs, 2), expected)
    assert torch.equal(state[:, :, entries - 3 :], final)
    assert torch.equal(state, torch.cat([problem["conv_state"], problem["x"]], 2)[:, :, -entries:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    state = torch.tensor([[[7.0, 3.0]]])
    out = bdam_fast.causal_conv1d_update(
        torch.tensor([[1.0]]), state, torch.tensor([[10.0, 1.0]]), torch.tensor([0.5]), backend=backend
    )
    assert (out.tolist(), state.tolist()) == ([[31.5]], [[[3.0, 1.0]]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend):
    out, state = run_update(update_problem(0, 5), backend=backend)
    assert (out.shape, state.shape) == ((0, 5), (0, 5, 4))
    problem = update_problem(2, 5, 1)
    problem["x"] = problem["x"][:, :, :0]
    out, state = run_update(problem, backend=backend)
    assert out.shape == (2, 5, 0) and torch.equal(state, problem["conv_state"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e4, -1e4])
@pytest.mark.parametrize("where", NAMES)
def test_extreme_values_stay_in_their_channel(isa, where, bad):
    problem = update_problem(2, 37)
    broken = {n: v.clone() for n, v in problem.items()}
    broken[where][(slice(None),) * (where in ("x", "conv_state")) + (18,)] = bad
    others = torch.arange(37) != 18
    for clean, got in zip(run_update(problem), run_update(broken), strict=True):
        assert same_bits(clean[:, others], got[:, others])
    torch.testing.assert_close(run_update(broken), run_update(broken, backend="reference"), equal_nan=True)


def test_writes_nothing_but_the_state():
    whole = torch.randn(4, 2 * 19, 40)
    for view in (whole[1:3, 1::2, 3:7], whole[1:3, :19, 36:]):
        problem = update_problem(2, 19) | {"conv_state": view}
        before, copy = whole.clone(), view.clone()
        expected = run_update(problem)[1]
        bdam_fast.causal_conv1d_update(**problem, activation="silu")
        assert torch.equal(view, expected)
        view.copy_(copy)
        assert torch.equal(whole, before)


def test_same_bits_with_any_number_of_threads(kernels, isa):
    for problem in (update_problem(40, 700), update_problem(3, 700, 40)):
        results = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run_update(problem))
        assert all(same_bits(a, b) for r in results for a, b in zip(r, results[0], strict=True))


@pytest.mark.parametrize("order", ["bdl", "bld"])
def test_out_has_the_memory_order_of_x(order):
    problem = update_problem(3, 5, 6, order=order)
    assert run_update(problem)[0].stride() == problem["x"].stride()


def test_calls_are_counted():
    bdam_fast.reset_call_counts()
    run_update(update_problem(), backend="cpu")
    run_update(update_problem(), backend="reference")
    counts = {n: c for n, c in bdam_fast.call_counts().items() if c}
    assert counts == {f"causal_conv1d_update.{n}.forward": 1 for n in ("cpu", "reference")}
