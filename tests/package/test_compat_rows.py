"""Padding slots, repeated rows and packed sequences of bdam_fast.compat, eager, compiled and exported, on every backend."""

import pytest
import torch

import bdam_fast
from bdam_fast import compat
from tests.support.operators import BACKENDS, leaves
from tests.support.operators.causal_conv1d import conv_problem
from tests.support.operators.selective_scan import scan_problem
from tests.support.operators.updates import UPDATES, step_problem

pytestmark = pytest.mark.usefixtures("kernels")
updates = pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.name)
INDICES = {"selective_state_update": "state_batch_indices", "causal_conv1d_update": "conv_state_indices"}
ROWS = [[4, -1, 0], [-1, 2, -1], [-7, -1, -1], [1, 5, 3], [0, -1, 0 + 5]]


class Step(torch.nn.Module):
    """An update whose pool is an argument."""

    def __init__(self, update, backend):
        super().__init__()
        self.update, self.backend = update, backend

    def forward(self, pool, rows, problem):
        arguments = {**problem, self.update.state: pool, INDICES[self.update.name]: rows}
        return getattr(compat, self.update.name)(**arguments, **self.update.options, backend=self.backend)


def problems(update, kind=torch.int32):
    """(a problem of three items, its pool of six rows)."""
    problem, pool = update.problem(3, 5), update.problem(6, 5)[update.state]
    return {n: v for n, v in problem.items() if n != update.state}, pool


def check(update, call, rows, backend):
    """`call` against one update for each item that is no padding."""
    problem, pool = problems(update)
    before, expected = pool.clone(), torch.zeros_like(problem["x"])
    after = pool.clone()
    per_item = {n for n, v in problem.items() if v.shape[0] == 3 and n in ("x", "dt", "z", "B", "C")}
    for item, row in enumerate(rows):
        if row < 0:
            continue
        own = {n: v[item : item + 1] if n in per_item else v for n, v in problem.items()}
        state = before[row : row + 1].clone()
        expected[item] = update.public(**own, **{update.state: state}, backend=backend)[0]
        after[row] = state[0]
    out = call(pool, torch.tensor(rows, dtype=torch.int32), problem)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pool, after, rtol=1e-6, atol=1e-6)
    untouched = [r for r in range(6) if r not in rows]
    assert torch.equal(pool[untouched], before[untouched])
    assert all(out[item].abs().sum() == 0 for item, row in enumerate(rows) if row < 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ROWS, ids=str)
@updates
def test_eager(update, rows, backend):
    check(update, Step(update, backend), rows, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@updates
def test_compiled(update, backend):
    torch._dynamo.reset()
    compiled = torch.compile(Step(update, backend), fullgraph=True, backend="aot_eager")
    for rows in ROWS:
        check(update, compiled, rows, backend)


@updates
def test_exported(update):
    problem, pool = problems(update)
    step = Step(update, "cpu")
    program = torch.export.export(step, (pool.clone(), torch.tensor([4, -1, 0], dtype=torch.int32), problem))
    for rows in ROWS:
        check(update, program.module(), rows, "cpu")


@updates
def test_padding_reaches_no_gradient(update):
    """NaN in a slot of padding stays out of the gradients of what all items share, and its own gradient is zero."""
    problem, pool = problems(update)
    problem["x"][1] = float("nan")
    own = leaves(problem)
    out = Step(update, "cpu")(pool.clone(), torch.tensor([4, -1, 0]), own)
    out.square().sum().backward()
    assert all(v.grad.isfinite().all() for v in own.values())
    assert own["x"].grad[1].abs().sum() == 0 < own["x"].grad[0].abs().sum()


@updates
def test_errors(update):
    problem, pool = problems(update)
    before, name = pool.clone(), INDICES[update.name]
    call, arguments = getattr(compat, update.name), {**problem, update.state: pool}
    text = f"{update.name}: {name} must be below 6, or negative for padding, got 6"
    with pytest.raises(ValueError, match=text):
        call(**arguments, **{name: torch.tensor([1, 6, -1])})
    text = f"{update.name}: {name} must name each row once, got 2 more than once"
    with pytest.raises(ValueError, match=text):
        call(**arguments, **{name: torch.tensor([2, 1, 2])}, check_indices=True)
    assert torch.equal(pool, before)
    call(**arguments, **{name: torch.tensor([-1, 1, -1])}, check_indices=True)
    call(**arguments, **{name: torch.tensor([-1, -1, -1])}, check_indices=True)
    call(**arguments, **{name: torch.tensor([2, 1, 2])})  # one of them wins, where nobody asks
    assert torch.equal(pool[[0, 3, 4, 5]], before[[0, 3, 4, 5]])


def test_heads_and_empty_batches():
    flat, pool = step_problem(2, 6, 4), step_problem(5, 6, 4)["state"]
    rows = torch.tensor([-1, 3])
    expected, copy = pool.clone(), {n: v[1:] if n in ("x", "dt", "z", "B", "C") else v for n, v in flat.items()}
    state = pool[3:4].clone()
    out = bdam_fast.selective_state_update(**{**copy, "state": state}, dt_softplus=True)
    expected[3] = state[0]
    split = {n: flat[n].unflatten(1, (3, 2)) for n in ("x", "dt", "z")}
    split |= {n: flat[n].unflatten(0, (3, 2)) for n in ("A", "D", "dt_bias")}
    heads = pool.unflatten(1, (3, 2))
    got = compat.selective_state_update(**{**flat, **split, "state": heads}, dt_softplus=True, state_batch_indices=rows)
    assert torch.equal(got[1].flatten(), out[0]) and got[0].abs().sum() == 0
    assert torch.equal(pool, expected)
    none = compat.causal_conv1d_update(
        torch.randn(0, 6), torch.randn(5, 6, 4), torch.randn(6, 4), conv_state_indices=rows[:0]
    )
    assert none.shape == (0, 6)


def test_a_circular_state_with_padding():
    x, pool, weight = torch.randn(2, 6), torch.randn(4, 6, 5), torch.randn(6, 4)
    seen, before = torch.tensor([7, 9]), pool.clone()
    single = pool[2:3].clone()
    expected = compat.causal_conv1d_update(x[1:], single, weight, cache_seqlens=seen[1:])
    out = compat.causal_conv1d_update(
        x, pool, weight, cache_seqlens=seen, conv_state_indices=torch.tensor([-1, 2], dtype=torch.int32)
    )
    assert torch.equal(out[1], expected[0]) and out[0].abs().sum() == 0
    assert torch.equal(pool[2], single[0]) and torch.equal(pool[[0, 1, 3]], before[[0, 1, 3]])


@pytest.mark.parametrize("ends", [[0, 4, 4, 9, 15], [0, 15], [0, 2, 11]])
def test_packed_by_ends(ends):
    """cu_seqlens is the same as one call for each sequence; steps behind the last end are padding."""
    scan = scan_problem(1, 6, 15, 4, absent=("initial_state",))
    cu_seqlens = torch.tensor(ends, dtype=torch.int32)
    out = compat.selective_scan_fn(**scan, delta_softplus=True, cu_seqlens=cu_seqlens)
    x, weight, bias, _ = conv_problem(1, 6, 15).values()
    filtered = compat.causal_conv1d_fn(x, weight, bias, activation="silu", cu_seqlens=cu_seqlens)
    for begin, end in zip(ends, ends[1:], strict=False):
        if begin == end:
            continue
        own = {n: v[..., begin:end] if n in ("u", "delta", "B", "C", "z") else v for n, v in scan.items()}
        torch.testing.assert_close(out[..., begin:end], compat.selective_scan_fn(**own, delta_softplus=True))
        single = compat.causal_conv1d_fn(x[..., begin:end], weight, bias, activation="silu")
        torch.testing.assert_close(filtered[..., begin:end], single)
    assert out[..., ends[-1] :].abs().sum() == filtered[..., ends[-1] :].abs().sum() == 0


def test_packed_errors():
    x, weight, *_ = conv_problem(2, 6, 15).values()
    ends, op = torch.tensor([0, 15]), "causal_conv1d_fn"
    with pytest.raises(
        ValueError, match=rf"{op}: cu_seqlens needs sequences packed in one row \(1, D, L\), got \(2, 6"
    ):
        compat.causal_conv1d_fn(x, weight, cu_seqlens=ends)
    with pytest.raises(ValueError, match=f"{op}: cu_seqlens must come without seq_idx, got both"):
        compat.causal_conv1d_fn(x[:1], weight, None, torch.zeros(1, 15).int(), cu_seqlens=ends)
    with pytest.raises(TypeError, match=f"{op}: cu_seqlens must be int32 or int64, got torch.float32"):
        compat.causal_conv1d_fn(x[:1], weight, cu_seqlens=ends.float())
    with pytest.raises(ValueError, match=rf"{op}: cu_seqlens must have shape \(2,\), got \(1,\)"):
        compat.causal_conv1d_fn(x[:1], weight, cu_seqlens=ends[:1])


@pytest.mark.parametrize("ends", [[0, 4, 4, 9, 15], [0, 1], [0, 15]])
@pytest.mark.parametrize("state_len", [1, 3, 8])
def test_varlen_states(ends, state_len):
    x, cu_seqlens = torch.randn(ends[-1], 6), torch.tensor(ends, dtype=torch.int32)
    states = compat.causal_conv1d_varlen_states(x, cu_seqlens, state_len)
    assert states.shape == (len(ends) - 1, 6, state_len)
    for state, begin, end in zip(states, ends, ends[1:], strict=False):
        padded = torch.cat([torch.zeros(state_len, 6), x[begin:end]])
        assert torch.equal(state, padded[-state_len:].T)
    with pytest.raises(ValueError, match=r"causal_conv1d_varlen_states: x must have shape \(T, D\), got"):
        compat.causal_conv1d_varlen_states(x[None], cu_seqlens, state_len)
