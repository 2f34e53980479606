"""selective_state_update and PyTorch's machinery: gradients, registration, compilation, and what must raise."""

import pytest
import torch
from torch.autograd import forward_ad

import bdam_fast
from bdam_fast.ops.selective_state_update import op
from tests.ops.selective_state_update.test_values import BACKENDS, NAMES, copy_of, run_step, step_problem
from tests.support.operators import leaves, same_bits

pytestmark = pytest.mark.usefixtures("kernels")


def raw_arguments(problem):
    """The raw operator's arguments."""
    return (*(problem.get(n) for n in NAMES), True)


def step(backend="cpu", steps=1, **problem):
    """(last output, new state) of steps from a copy of the state that autograd follows."""
    state = problem.pop("state").clone()
    for _ in range(steps):
        out = bdam_fast.selective_state_update(state, **problem, dt_softplus=True, backend=backend)
    return out, state


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(groups, backend):
    problem = step_problem(2, 4, 3, dtype=torch.float64, groups=groups)

    def call(*tensors):
        return step(backend, 2, **dict(zip(problem, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, list(leaves(problem).values()))


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_the_reference_s(state):
    problem = step_problem(2, 18, 16)
    problem["state"] = problem["state"].to(state)
    results = []
    for backend in BACKENDS:
        own = leaves({n: v.clone() for n, v in problem.items()})
        out, after = step(backend, 2, **own)
        (out.square().sum() + after.float().square().sum()).backward()
        results.append([out, after, *(v.grad for v in own.values())])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2 if state == torch.bfloat16 else 1e-4, atol=1e-4)


def test_values_are_the_same_with_and_without_gradient():
    problem = step_problem(2, 18, 16)
    out, state = step(**leaves(problem))
    assert out.requires_grad and state.requires_grad
    torch.testing.assert_close((out.detach(), state.detach()), run_step(problem), rtol=1e-5, atol=1e-5)


def test_raw_operator_has_the_same_gradient():
    problem = step_problem(2, 5, 4)
    own, public = leaves(problem), leaves({n: v.clone() for n, v in problem.items()})
    args = raw_arguments({**own, "state": own["state"].clone()})
    op._raw()(*args).square().sum().backward()
    step(**public)[0].square().sum().backward()
    assert all(same_bits(own[n].grad, public[n].grad) for n in own)


@pytest.mark.parametrize("raw", [False, True])
def test_overwriting_what_a_backward_needs_raises(raw):
    """The kernel's write counts as one: a product that saved the state refuses to use its new contents."""
    problem = step_problem(2, 5, 4)
    weight = torch.ones(4, requires_grad=True)
    product = (problem["state"] * weight).sum()
    with torch.no_grad():
        if raw:
            op._raw()(*raw_arguments(problem))
        else:
            bdam_fast.selective_state_update(**problem, backend="cpu")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_inference_mode():
    problem = step_problem(2, 5, 4)
    expected = run_step(problem)
    with torch.inference_mode():
        own = {n: copy_of(v) for n, v in problem.items()}
        out = bdam_fast.selective_state_update(**own, dt_softplus=True)
        assert same_bits(out, expected[0]) and same_bits(own["state"], expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaf_state_raises(backend):
    problem = leaves(step_problem(2, 5, 4))
    before = problem["state"].detach().clone()
    text = r"selective_state_update: state is updated in place and must not be a leaf that requires grad, got one; pass"
    with pytest.raises(RuntimeError, match=text):
        bdam_fast.selective_state_update(**problem, backend=backend)
    assert torch.equal(problem["state"].detach(), before)
    with torch.no_grad():
        bdam_fast.selective_state_update(**problem, backend=backend)
    assert not torch.equal(problem["state"].detach(), before)


@pytest.mark.parametrize("absent", [(), ("D", "z", "dt_bias")], ids=str)
@pytest.mark.parametrize("state", ["bdn", "bnd"])
def test_opcheck(absent, state):
    problem = step_problem(2, 5, 4, absent=absent, state=state)
    assert set(torch.library.opcheck(op._raw(), raw_arguments(problem)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grad", [False, True])
def test_compile_fullgraph(backend, grad):
    """Two steps in one graph; the second batch size makes B dynamic."""
    torch._dynamo.reset()

    def decode(state, problem):
        rest = {n: v for n, v in problem.items() if n != "state"}
        first = bdam_fast.selective_state_update(state, **rest, dt_softplus=True, backend=backend)
        second = bdam_fast.selective_state_update(state, **{**rest, "x": first}, dt_softplus=True, backend=backend)
        return second * 2 + state.sum()

    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5):
        problem = step_problem(batch, 6, 4)
        results = []
        for function in (decode, compiled):
            own = leaves(problem) if grad else problem
            state = own["state"].detach().clone()
            out = function(state, own)
            results.append([out, state])
            if grad:
                wanted = [v for n, v in own.items() if n != "state"]
                results[-1] += torch.autograd.grad(out.square().sum() + state.sum(), wanted)
        for eager, graph in zip(*results, strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compile_with_inductor():
    torch._dynamo.reset()
    problem = step_problem(2, 6, 4)
    with torch.no_grad():
        expected = run_step(problem)
        state = problem["state"].clone()
        out = torch.compile(bdam_fast.selective_state_update, fullgraph=True)(
            **{**problem, "state": state}, dt_softplus=True
        )
    assert torch.equal(out, expected[0]) and torch.equal(state, expected[1])


def test_export():
    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("state", torch.ones(2, 6, 4))

        def forward(self, x, dt, A, B, C):
            return bdam_fast.selective_state_update(self.state, x, dt, A, B, C, backend="cpu")

    arguments = tuple(step_problem(2, 6, 4)[n] for n in ("x", "dt", "A", "B", "C"))
    program = torch.export.export(Step(), arguments)
    assert "bdam_fast.selective_state_update" in program.graph_module.code
    exported, eager = program.module(), Step()
    for _ in range(2):
        assert torch.equal(exported(*arguments), eager(*arguments))
    assert torch.equal(exported.state, eager.state)


def test_autocast_leaves_dtypes_alone():
    problem = step_problem(2, 5, 4)
    problem["x"] = problem["x"].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run_step(problem, backend="cpu")
    assert all(same_bits(a, b) for a, b in zip(cast, run_step(problem, backend="cpu"), strict=True))


@pytest.mark.parametrize("call", ["public", "raw", "no_grad"])
def test_forward_mode_raises(call):
    problem = step_problem(1, 3, 4)
    before = problem["state"].clone()
    with forward_ad.dual_level():
        dual = {**problem, "B": forward_ad.make_dual(problem["B"], torch.ones_like(problem["B"]))}
        with pytest.raises(RuntimeError, match="selective_state_update: forward-mode differentiation needs backend"):
            if call == "public":
                bdam_fast.selective_state_update(**dual, backend="cpu")
            elif call == "raw":
                op._raw()(*raw_arguments(dual))
            else:
                with torch.no_grad():
                    bdam_fast.selective_state_update(**dual, backend="cpu")
        assert torch.equal(problem["state"], before)
        tangent = forward_ad.unpack_dual(bdam_fast.selective_state_update(**dual, backend="reference")).tangent
    assert tangent.abs().sum() > 0


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
@pytest.mark.parametrize("raw", [False, True])
def test_functorch_raises(transform, raw):
    problem = step_problem(1, 3, 4)
    before = problem["state"].clone()
    others = {n: v for n, v in problem.items() if n not in ("x", "state")}

    def call(x):
        state = problem["state"]
        if raw:
            return op._raw()(*raw_arguments({**others, "x": x, "state": state}))
        return bdam_fast.selective_state_update(state, x, **others, backend="cpu")

    x = problem["x"]
    calls = {
        "vmap": lambda: torch.func.vmap(call)(torch.stack([x, x])),
        "grad": lambda: torch.func.grad(lambda v: call(v).sum())(x),
        "jvp": lambda: torch.func.jvp(call, (x,), (x,)),
    }
    with pytest.raises(
        RuntimeError, match=r"selective_state_update: torch.func transforms need backend|forward-mode|Batching rule"
    ):
        calls[transform]()
    assert torch.equal(problem["state"], before)
