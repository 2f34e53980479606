"""The three operators of whole sequences or samples and PyTorch's machinery: what autograd, compilation and autocast may expect.

B, D, L and N are batch, channels, steps and states; hsic has samples for steps.
"""

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from bdam_fast import _autograd
from tests.support.operators import BACKENDS, leaves, packed_index, same_bits
from tests.support.operators.hsic import KINDS
from tests.support.operators.kernels import CONV, HSIC, KERNELS, SCAN

pytestmark = pytest.mark.usefixtures("kernels")
kernels = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
# hsic's kinds as options of the public function with one width, and as flags of the raw operator.
OPTIONS = [{"kernel": k, "estimator": e} | ({"sigma_x": 0.9, "sigma_y": 0.9} if k == "rbf" else {}) for k, e in KINDS]
FLAGS = [{"gaussian": k == "rbf", "unbiased": e == "unbiased"} for k, e in KINDS]


def cases(names: str, *values: tuple[Any, ...]) -> Any:
    """A test's cases: an operator and more of it."""
    return pytest.mark.parametrize(f"kernel,{names}", values, ids=lambda v: getattr(v, "name", str(v)))


@cases(
    "sizes,make,options",
    *((SCAN, (2, 3, 5, 2), {"groups": g}, {"reverse": r}) for g in ((1, 1), (None, 3)) for r in (False, True)),
    *(
        (CONV, (2, 3, length), {"order": order}, {"reverse": r})
        for length, order in ((2, "bld"), (5, "bld"), (17, "bdl"))
        for r in (False, True)
    ),
    *((HSIC, sizes, {"batch": (2,)}, kind) for sizes in ((5, 3, 4), (9, 2, 3)) for kind in OPTIONS),
)
def test_gradcheck(kernel, sizes, make, options):
    problem = kernel.problem(*sizes, dtype=torch.float64, **make)
    packed = [{}] if kernel is HSIC else [{}, {"seq_idx": packed_index(sizes[0], sizes[2])}]
    for index in packed:
        assert torch.autograd.gradcheck(kernel.call(problem, **options, **index), list(leaves(problem).values()))


@cases(
    "sizes,options",
    (SCAN, (1, 2, 3, 2), {"delta_softplus": False}),
    (CONV, (1, 2, 4, 3), {"seq_idx": torch.tensor([[0, -1, 0, 1]], dtype=torch.int32)}),
    *((HSIC, (5, 2, 3), kind) for kind in OPTIONS),
)
def test_reference_has_second_derivatives(kernel, sizes, options):
    problem = kernel.problem(*sizes, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(kernel.call(problem, "reference", **options), list(leaves(problem).values()))


# Whole vectors where the scan saves states: lanes without a channel are not written, and opcheck would compare them.
@cases(
    "sizes,make,flags",
    *(
        (SCAN, sizes, {"absent": names}, {})
        for sizes in ((2, 5, 3, 3), (2, 16, 40, 3))
        for names in ((), ("D", "z", "delta_bias", "initial_state"))
    ),
    *(
        (CONV, (2, 5, 20), {"order": order, "absent": names}, {})
        for order in ("bld", "bdl", "strided")
        for names in ((), ("bias", "initial_states"))
    ),
    *((HSIC, sizes, {"batch": (2,)}, kind) for sizes in ((6, 20, 30), (40, 3, 18)) for kind in FLAGS),
)
def test_opcheck(kernel, sizes, make, flags):
    problem = kernel.problem(*sizes, **make)
    index = {} if kernel is HSIC else {"seq_idx": packed_index(sizes[0], sizes[2])}
    arguments = kernel.raw_arguments(leaves(problem) | index, **flags)
    assert set(torch.library.opcheck(kernel.raw(), arguments).values()) == {"SUCCESS"}
    arguments = kernel.raw_arguments({name: value.detach() for name, value in problem.items()}, **flags)
    results = kernel.raw()(*arguments)
    upstream = [torch.randn_like(r) for r in results[: kernel.results]]
    arguments = kernel.backward_arguments(upstream, results[kernel.results :], arguments)
    assert set(torch.library.opcheck(kernel.raw_backward(), arguments).values()) == {"SUCCESS"}


@kernels
def test_only_wanted_gradients_are_returned(kernel):
    problem = kernel.small(40)
    full = kernel.run(leaves(problem), backend="cpu")
    for name in problem:
        only = {n: v.detach().requires_grad_(n == name) for n, v in problem.items()}
        got = kernel.run(only, backend="cpu")
        assert list(got)[kernel.results :] == [f"d{name}"]
        assert same_bits(got[f"d{name}"], full[f"d{name}"])


@cases("length", (SCAN, 40), (CONV, 2))  # two steps: shorter than the window, the initial states are in the final ones
def test_gradient_through_one_result_only(kernel, length):
    problem = kernel.small(length)
    for which in (0, 1):
        grads = []
        for backend in BACKENDS:
            own = leaves({n: v.clone() for n, v in problem.items()})
            kernel.call(own, backend)(*own.values())[which].square().sum().backward()
            grads.append({n: v.grad for n, v in own.items() if v.grad is not None and v.grad.abs().sum() > 0})
        assert grads[0].keys() == grads[1].keys()
        for name, grad in grads[1].items():
            torch.testing.assert_close(grads[0][name], grad, rtol=1e-4, atol=1e-4)


@cases(
    "flags,options",
    (SCAN, {}, {}),
    (SCAN, {"save_states": 0}, {}),
    (CONV, {}, {}),
    (CONV, {"return_final_states": False}, {"return_final_states": False}),
    (HSIC, {"gaussian": True}, {"kernel": "rbf", "sigma_x": 1.3}),
)
def test_raw_operator_has_the_same_gradient(kernel, flags, options):
    """Called directly; what it saves, and the state that was not asked for, require none."""
    problem = kernel.batched(70)
    own, public = leaves(problem), leaves({n: v.clone() for n, v in problem.items()})
    raw = kernel.raw()(*kernel.raw_arguments(own, **flags))
    results = kernel.call(public, **options)(*public.values())
    results = results if isinstance(results, tuple) else (results,)
    assert [r.requires_grad for r in raw] == [i < len(results) for i in range(len(raw))]
    for tensors in (raw[: len(results)], results):
        sum(t.square().sum() for t in tensors).backward()
    assert all(same_bits(own[n].grad, public[n].grad) for n in own)


@cases("options", (SCAN, {}), (CONV, {}), (HSIC, {"kernel": "rbf"}))
def test_activation_checkpointing(kernel, options):
    x, *others = leaves(problem := kernel.small(40)).values()

    def call(x):
        results = kernel.call(problem, **options)(x, *others)
        return results[0] if isinstance(results, tuple) else results

    direct = torch.autograd.grad(call(x).square().sum(), x)[0]
    again = torch.autograd.grad(checkpoint(call, x, use_reentrant=False).square().sum(), x)[0]
    assert torch.equal(direct, again)


LONG = (40, 77, 130)


@cases(
    "backend,lengths,make,options",
    *((SCAN, backend, (5, 7) if backend == "reference" else LONG, {}, {}) for backend in BACKENDS),
    *((CONV, backend, LONG, {"order": order}, {}) for backend in BACKENDS for order in ("bld", "bdl")),
    *((HSIC, backend, (8, 12, 40), {}, {}) for backend in BACKENDS),
    *((HSIC, backend, (8, 12, 40), {}, {"kernel": "rbf", "sigma_x": torch.tensor(0.9)}) for backend in BACKENDS),
)
def test_compile_fullgraph(kernel, backend, lengths, make, options):
    """One graph, forward and backward, with and without gradients; the second length makes L dynamic."""
    torch._dynamo.reset()

    def call(problem, index):
        results = kernel.call(problem, backend, **options, **index)(*problem.values())
        out, *state = results if isinstance(results, tuple) else (results,)
        return out * 2, *state

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for length in lengths:
        problem = leaves(kernel.small(length, **make))
        index = {} if kernel is HSIC else {"seq_idx": packed_index(2, length)}
        results = []
        for function in (call, compiled):
            out, *state = function(problem, index)
            scalar = sum([out.square().sum(), *(s.sum() for s in state)])
            grads = torch.autograd.grad(scalar, list(problem.values()))
            with torch.no_grad():
                results.append([out, *state, *grads, *function(problem, index)])
        for eager, graph in zip(*results, strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-6, atol=1e-6)


# Which form the linear kernel takes depends on the number of samples.
@cases("options", (SCAN, {}), (CONV, {}), (HSIC, {"kernel": "rbf", "sigma_x": 0.9}))
def test_export(kernel, options):
    class Module(torch.nn.Module):
        def forward(self, tensors):
            return kernel.call(tensors, **options)(*tensors.values())

    problem, again, steps = kernel.small(40), kernel.small(77), torch.export.Dim("steps", min=4, max=4096)
    shapes = {name: {d: steps for d, size in enumerate(v.shape) if size == 40} for name, v in problem.items()}
    program = torch.export.export(Module(), (problem,), dynamic_shapes=(shapes,))
    assert f"bdam_fast.{kernel.name}_forward" in program.graph_module.code
    torch.testing.assert_close(program.module()(again), Module()(again), rtol=0, atol=0)


@pytest.mark.slow
@kernels
def test_compile_with_inductor(kernel):
    torch._dynamo.reset()
    problem = leaves(kernel.small(40))

    def loss(*tensors):
        results = kernel.call(problem)(*tensors)
        return (results[0] if isinstance(results, tuple) else results).square().sum()

    tensors = list(problem.values())
    eager = torch.autograd.grad(loss(*tensors), tensors, materialize_grads=True)
    graph = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*tensors), tensors, materialize_grads=True)
    for a, b in zip(graph, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [SCAN, CONV], ids=lambda kernel: kernel.name)
def test_autocast_leaves_dtypes_alone(kernel, backend):
    """No operand is rounded: a bfloat16 stream meets float32 parameters and a float32 state."""
    problem = kernel.small(40)
    first = next(iter(problem))
    problem[first] = problem[first].bfloat16()
    plain = kernel.run(leaves(problem), backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = kernel.run(leaves(problem), backend=backend)
    assert [v.dtype for v in cast.values()][:2] == [torch.bfloat16, torch.float32]
    assert all(cast[f"d{name}"].dtype == value.dtype for name, value in problem.items())
    assert all(same_bits(cast[name], plain[name]) for name in plain)


def test_needs_grad_looks_at_every_tensor():
    assert not _autograd.needs_grad((torch.ones(1), None, True))
    assert _autograd.needs_grad((None, torch.ones(1, requires_grad=True)))
    with torch.no_grad():
        assert not _autograd.needs_grad((torch.ones(1, requires_grad=True),))
