"""causal_conv1d_update and PyTorch's machinery: gradients, registration, compilation, and what must raise."""

import pytest
import torch
from torch.autograd import forward_ad

import bdam_fast
from bdam_fast.ops.causal_conv1d_update import op
from tests.ops.causal_conv1d_update.test_values import BACKENDS, NAMES, run_update, update_problem
from tests.support.operators import leaves, same_bits

pytestmark = pytest.mark.usefixtures("kernels")


def raw_arguments(problem):
    """The raw operator's arguments."""
    return (*(problem.get(n) for n in NAMES), True)


def update(backend="cpu", times=1, **problem):
    """(last output, new state) from a copy of the state that autograd follows."""
    state = problem.pop("conv_state").clone()
    x = problem.pop("x")
    for _ in range(times):
        x = bdam_fast.causal_conv1d_update(x, state, **problem, activation="silu", backend=backend)
    return x, state


@pytest.mark.parametrize(("length", "entries"), [(0, 3), (0, 4), (2, 3), (6, 4)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(length, entries, backend):
    problem = update_problem(2, 3, length, entries=entries, dtype=torch.float64)

    def call(*tensors):
        return update(backend, 2, **dict(zip(problem, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, list(leaves(problem).values()))


def test_values_are_the_same_with_and_without_gradient():
    for length in (0, 1, 6):
        problem = update_problem(2, 18, length)
        out, state = update(**leaves(problem))
        assert out.requires_grad and state.requires_grad
        expected = run_update(problem)
        torch.testing.assert_close(out.detach(), expected[0])
        assert torch.equal(state, expected[1])


def test_raw_operator_has_the_same_gradient():
    problem = update_problem(2, 5)
    own, public = leaves(problem), leaves({n: v.clone() for n, v in problem.items()})
    op._raw()(*raw_arguments({**own, "conv_state": own["conv_state"].clone()})).square().sum().backward()
    update(**public)[0].square().sum().backward()
    assert all(same_bits(own[n].grad, public[n].grad) for n in own)


@pytest.mark.parametrize("raw", [False, True])
def test_overwriting_what_a_backward_needs_raises(raw):
    problem = update_problem(2, 5)
    product = (problem["conv_state"] * torch.ones(4, requires_grad=True)).sum()
    with torch.no_grad():
        if raw:
            op._raw()(*raw_arguments(problem))
        else:
            bdam_fast.causal_conv1d_update(**problem, backend="cpu")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaf_state_raises(backend):
    problem = leaves(update_problem(2, 5))
    before = problem["conv_state"].detach().clone()
    text = (
        "causal_conv1d_update: conv_state is updated in place and must not be a leaf that requires grad, got one; pass"
    )
    with pytest.raises(RuntimeError, match=text):
        bdam_fast.causal_conv1d_update(**problem, backend=backend)
    assert torch.equal(problem["conv_state"].detach(), before)


@pytest.mark.parametrize("length", [0, 3])
@pytest.mark.parametrize("absent", [(), ("bias",)], ids=str)
def test_opcheck(length, absent):
    problem = update_problem(2, 5, length, absent=absent)
    assert set(torch.library.opcheck(op._raw(), raw_arguments(problem)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grad", [False, True])
def test_compile_fullgraph(backend, grad):
    """Two steps in one graph; the second batch size makes B dynamic."""
    torch._dynamo.reset()

    def decode(state, problem):
        x = problem["x"]
        for _ in range(2):
            x = bdam_fast.causal_conv1d_update(x, state, problem["weight"], problem["bias"], "silu", backend=backend)
        return x * 2 + state.sum()

    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5):
        problem = update_problem(batch, 6)
        results = []
        for function in (decode, compiled):
            own = leaves(problem) if grad else problem
            state = own["conv_state"].detach().clone()
            out = function(state, own)
            results.append([out, state])
            if grad:
                wanted = [v for n, v in own.items() if n != "conv_state"]
                results[-1] += torch.autograd.grad(out.square().sum() + state.sum(), wanted)
        for eager, graph in zip(*results, strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compile_with_inductor():
    torch._dynamo.reset()
    problem = update_problem(2, 6)
    with torch.no_grad():
        expected = run_update(problem)
        state = problem["conv_state"].clone()
        compiled = torch.compile(bdam_fast.causal_conv1d_update, fullgraph=True)
        out = compiled(**{**problem, "conv_state": state}, activation="silu")
    assert torch.equal(out, expected[0]) and torch.equal(state, expected[1])


def test_export():
    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("state", torch.ones(2, 6, 4))

        def forward(self, x, weight):
            return bdam_fast.causal_conv1d_update(x, self.state, weight, activation="silu", backend="cpu")

    arguments = (torch.randn(2, 6), torch.randn(6, 4))
    program = torch.export.export(Step(), arguments)
    assert "bdam_fast.causal_conv1d_update" in program.graph_module.code
    exported, eager = program.module(), Step()
    for _ in range(2):
        assert torch.equal(exported(*arguments), eager(*arguments))
    assert torch.equal(exported.state, eager.state)


@pytest.mark.parametrize("call", ["public", "raw"])
def test_forward_mode_raises(call):
    problem = update_problem(1, 3)
    before = problem["conv_state"].clone()
    with forward_ad.dual_level():
        dual = {**problem, "weight": forward_ad.make_dual(problem["weight"], torch.ones_like(problem["weight"]))}
        with pytest.raises(RuntimeError, match="causal_conv1d_update: forward-mode differentiation needs backend"):
            if call == "public":
                bdam_fast.causal_conv1d_update(**dual, backend="cpu")
            else:
                op._raw()(*raw_arguments(dual))
        assert torch.equal(problem["conv_state"], before)
        tangent = forward_ad.unpack_dual(bdam_fast.causal_conv1d_update(**dual, backend="reference")).tangent
    assert tangent.abs().sum() > 0


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
@pytest.mark.parametrize("raw", [False, True])
def test_functorch_raises(transform, raw):
    problem = update_problem(1, 3)
    before = problem["conv_state"].clone()

    def call(x):
        args = raw_arguments({**problem, "x": x})
        return op._raw()(*args) if raw else bdam_fast.causal_conv1d_update(*args[:4], backend="cpu")

    x = problem["x"]
    calls = {
        "vmap": lambda: torch.func.vmap(call)(torch.stack([x, x])),
        "grad": lambda: torch.func.grad(lambda v: call(v).sum())(x),
        "jvp": lambda: torch.func.jvp(call, (x,), (x,)),
    }
    with pytest.raises(
        RuntimeError, match=r"causal_conv1d_update: torch.func transforms need backend|forward-mode|Batching rule"
    ):
        calls[transform]()
    assert torch.equal(problem["conv_state"], before)
