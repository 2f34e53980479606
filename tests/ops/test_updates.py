"""The two operators that update a state in place: what autograd, tracing and the caller's memory may expect of both."""

from typing import Any

import pytest
import torch

import bdam_fast
from tests.support.operators import BACKENDS, leaves, same_bits
from tests.support.operators.updates import CAUSAL_CONV1D_UPDATE, SELECTIVE_STATE_UPDATE, UPDATES, Update, copy_of

pytestmark = pytest.mark.usefixtures("kernels")
updates = pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.name)


def parametrize(*cases: tuple[Update, Any]) -> Any:
    """A test's cases: an operator and something of it."""
    return pytest.mark.parametrize(("update", "case"), cases, ids=lambda value: getattr(value, "name", str(value)))


@parametrize((SELECTIVE_STATE_UPDATE, 16), *((CAUSAL_CONV1D_UPDATE, length) for length in (0, 1, 6)))
def test_values_are_the_same_with_and_without_gradient(update, case):
    problem = update.problem(2, 18, case)
    out, state = update.follow(**leaves(problem))
    assert out.requires_grad and state.requires_grad
    expected = update.run(problem)
    torch.testing.assert_close((out.detach(), state.detach()), expected, rtol=1e-5, atol=1e-5)
    assert not update.state_is_exact or torch.equal(state, expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
@parametrize(
    *((SELECTIVE_STATE_UPDATE, {"channels": 4, "states": 3, "groups": groups}) for groups in (0, 2)),
    *(
        (CAUSAL_CONV1D_UPDATE, {"channels": 3, "length": length, "entries": entries})
        for length, entries in ((0, 3), (0, 4), (2, 3), (6, 4))
    ),
)
def test_gradcheck(update, case, backend):
    problem = update.problem(2, dtype=torch.float64, **case)

    def call(*tensors):
        return update.follow(backend, 2, **dict(zip(problem, tensors, strict=True)))

    assert torch.autograd.gradcheck(call, list(leaves(problem).values()))


@updates
def test_gradients_are_the_reference_s(update):
    for kind in (torch.float32, torch.bfloat16):
        problem = update.problem(2, 18)
        problem[update.state] = problem[update.state].to(kind)
        results = []
        for backend in BACKENDS:
            own = leaves({n: v.clone() for n, v in problem.items()})
            out, after = update.follow(backend, 2, **own)
            (out.square().sum() + after.float().square().sum()).backward()
            results.append([out, after, *(v.grad for v in own.values())])
        for a, b in zip(*results, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=2e-2 if kind == torch.bfloat16 else 1e-4, atol=1e-4)


@updates
def test_raw_operator_has_the_same_gradient(update):
    problem = update.problem(2, 5)
    own, public = leaves(problem), leaves({n: v.clone() for n, v in problem.items()})
    arguments = update.raw_arguments({**own, update.state: own[update.state].clone()})
    update.operator.raw()(*arguments).square().sum().backward()
    update.follow(**public)[0].square().sum().backward()
    assert all(same_bits(own[n].grad, public[n].grad) for n in own)


@updates
@pytest.mark.parametrize("raw", [False, True])
def test_overwriting_what_a_backward_needs_raises(update, raw):
    """The kernel's write counts as one: a product that saved the state refuses to use its new contents."""
    problem = update.problem(2, 5)
    product = (problem[update.state] * torch.ones(4, requires_grad=True)).sum()
    with torch.no_grad():
        if raw:
            update.operator.raw()(*update.raw_arguments(problem))
        else:
            update.public(**problem, backend="cpu")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@updates
def test_inference_mode(update):
    problem = update.problem(2, 5)
    expected = update.run(problem)
    with torch.inference_mode():
        own = {n: copy_of(v) for n, v in problem.items()}
        assert same_bits(update.public(**own), expected[0]) and same_bits(own[update.state], expected[1])


@updates
@pytest.mark.parametrize("backend", BACKENDS)
def test_leaf_state_raises(update, backend):
    problem = leaves(update.problem(2, 5))
    before = problem[update.state].detach().clone()
    text = f"{update.name}: {update.state} is updated in place and must not be a leaf that requires grad, got one; pass"
    with pytest.raises(RuntimeError, match=text):
        update.public(**problem, backend=backend)
    assert torch.equal(problem[update.state].detach(), before)
    with torch.no_grad():
        update.public(**problem, backend=backend)
    assert not torch.equal(problem[update.state].detach(), before)


@parametrize(
    *(
        (SELECTIVE_STATE_UPDATE, {"absent": names, "state": s})
        for names in ((), ("D", "z", "dt_bias"))
        for s in ("bdn", "bnd")
    ),
    *((CAUSAL_CONV1D_UPDATE, {"absent": names, "length": length}) for names in ((), ("bias",)) for length in (0, 3)),
)
def test_opcheck(update, case):
    arguments = update.raw_arguments(update.problem(2, 5, **case))
    assert set(torch.library.opcheck(update.operator.raw(), arguments).values()) == {"SUCCESS"}


@updates
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grad", [False, True])
def test_compile_fullgraph(update, backend, grad):
    """Two steps in one graph; the second batch size makes B dynamic."""
    torch._dynamo.reset()
    public, name, options = getattr(bdam_fast, update.name), update.state, update.options

    def decode(state, problem):
        x, rest = problem["x"], {n: v for n, v in problem.items() if n not in ("x", name)}
        for _ in range(2):
            x = public(**{name: state}, x=x, **rest, **options, backend=backend)
        return x * 2 + state.sum()

    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5):
        problem = update.problem(batch, 6)
        results = []
        for function in (decode, compiled):
            own = leaves(problem) if grad else problem
            state = own[name].detach().clone()
            out = function(state, own)
            results.append([out, state])
            if grad:
                wanted = [v for n, v in own.items() if n != name]
                results[-1] += torch.autograd.grad(out.square().sum() + state.sum(), wanted)
        for eager, graph in zip(*results, strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@updates
def test_compile_with_inductor(update):
    torch._dynamo.reset()
    problem = update.problem(2, 6)
    with torch.no_grad():
        expected = update.run(problem)
        state = problem[update.state].clone()
        compiled = torch.compile(getattr(bdam_fast, update.name), fullgraph=True)
        out = compiled(**{**problem, update.state: state}, **update.options)
    assert torch.equal(out, expected[0]) and torch.equal(state, expected[1])


@updates
def test_export(update):
    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("state", torch.ones(2, 6, 4))

        def forward(self, **arguments):
            return update.public(**arguments, **{update.state: self.state}, backend="cpu")

    arguments = {n: v for n, v in update.problem(2, 6).items() if n != update.state}
    program = torch.export.export(Step(), (), arguments)
    assert f"bdam_fast.{update.name}" in program.graph_module.code
    exported, eager = program.module(), Step()
    for _ in range(2):
        assert torch.equal(exported(**arguments), eager(**arguments))
    assert torch.equal(exported.state, eager.state)


@updates
def test_autocast_leaves_dtypes_alone(update):
    problem = update.problem(2, 5)
    problem["x"] = problem["x"].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = update.run(problem, backend="cpu")
    assert all(same_bits(a, b) for a, b in zip(cast, update.run(problem, backend="cpu"), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("state", [torch.float16, torch.float32], ids=str)
@updates
def test_gradients_under_autocast(update, state, x, backend):
    """Whatever the dtypes are, also those that autocast would not cast: the same values as without it."""
    problem = update.problem(2, 5, dtype=x)
    problem[update.state] = problem[update.state].to(state)
    results = []
    for enabled in (True, False):
        own = leaves(problem)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out, after = update.follow(backend, 2, **own)
        (out.float().square().sum() + after.float().square().sum()).backward()
        results.append([out, after, *(v.grad for v in own.values())])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@parametrize(
    (SELECTIVE_STATE_UPDATE, (slice(1, 3), slice(1, None, 2), slice(3, 7))),
    (CAUSAL_CONV1D_UPDATE, (slice(1, 3), slice(1, None, 2), slice(3, 7))),
    (CAUSAL_CONV1D_UPDATE, (slice(1, 3), slice(19), slice(36, None))),
)
def test_writes_nothing_but_the_state(update, case):
    whole = torch.randn(4, 2 * 19, 40)
    view = whole[case]
    problem = update.problem(2, 19) | {update.state: view}
    before, copy = whole.clone(), view.clone()
    expected = update.run(problem)[1]
    update.public(**problem)
    assert torch.equal(view, expected)
    view.copy_(copy)
    assert torch.equal(whole, before)


@parametrize(
    (SELECTIVE_STATE_UPDATE, (9, 700, 16)), (CAUSAL_CONV1D_UPDATE, (40, 700)), (CAUSAL_CONV1D_UPDATE, (3, 700, 40))
)
def test_same_bits_with_any_number_of_threads(kernels, isa, update, case):
    problem = update.problem(*case)
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        results.append(update.run(problem))
    assert all(same_bits(a, b) for r in results for a, b in zip(r, results[0], strict=True))


@updates
def test_calls_are_counted(update):
    bdam_fast.reset_call_counts()
    for backend in BACKENDS:
        update.run(update.problem(), backend=backend)
    counts = {n: c for n, c in bdam_fast.call_counts().items() if c}
    assert counts == {f"{update.name}.{backend}.forward": 1 for backend in BACKENDS}
