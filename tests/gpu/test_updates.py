"""selective_state_update and causal_conv1d_update on a GPU, CUDA C++ and Triton, against float64 on the same device."""

import pytest
import torch

import bdam_fast
from tests.ops.causal_conv1d_update.test_grad import update
from tests.ops.causal_conv1d_update.test_values import check_update, run_update, update_problem
from tests.ops.selective_state_update.test_grad import step
from tests.ops.selective_state_update.test_values import check_step, run_step, step_problem
from tests.support.gpu import DEVICE, GPU, HALVES, ONLY_GPU, backends, check_autocast, on_device, small
from tests.support.operators import leaves, same_bits

pytestmark = pytest.mark.usefixtures("poisoned")
# By the name of the operator: a problem, a run that returns (out, new state), and one that autograd follows.
OPS = {
    "selective_state_update": (step_problem, run_step, step),
    "causal_conv1d_update": (update_problem, run_update, update),
}
updates = pytest.mark.parametrize("op", OPS)


@small
@backends
@pytest.mark.parametrize("states", [1, 2, 3, 8, 16, 17, 64, 256] if GPU else [1, 16, 17])
@pytest.mark.parametrize("state", ["bdn", "bnd", "strided"])
def test_selective_state_update_states_and_memory_orders(state, states, backend):
    for channels in (1, 19, 131):
        check_step(on_device(step_problem(2, channels, states, state=state)), backend)


@backends
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("order", ["rows", "strided"])
def test_selective_state_update_dtypes(order, dtype, backend):
    for kept in HALVES:
        problem = step_problem(3, 35, 16, dtype=dtype, order=order)
        problem["state"] = problem["state"].to(kept)
        check_step(on_device(problem), backend)
        # Without softplus dt has both signs; e^(dt A) must stay near 1 for a comparison to mean anything.
        check_step(
            on_device(problem | {"dt": 0.05 * problem["dt"], "dt_bias": problem["dt_bias"] * 0}),
            backend,
            dt_softplus=False,
        )


@small
@backends
@pytest.mark.parametrize("groups", [0, 1, 2, 18])
@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")], ids=str)
def test_selective_state_update_groups_and_optional_arguments(absent, groups, backend):
    check_step(on_device(step_problem(2, 18, 16, groups=groups, absent=absent)), backend)


@small
@backends
@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", ["bdl", "bld", "strided"])
def test_causal_conv1d_update_widths_entries_and_memory_orders(order, width, backend):
    for entries in (width - 1, width, width + 3):
        for length in (0, 1, 5):
            check_update(on_device(update_problem(2, 19, length, width, entries, order=order)), backend)


@backends
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("channels", [1, 37, 64, 600])
def test_causal_conv1d_update_dtypes_and_channels(channels, dtype, backend):
    for absent in ((), ("bias",)):
        for activation in (None, "silu"):
            problem = update_problem(2, channels, 3, dtype=dtype, absent=absent)
            check_update(on_device(problem), backend, activation=activation)


@backends
def test_a_token_at_a_time_is_the_whole_sequence(backend):
    """As a model decodes: convolution and scan of 6 steps, then both updates for 3 more."""
    x, weight = torch.randn(2, 20, 9, device=DEVICE), torch.randn(20, 4, device=DEVICE)
    A, B = -torch.rand(20, 16, device=DEVICE), torch.randn(2, 16, 9, device=DEVICE)

    def both(x, B, **states):
        u, window = bdam_fast.causal_conv1d(
            *(x, weight, None, "silu"), initial_states=states.get("window"), return_final_states=True, backend=backend
        )
        scan = (u, u, A, B, B)
        return bdam_fast.selective_scan(
            *scan, delta_softplus=True, return_last_state=True, initial_state=states.get("h"), backend=backend
        ), window

    (expected, last), _ = both(x, B)
    (_, h), window = both(x[..., :6], B[..., :6])
    for t in range(6, 9):
        u = bdam_fast.causal_conv1d_update(x[..., t].contiguous(), window, weight, None, "silu", backend=backend)
        projection = B[..., t].contiguous()
        y = bdam_fast.selective_state_update(h, u, u, A, projection, projection, dt_softplus=True, backend=backend)
        torch.testing.assert_close(y, expected[..., t], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(h, last, rtol=1e-4, atol=1e-4)


@updates
@backends
def test_gradients_are_the_reference_s(backend, op):
    make, _, follow = OPS[op]
    problem = on_device(make(2, 18))
    results = []
    for who in (backend, "reference"):
        own = leaves({n: v.clone() for n, v in problem.items()})
        out, after = follow(who, 2, **own)
        (out.square().sum() + after.square().sum()).backward()
        results.append([out.detach(), after.detach(), *(v.grad for v in own.values())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@updates
@backends
def test_same_bits_at_every_call(backend, op):
    make, run, _ = OPS[op]
    problem = on_device(make(9, 700))
    first = run(problem, backend=backend)
    for _ in range(4):
        assert all(same_bits(a, b) for a, b in zip(run(problem, backend=backend), first, strict=True))


@updates
@backends
def test_autocast_leaves_dtypes_alone(backend, op):
    make, _, follow = OPS[op]
    problem = on_device(make(2, 18))
    names = tuple(problem)
    check_autocast(lambda *t: follow(backend, **dict(zip(names, t, strict=True))), problem)


@updates
@backends
def test_compiled(backend, op):
    make, run, _ = OPS[op]
    torch._dynamo.reset()
    function = getattr(bdam_fast, op)
    flag = {"dt_softplus": True} if op == "selective_state_update" else {"activation": "silu"}
    kind = "inductor" if GPU else "aot_eager"
    compiled = torch.compile(lambda **t: function(**t, **flag, backend=backend), fullgraph=True, backend=kind)
    for batch in (2, 3, 5):
        problem = on_device(make(batch, 18))
        expected = run(problem, backend=backend)
        state = next(name for name in problem if name.endswith("state"))
        own = {**problem, state: problem[state].clone(memory_format=torch.preserve_format)}
        with torch.no_grad():
            out = compiled(**own)
        torch.testing.assert_close((out, own[state]), expected, rtol=1e-5, atol=1e-5)


@ONLY_GPU
@updates
@backends
def test_cuda_graph(backend, op):
    """A captured step, replayed: the state moves on by one step each time."""
    make, run, _ = OPS[op]
    problem = on_device(make(2, 64))
    state = next(name for name in problem if name.endswith("state"))
    flag = {"dt_softplus": True} if op == "selective_state_update" else {"activation": "silu"}
    own = {**problem, state: problem[state].clone()}
    function = getattr(bdam_fast, op)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        function(**own, **flag, backend=backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        out = function(**own, **flag, backend=backend)
    own[state].copy_(problem[state])
    expected = dict(problem)
    for _ in range(3):
        graph.replay()
        y, expected[state] = run(expected, backend=backend)
        assert same_bits(out, y) and same_bits(own[state], expected[state])


@ONLY_GPU
@backends
def test_state_of_more_than_2_to_the_31_elements(backend, memory):
    memory(40)
    batch, channels, states = 8200, 16384, 16
    state = torch.full((batch, channels, states), 0.5, device=DEVICE, dtype=torch.bfloat16)
    assert state.numel() > 2**31
    x = torch.randn(batch, channels, device=DEVICE, dtype=torch.bfloat16)
    A, B = -torch.rand(channels, states, device=DEVICE), torch.randn(batch, states, device=DEVICE, dtype=x.dtype)
    single = state[-1:].clone()
    out = bdam_fast.selective_state_update(state, x, x, A, B, B, dt_softplus=True, backend=backend)
    one = bdam_fast.selective_state_update(single, x[-1:], x[-1:], A, B[-1:], B[-1:], dt_softplus=True, backend=backend)
    assert same_bits(out[-1:], one) and same_bits(state[-1:], single)
    del state
