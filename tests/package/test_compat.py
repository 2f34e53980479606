"""bdam_fast.compat: signatures, layouts and options of the existing packages."""

import inspect

import pytest
import torch
import torch.nn.functional as F

import bdam_fast
from bdam_fast import compat
from tests.support.operators import leaves, packed_index
from tests.support.operators.causal_conv1d import conv_problem
from tests.support.operators.selective_scan import scan_problem
from tests.support.operators.updates import UPDATES, step_problem, update_problem

pytestmark = pytest.mark.usefixtures("kernels")
SIGNATURES = {  # mamba_ssm 2.3.2 and causal_conv1d 1.5 to 1.7
    "selective_scan_fn": "u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False",
    "mamba_inner_fn": "xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, "
    "A, B=None, C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True, "
    "checkpoint_lvl=1, b_rms_weight=None, c_rms_weight=None, dt_rms_weight=None, b_c_dt_rms_eps=1e-06",
    "selective_state_update": "state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, "
    "state_batch_indices=None",
    "causal_conv1d_fn": "x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, "
    "final_states_out=None, activation=None",
    "causal_conv1d_update": "x, conv_state, weight, bias=None, activation=None, cache_seqlens=None, "
    "conv_state_indices=None",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    parameters = inspect.signature(getattr(compat, name)).parameters.values()
    texts = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert ", ".join(texts) == SIGNATURES[name]


@pytest.mark.parametrize("groups", [(1, 1), (3, 3), (None, 1)], ids=str)
def test_selective_scan_fn(groups):
    problem = scan_problem(2, 6, 9, 4, groups=groups, absent=("initial_state",))
    out, last = compat.selective_scan_fn(**problem, delta_softplus=True, return_last_state=True)
    expected = bdam_fast.selective_scan(**problem, delta_softplus=True, return_last_state=True)
    assert torch.equal(out, expected[0]) and torch.equal(last, expected[1])
    assert torch.equal(compat.selective_scan_fn(*problem.values(), True), out)


def inner_problem(channels=12, states=4, rank=3, width=4, d_model=10, length=9):
    """Tensor arguments of mamba_inner_fn."""
    return {
        "xz": torch.randn(2, 2 * channels, length),
        "conv1d_weight": torch.randn(channels, 1, width),
        "conv1d_bias": torch.randn(channels),
        "x_proj_weight": torch.randn(rank + 2 * states, channels) / 3,
        "delta_proj_weight": torch.randn(channels, rank) / 2,
        "out_proj_weight": torch.randn(d_model, channels) / 3,
        "out_proj_bias": torch.randn(d_model),
        "A": -torch.rand(channels, states),
        "D": torch.randn(channels),
        "delta_bias": torch.randn(channels),
    }


def inner_written_out(p, B=None, C=None, B_proj_bias=0, C_proj_bias=0, rms=(None, None, None), eps=1e-6):
    """The same from PyTorch's own functions and a loop over the steps."""
    channels, states, rank, length = p["A"].shape[0], p["A"].shape[1], p["delta_proj_weight"].shape[1], p["xz"].shape[2]
    x, z = p["xz"].chunk(2, 1)
    width = p["conv1d_weight"].shape[2]
    x = F.silu(F.conv1d(x, p["conv1d_weight"], p["conv1d_bias"], padding=width - 1, groups=channels)[..., :length])
    projected = x.transpose(1, 2) @ p["x_proj_weight"].T
    delta = projected[..., :rank] @ p["delta_proj_weight"].T
    given = [B, C]
    B, C = projected[..., rank : rank + states] + B_proj_bias, projected[..., rank + states :] + C_proj_bias
    B, C, delta = (
        v if w is None else v / (v.square().mean(-1, keepdim=True) + eps).sqrt() * w
        for v, w in zip((B, C, delta), rms, strict=True)
    )
    B, C = (v[:, :, None] if g is None else g.expand(2, length, -1, -1) for v, g in zip((B, C), given, strict=True))
    dt, h, ys = F.softplus(delta + p["delta_bias"]), torch.zeros(2, channels, states), []
    for t in range(length):
        h = torch.exp(dt[:, t, :, None] * p["A"]) * h + (dt[:, t] * x[:, :, t])[..., None] * B[:, t]
        ys.append((h * C[:, t]).sum(-1) + p["D"] * x[:, :, t])
    return F.linear(torch.stack(ys, 1) * F.silu(z).transpose(1, 2), p["out_proj_weight"], p["out_proj_bias"])


@pytest.mark.parametrize("case", ["plain", "biases", "constant", "norms", "level 0"])
def test_mamba_inner_fn(case):
    problem = inner_problem()
    constant = {"B": torch.randn(12, 4), "C": torch.randn(12, 4)}
    rms = (torch.rand(4), torch.rand(4), torch.rand(12))
    ours, written = {
        "plain": ({}, {}),
        "biases": ({"B_proj_bias": rms[0], "C_proj_bias": rms[1]},) * 2,
        "constant": (constant, constant),
        "norms": (
            {"b_rms_weight": rms[0], "c_rms_weight": rms[1], "dt_rms_weight": rms[2], "b_c_dt_rms_eps": 0.1},
            {"rms": rms, "eps": 0.1},
        ),
        "level 0": ({"checkpoint_lvl": 0}, {}),
    }[case]
    results = []
    for function in (lambda p: compat.mamba_inner_fn(**p, **ours), lambda p: inner_written_out(p, **written)):
        own = leaves({n: v.clone() for n, v in problem.items()})
        out = function(own)
        grads = torch.autograd.grad(out.square().sum(), list(own.values()), allow_unused=True)
        results.append([out, *(g for g in grads if g is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_mamba_inner_fn_norms_a_given_projection():
    problem, weight = inner_problem(), torch.rand(4)
    given = torch.randn(2, 1, 4, 9)
    normed = F.rms_norm(given.mT, (4,), weight, 1e-6).mT
    out = compat.mamba_inner_fn(**problem, B=given, b_rms_weight=weight)
    torch.testing.assert_close(out, compat.mamba_inner_fn(**problem, B=normed))


def test_mamba_inner_fn_in_mixed_precision():
    """A float32 bias beside bfloat16 weights, as Hugging Face's mixer passes it."""
    problem = inner_problem()
    low = {n: v.bfloat16() if n not in ("A", "D", "delta_bias", "out_proj_bias") else v for n, v in problem.items()}
    out = compat.mamba_inner_fn(**low)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), compat.mamba_inner_fn(**problem), rtol=0.1, atol=0.3)


def test_selective_state_update_with_heads():
    batch, heads, channels, states = 2, 3, 5, 4
    problem = step_problem(batch, heads * channels, states, groups=heads)
    flat = problem["state"].clone()
    expected = bdam_fast.selective_state_update(**{**problem, "state": flat}, dt_softplus=True)
    split = {n: problem[n].unflatten(1, (heads, channels)) for n in ("state", "x", "dt", "z")}
    split |= {n: problem[n].unflatten(0, (heads, channels)) for n in ("A", "D", "dt_bias")}
    split["state"] = split["state"].clone()
    out = compat.selective_state_update(**{**problem, **split}, dt_softplus=True)
    assert torch.equal(out, expected.view(batch, heads, channels))
    assert torch.equal(split["state"].flatten(1, 2), flat)
    assert torch.equal(compat.selective_state_update(**problem, dt_softplus=True), expected)


@pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.name)
def test_updates_with_indices(update):
    problem, pool = update.problem(2, 5), update.problem(6, 5)[update.state]
    before, rows = pool.clone(), torch.tensor([4, 0], dtype=torch.int32)
    states = pool[rows].clone()
    indices = {"selective_state_update": "state_batch_indices", "causal_conv1d_update": "conv_state_indices"}
    out = getattr(compat, update.name)(**{**problem, update.state: pool, indices[update.name]: rows})
    assert torch.equal(out, getattr(bdam_fast, update.name)(**{**problem, update.state: states}))
    before[rows.long()] = states
    assert torch.equal(pool, before)


def test_causal_conv1d_fn():
    problem = conv_problem(2, 5, 9, dtype=torch.bfloat16)
    x, weight, bias, states = problem.values()
    index = packed_index(2, 9)
    out = compat.causal_conv1d_fn(x, weight, bias, index, None, False, None, "silu")
    assert torch.equal(out, bdam_fast.causal_conv1d(x, weight, bias, "silu", seq_idx=index))
    out, final = compat.causal_conv1d_fn(x, weight, bias, initial_states=states, return_final_states=True)
    assert (final.shape, final.dtype) == ((2, 5, 3), torch.bfloat16)
    assert torch.equal(final, x[:, :, -3:])
    given = torch.zeros(2, 3, 5).transpose(1, 2)
    again = compat.causal_conv1d_fn(x, weight, bias, None, states, True, given)
    assert again[1] is given and torch.equal(given, final.float()) and torch.equal(again[0], out)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("entries", [3, 5])
def test_causal_conv1d_update_with_a_circular_state(steps, entries):
    """The same outputs as with a state that moves, and step t at entry t modulo S."""
    problem = update_problem(2, 7, steps, entries=entries)
    moving, seen = problem["conv_state"], torch.tensor([7, 12], dtype=torch.int32)
    circular = torch.empty_like(moving)
    for b in range(2):
        for j in range(entries):
            circular[b, :, (seen[b] - entries + j) % entries] = moving[b, :, j]
    for _ in range(4):
        expected = compat.causal_conv1d_update(**{**problem, "conv_state": moving}, activation="silu")
        out = compat.causal_conv1d_update(**{**problem, "conv_state": circular}, activation="silu", cache_seqlens=seen)
        torch.testing.assert_close(out, expected)
        seen += max(steps, 1)
        for b in range(2):
            order = [(int(seen[b]) - entries + j) % entries for j in range(entries)]
            assert torch.equal(circular[b][:, order], moving[b])


def error(function, problem, kind, text, **changes):
    with pytest.raises(kind, match=text):
        function(**{**problem, **changes})


def test_errors():
    scan = scan_problem(2, 6, 8, 3, absent=("initial_state",))
    error(
        compat.selective_scan_fn,
        scan,
        TypeError,
        "selective_scan_fn: A must be real, got torch.complex64; complex states are not supported",
        A=scan["A"].cfloat(),
    )
    inner, call = inner_problem(), compat.mamba_inner_fn
    error(call, inner, TypeError, "mamba_inner_fn: A must be real, got torch.complex64", A=inner["A"].cfloat())
    error(call, inner, ValueError, "mamba_inner_fn: checkpoint_lvl must be 0 or 1, got 2", checkpoint_lvl=2)
    constant = {"B": torch.randn(12, 4), "b_rms_weight": torch.ones(4)}
    error(call, inner, ValueError, r"b_rms_weight must come with a B per step, got \(D, N\)", **constant)
    text = "causal_conv1d_fn: final_states_out must come with return_final_states=True, got False"
    conv = conv_problem(2, 6, 8, absent=("initial_states",))
    error(compat.causal_conv1d_fn, conv, ValueError, text, final_states_out=torch.zeros(2, 6, 3))
    error(
        compat.causal_conv1d_fn, conv, ValueError, 'activation must be None, "silu" or "swish", got', activation="relu"
    )


def test_errors_of_the_steps():
    step, call = step_problem(2, 6, 3), compat.selective_state_update
    heads = {n: step[n].unflatten(1, (3, 2)) for n in ("state", "x", "dt", "z")}
    heads |= {n: step[n].unflatten(0, (3, 2)) for n in ("A", "D", "dt_bias")}
    apart = torch.randn(2, 2, 3, 3).transpose(1, 2)
    text = r"selective_state_update: state must have adjacent heads and channels, got strides \(18, 3, 9, 1\)"
    error(call, step | heads, ValueError, text, state=apart)
    text = r"selective_state_update: B must have groups that divide the 3 heads, got shape \(2, 2, 3\)"
    error(call, step | heads, ValueError, text, B=torch.randn(2, 2, 3))
    text = r"selective_state_update: state_batch_indices must lie in \[0, 2\), got -1 to 1"
    error(call, step, ValueError, text, state_batch_indices=torch.tensor([1, -1]))
    text = r"state_batch_indices must have shape \(2,\), got \(3,\)"
    error(call, step, ValueError, text, state_batch_indices=torch.tensor([1, 0, 1]))
    conv, call = update_problem(2, 6), compat.causal_conv1d_update
    text = "causal_conv1d_update: cache_seqlens must be int32 or int64, got torch.float32"
    error(call, conv, TypeError, text, cache_seqlens=torch.ones(2))
    text = "causal_conv1d_update: x must have at most S = 4 steps with cache_seqlens, got 5"
    error(call, conv, ValueError, text, cache_seqlens=torch.ones(2).int(), x=torch.randn(2, 6, 5))
    text = r"causal_conv1d_update: conv_state_indices must lie in \[0, 2\), got 0 to 2"
    error(call, conv, ValueError, text, conv_state_indices=torch.tensor([0, 2]))
