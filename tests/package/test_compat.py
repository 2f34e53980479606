"""bdam_fast.compat: signatures, layouts and options of the existing packages, and arguments without values."""

import inspect

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import bdam_fast
from bdam_fast import compat
from tests.support.operators import packed_index
from tests.support.operators.causal_conv1d import conv_problem
from tests.support.operators.selective_scan import scan_problem
from tests.support.operators.updates import UPDATES, step_problem, update_problem

pytestmark = pytest.mark.usefixtures("kernels")
updates = pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.name)
INDICES = {"selective_state_update": "state_batch_indices", "causal_conv1d_update": "conv_state_indices"}
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
    "causal_conv1d_varlen_states": "x, cu_seqlens, state_len",
    "causal_conv1d_ref": "x, weight, bias=None, initial_states=None, return_final_states=False, final_states_out=None, "
    "activation=None, seq_idx=None",
    # Vision Mamba
    "mamba_inner_fn_no_out_proj": "xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B=None, C=None, "
    "D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True, checkpoint_lvl=1",
    "bimamba_inner_fn": "xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, "
    "A, A_b, B=None, C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True",
    # VMamba
    "vmamba_selective_scan": "u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, nrows=1, backnrows=1, "
    "oflex=True",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    parameters = inspect.signature(getattr(compat, name)).parameters.values()
    parameters = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]  # ours, besides
    texts = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert ", ".join(texts) == SIGNATURES[name]


@pytest.mark.parametrize("groups", [(1, 1), (3, 3), (None, 1)], ids=str)
def test_selective_scan_fn(groups):
    problem = scan_problem(2, 6, 9, 4, groups=groups, absent=("initial_state",))
    out, last = compat.selective_scan_fn(**problem, delta_softplus=True, return_last_state=True)
    expected = bdam_fast.selective_scan(**problem, delta_softplus=True, return_last_state=True)
    assert torch.equal(out, expected[0]) and torch.equal(last, expected[1])
    assert torch.equal(compat.selective_scan_fn(*problem.values(), True), out)


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


@updates
def test_updates_with_indices(update):
    problem, pool = update.problem(2, 5), update.problem(6, 5)[update.state]
    before, rows = pool.clone(), torch.tensor([4, 0], dtype=torch.int32)
    states = pool[rows].clone()
    out = getattr(compat, update.name)(**{**problem, update.state: pool, INDICES[update.name]: rows})
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


@pytest.mark.parametrize("steps", [0, 1, 3, 8])
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
    text = r"state_batch_indices must have shape \(2,\), got \(3,\)"
    error(call, step, ValueError, text, state_batch_indices=torch.tensor([1, 0, 1]))
    conv, call = update_problem(2, 6), compat.causal_conv1d_update
    text = "causal_conv1d_update: cache_seqlens must be int32 or int64, got torch.float32"
    error(call, conv, TypeError, text, cache_seqlens=torch.ones(2))


def block(**more):
    """Arguments of mamba_inner_fn: D 6, R 2, N 3."""
    shapes = {
        **{"xz": (2, 12, 5), "conv1d_weight": (6, 1, 4), "conv1d_bias": (6,), "x_proj_weight": (8, 6)},
        **{"delta_proj_weight": (6, 2), "A": (6, 3), "D": (6,), "delta_bias": (6,)},
        **more,
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


OUT = {"out_proj_weight": (4, 6), "out_proj_bias": (4,)}
GOOD = {
    "causal_conv1d_fn": lambda: conv_problem(2, 6, 8, absent=("initial_states",)),
    "causal_conv1d_update": lambda: update_problem(2, 6),
    "causal_conv1d_varlen_states": lambda: {"x": torch.randn(9, 6), "cu_seqlens": torch.tensor([0, 9]), "state_len": 3},
    "selective_scan_fn": lambda: scan_problem(2, 6, 8, 3, absent=("initial_state",)),
    "selective_state_update": lambda: step_problem(2, 6, 3),
    "vmamba_selective_scan": lambda: scan_problem(2, 6, 8, 3, absent=("initial_state", "z")),
    "mamba_inner_fn": lambda: block(**OUT),
    "mamba_inner_fn_no_out_proj": block,
    "bimamba_inner_fn": lambda: block(**OUT, A_b=(6, 3)),
}
PLACES = [
    (function, parameter.name, wrong)
    for function in GOOD
    for parameter in inspect.signature(getattr(compat, function)).parameters.values()
    if parameter.annotation in (Tensor, Tensor | None)
    for wrong in ([None, [0, 1]] if parameter.annotation is Tensor else [[0, 1]])
]


@pytest.mark.parametrize(("function", "name", "wrong"), PLACES, ids=str)
def test_what_is_no_tensor_is_named(function, name, wrong):
    call, arguments = getattr(compat, function), GOOD[function]()
    call(**arguments)
    with pytest.raises(TypeError, match=f"^{function}: {name} must be a tensor, got {type(wrong).__name__}$"):
        call(**{**arguments, name: wrong})


def test_what_is_no_tensor_is_named_by_place_too():
    x, weight, bias = GOOD["causal_conv1d_fn"]().values()
    with pytest.raises(TypeError, match="^causal_conv1d_fn: seq_idx must be a tensor, got list$"):
        compat.causal_conv1d_fn(x, weight, bias, [0, 1])
    with pytest.raises(TypeError, match="^causal_conv1d_fn: x must be a tensor, got NoneType$"):
        compat.causal_conv1d_ref(None, weight)
    assert torch.equal(compat.causal_conv1d_fn(x, weight, None), compat.causal_conv1d_fn(x, weight))


def indexed(update):
    """(the update of rows of a pool as a function of tensors alone, such tensors)."""
    problem, pool = update.problem(3, 5), update.problem(6, 5)[update.state]
    problem |= {update.state: pool, INDICES[update.name]: torch.tensor([4, -1, 0], dtype=torch.int32)}

    def call(*tensors):
        arguments = dict(zip(problem, tensors, strict=True))
        return getattr(compat, update.name)(**arguments, check_indices=True), arguments[update.state]

    return call, list(problem.values())


@updates
def test_indices_without_values(update):
    """Under a fake mode nothing can be read: there the rows are not checked."""
    call, tensors = indexed(update)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert call(*(mode.from_tensor(t) for t in tensors))[0].shape == (3, 5)
        assert call(*tensors)[0].shape == (3, 5)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@updates
def test_indices_in_a_traced_graph(update, mode):
    call, tensors = indexed(update)
    graph = make_fx(call, tracing_mode=mode)(*(t.clone() for t in tensors))
    for got, expected in zip(graph(*(t.clone() for t in tensors)), call(*tensors), strict=True):
        torch.testing.assert_close(got, expected)
