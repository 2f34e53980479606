"""Derivatives without a formula of the kernels: second ones, forward mode and torch.func, by the reference, which says so."""

import warnings

import pytest
import torch
from torch.autograd import forward_ad

from bdam_fast import _backend
from tests.support.operators import leaves, packed_index
from tests.support.operators.kernels import CONV, HSIC, KERNELS, SCAN
from tests.support.operators.updates import UPDATES

pytestmark = [pytest.mark.usefixtures("kernels"), pytest.mark.filterwarnings("ignore:.*running the slow reference")]
kernels = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
updates = pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.name)
TRANSFORMS = {
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, 2 * x])),
    "grad": lambda f, x: torch.func.grad(lambda a: f(a).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),))[1],
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda a: f(a).square().sum())(x),
}


def cases(names, *values):
    """A test's cases: an operator and more of it."""
    return pytest.mark.parametrize(f"kernel,{names}", values, ids=lambda v: getattr(v, "name", str(v)))


def first_of(results):
    """The first result of an operator that may have two."""
    return results[0] if isinstance(results, tuple) else results


@cases(
    "sizes,options",
    (SCAN, (1, 2, 3, 2), {}),
    (SCAN, (2, 2, 4, 1), {"reverse": True, "seq_idx": torch.tensor([[0, 0, -1, 1]] * 2, dtype=torch.int32)}),
    (CONV, (1, 2, 4, 3), {"seq_idx": torch.tensor([[0, -1, 0, 1]], dtype=torch.int32)}),
    (CONV, (2, 2, 5, 2), {"reverse": True}),
    (HSIC, (5, 2, 3), {"kernel": "linear", "estimator": "unbiased"}),
    (HSIC, (5, 2, 3), {"kernel": "rbf", "sigma_x": 0.9, "sigma_y": 1.1}),
)
def test_gradgradcheck(kernel, sizes, options):
    problem = kernel.problem(*sizes, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(kernel.call(problem, **options), list(leaves(problem).values()))


@updates
def test_gradgradcheck_of_the_steps(update):
    problem = update.problem(2, 3, dtype=torch.float64)

    def call(*tensors):
        return update.follow("cpu", 2, **dict(zip(problem, tensors, strict=True)))

    assert torch.autograd.gradgradcheck(call, list(leaves(problem).values()))


@kernels
def test_an_argument_that_another_is_computed_from(kernel):
    """No gradient comes twice: once through the argument, once through what is computed from it."""
    problem = kernel.problem(*((6, 3, 3) if kernel is HSIC else (1, 2, 4, 2)), dtype=torch.float64)
    names = list(problem)[:2]
    x = problem[names[0]].clone().requires_grad_()

    def penalty(backend):
        second = problem[names[1]] + (x.square() if kernel is not CONV else x[0, :, :2] ** 2)
        own = problem | {names[0]: x, names[1]: second}
        out = first_of(kernel.call(own, backend)(*own.values()))
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    torch.testing.assert_close(penalty("cpu"), penalty("reference"))


@kernels
def test_only_one_argument_needs_a_gradient(kernel):
    problem = kernel.small(6)
    for name in problem:
        grads = []
        for backend in ("cpu", "reference"):
            only = {n: v.detach().clone().requires_grad_(n == name) for n, v in problem.items()}
            out = first_of(kernel.call(only, backend)(*only.values()))
            (grad,) = torch.autograd.grad(out.square().sum(), only[name], create_graph=True)
            grads.append(torch.autograd.grad(grad.square().sum(), only[name])[0])
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


@kernels
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_functorch(kernel, transform):
    problem = kernel.batched(4)
    name, x = next(iter(problem.items()))
    index = {} if kernel is HSIC else {"seq_idx": packed_index(2, 4)}

    def call(backend):
        return lambda x: first_of(kernel.call(problem, backend, **index)(*(problem | {name: x}).values()))

    got, expected = (TRANSFORMS[transform](call(backend), x) for backend in ("cpu", "reference"))
    torch.testing.assert_close(got, expected)
    assert got.abs().sum() > 0


@kernels
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_functorch_within_a_graph(kernel, transform):
    torch._dynamo.reset()
    problem = kernel.batched(4)
    name, x = next(iter(problem.items()))

    def call(x):
        return TRANSFORMS[transform](lambda x: first_of(kernel.call(problem)(*(problem | {name: x}).values())), x)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), call(x), rtol=1e-4, atol=1e-5)


@kernels
def test_a_graph_without_a_transform_has_the_kernel(kernel):
    """And one of a call beside a transform has both. The reference counts its calls, which is no reason to compile again."""
    torch._dynamo.reset()
    problem = kernel.batched(4)
    name, x = next(iter(problem.items()))
    graphs = []

    def count(module, inputs):
        graphs.append([str(node.target) for node in module.graph.nodes])
        return module.forward

    def call(x):
        return first_of(kernel.call(problem)(*(problem | {name: x}).values())).sum()

    def both(x):
        return call(x), torch.func.grad(call)(x)

    for function, calls in ((call, 1), (both, 1), (torch.func.grad(call), 0)):
        graphs.clear()
        compiled = torch.compile(function, fullgraph=True, backend=count)
        for _ in range(12):
            compiled(x)
        assert [sum(f"{kernel.name}_forward" in target for target in graph) for graph in graphs] == [calls]


@kernels
def test_forward_mode_within_a_graph(kernel):
    torch._dynamo.reset()
    problem = kernel.batched(4)
    name, x = next(iter(problem.items()))

    def call(x):
        with forward_ad.dual_level():
            dual = problem | {name: forward_ad.make_dual(x, x.cos())}
            return forward_ad.unpack_dual(first_of(kernel.call(problem)(*dual.values()))).tangent

    torch.testing.assert_close(torch.compile(call, backend="aot_eager")(x), call(x), rtol=1e-4, atol=1e-5)


@updates
def test_functorch_of_the_steps(update):
    """A step of a state that the function makes itself, as transforms ask of what is written in place."""
    problem = update.problem(2, 3)
    old = problem[update.state]

    def call(backend):
        return lambda x: update.public(**problem | {"x": x, update.state: old * x.sum()}, backend=backend)

    for transform in ("grad", "jvp", "vmap"):
        got, expected = (TRANSFORMS[transform](call(backend), problem["x"]) for backend in ("cpu", "reference"))
        torch.testing.assert_close(got, expected)
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda x, t=transform: TRANSFORMS[t](call("cpu"), x), fullgraph=True, backend="aot_eager"
        )
        torch.testing.assert_close(compiled(problem["x"]), expected, rtol=1e-4, atol=1e-5)


@kernels
def test_forward_mode(kernel):
    problem = kernel.batched(5)
    for name in problem:
        tangent = torch.randn_like(problem[name])
        found = []
        for backend in ("cpu", "reference"):
            with forward_ad.dual_level():
                dual = problem | {name: forward_ad.make_dual(problem[name], tangent)}
                found.append(forward_ad.unpack_dual(first_of(kernel.call(dual, backend)(*dual.values()))).tangent)
        assert torch.equal(*found) and found[0].abs().sum() > 0


@updates
def test_forward_mode_of_the_steps(update):
    problem = update.problem(1, 3)
    for name in problem.keys() - {update.state}:
        with forward_ad.dual_level():
            dual = problem | {name: forward_ad.make_dual(problem[name], torch.ones_like(problem[name]))}
            dual[update.state] = problem[update.state].clone()
            assert forward_ad.unpack_dual(update.public(**dual, backend="cpu")).tangent.abs().sum() > 0


@pytest.mark.filterwarnings("default:.*running the slow reference")
def test_one_warning_for_each_reason(monkeypatch):
    monkeypatch.setattr(_backend, "_warned", set())
    problem = CONV.small(5)
    call = CONV.call(problem)

    def penalty():
        tensors = list(leaves(problem).values())
        (grad,) = torch.autograd.grad(call(*tensors)[0].square().sum(), tensors[0], create_graph=True)
        grad.sum().backward()
        return TRANSFORMS["vmap"](lambda x: call(x, *tensors[1:])[0], tensors[0])

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        penalty(), penalty()
    texts = [str(w.message) for w in seen if "running the slow reference" in str(w.message)]
    assert [text.partition(": ")[0] for text in texts] == ["causal_conv1d"] * 2
    assert "a gradient of gradients, which the kernels do not have" in texts[0]
    assert "torch.func transforms need it" in texts[1]


@pytest.mark.parametrize("operator", [*KERNELS, *UPDATES], ids=lambda operator: operator.name)
def test_raw_operators_raise(operator):
    """Nothing below a raw operator could take another path, and a kernel would drop the tangent."""
    if operator in UPDATES:
        problem, run = operator.problem(1, 3), lambda p: operator.operator.raw()(*operator.raw_arguments(p))
    else:
        problem, run = operator.batched(5), lambda p: operator.raw()(*operator.raw_arguments(p))
    with forward_ad.dual_level():
        name = next(iter(n for n in problem if n != getattr(operator, "state", "")))
        dual = problem | {name: forward_ad.make_dual(problem[name], torch.ones_like(problem[name]))}
        with pytest.raises(RuntimeError, match=f"{operator.name}: forward-mode differentiation needs backend"):
            run(dual)
    with pytest.raises(RuntimeError, match=f"{operator.name}: torch.func transforms need backend|forward-mode"):
        torch.func.grad(lambda x: first_of(run(problem | {name: x})).sum())(problem[name])


@kernels
def test_raw_backward_operators_have_no_derivative(kernel):
    problem = kernel.batched(5)
    arguments = kernel.raw_arguments(problem)
    results = kernel.raw()(*arguments)
    upstream = [torch.ones_like(results[0]).requires_grad_(), None][: kernel.results]
    grads = kernel.raw_backward()(*kernel.backward_arguments(upstream, results[kernel.results :], arguments))
    with pytest.raises(RuntimeError, match=f"{kernel.name}: double backward is not implemented by the kernels; use"):
        grads[0].sum().backward()
