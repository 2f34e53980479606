"""selective_scan and PyTorch's machinery: autograd, registration, compilation, autocast, and what must raise."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import bdam_fast
from bdam_fast import _autograd
from bdam_fast.ops.selective_scan import op
from tests.support.operators import leaves, packed_index, run_scan, same_bits, scan_problem

pytestmark = pytest.mark.usefixtures("kernels")
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def raw_arguments(problem, *, seq_idx=None, reverse=False, last=True, save=True):
    """The raw forward operator's arguments."""
    return (*(problem.get(n) for n in NAMES), seq_idx, True, reverse, last, save)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("groups", [(1, 1), (None, 3)], ids=str)
def test_gradcheck(groups, reverse):
    problem = scan_problem(2, 3, 5, 2, dtype=torch.float64, groups=groups)
    index = packed_index(2, 5)

    def scan(*tensors):
        return bdam_fast.selective_scan(
            **dict(zip(problem, tensors, strict=True)),
            delta_softplus=True,
            return_last_state=True,
            reverse=reverse,
            seq_idx=index,
            backend="cpu",
        )

    assert torch.autograd.gradcheck(scan, list(leaves(problem).values()))


def test_reference_has_second_derivatives():
    problem = scan_problem(1, 2, 3, 2, dtype=torch.float64)

    def scan(*tensors):
        return bdam_fast.selective_scan(**dict(zip(problem, tensors, strict=True)), backend="reference")

    assert torch.autograd.gradgradcheck(scan, list(leaves(problem).values()))


@pytest.mark.parametrize("length", [3, 40])
@pytest.mark.parametrize("absent", [(), ("D", "z", "delta_bias", "initial_state")], ids=str)
def test_opcheck(length, absent):
    # Whole vectors where states are saved: lanes without a channel are not written, and opcheck would compare them.
    channels = 5 if length < 32 else 16
    problem = leaves(scan_problem(2, channels, length, 3, order="bld", absent=absent))
    raw = op.OPERATOR.raw()
    passed = torch.library.opcheck(raw, raw_arguments(problem, seq_idx=packed_index(2, length)))
    assert set(passed.values()) == {"SUCCESS"}
    args = [a.detach() if isinstance(a, torch.Tensor) else a for a in raw_arguments(problem)]
    out, last, saved = raw(*args)
    backward = torch.ops.bdam_fast.selective_scan_backward.default
    args = (torch.randn_like(out), torch.randn_like(last), *args[:10], saved, True, False)
    assert set(torch.library.opcheck(backward, args).values()) == {"SUCCESS"}


def test_only_wanted_gradients_are_returned():
    problem = scan_problem(2, 5, 40, 3)
    full = run_scan(leaves(problem), backend="cpu")
    for name in problem:
        only = {n: v.detach().requires_grad_(n == name) for n, v in problem.items()}
        got = run_scan(only, backend="cpu")
        assert [n for n in got if n not in ("out", "last")] == [f"d{name}"]
        assert same_bits(got[f"d{name}"], full[f"d{name}"])


def test_gradient_through_one_result_only():
    problem = scan_problem(2, 5, 40, 3)
    for which in (0, 1):
        results = {}
        for backend in ("cpu", "reference"):
            own = leaves({n: v.clone() for n, v in problem.items()})
            result = bdam_fast.selective_scan(**own, delta_softplus=True, return_last_state=True, backend=backend)
            result[which].square().sum().backward()
            results[backend] = {n: v.grad for n, v in own.items() if v.grad is not None}
        for name, grad in results["reference"].items():
            torch.testing.assert_close(results["cpu"][name], grad, rtol=1e-4, atol=1e-4)


def test_raw_operator_has_the_same_gradient():
    """Called directly, with and without asking for the saved states."""
    problem = scan_problem(2, 5, 70, 3)
    expected = run_scan(leaves(problem), backend="cpu")
    for save in (True, False):
        own = leaves({n: v.clone() for n, v in problem.items()})
        out, last, saved = op.OPERATOR.raw()(*raw_arguments(own, save=save))
        assert not saved.requires_grad
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(r.shape, generator=generator, dtype=torch.float64).float() for r in (out, last)]
        grads = torch.autograd.grad((out, last), list(own.values()), upstream)
        assert all(same_bits(g, expected[f"d{n}"]) for n, g in zip(own, grads, strict=True))


def test_activation_checkpointing():
    problem = leaves(scan_problem(2, 5, 40, 3))

    def scan(u):
        return bdam_fast.selective_scan(**{**problem, "u": u}, delta_softplus=True, backend="cpu")

    direct = torch.autograd.grad(scan(problem["u"]).square().sum(), problem["u"])[0]
    again = torch.autograd.grad(checkpoint(scan, problem["u"], use_reentrant=False).square().sum(), problem["u"])[0]
    assert torch.equal(direct, again)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_compile_fullgraph(backend):
    """One graph, forward and backward, with and without gradients; the second length makes L dynamic."""
    torch._dynamo.reset()

    def scan(problem, index):
        out, last = bdam_fast.selective_scan(
            **problem, delta_softplus=True, return_last_state=True, seq_idx=index, backend=backend
        )
        return out * 2, last

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    for length in (5, 7) if backend == "reference" else (40, 77, 130):
        problem, index = leaves(scan_problem(2, 6, length, 3)), packed_index(2, length)
        results = []
        for function in (scan, compiled):
            out, last = function(problem, index)
            grads = torch.autograd.grad(out.square().sum() + last.sum(), list(problem.values()))
            with torch.no_grad():
                results.append([out, last, *grads, *function(problem, index)])
        for eager, graph in zip(*results, strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-6, atol=1e-6)


def test_export():
    class Scan(torch.nn.Module):
        def forward(self, u, delta, A, B, C):
            return bdam_fast.selective_scan(u, delta, A, B, C, delta_softplus=True, backend="cpu")

    def arguments(length):
        problem = scan_problem(2, 6, length, 3, order="bdl")
        return tuple(problem[n] for n in ("u", "delta", "A", "B", "C"))

    steps = torch.export.Dim("steps", min=2, max=4096)
    shapes = {"u": {2: steps}, "delta": {2: steps}, "A": None, "B": {2: steps}, "C": {2: steps}}
    program = torch.export.export(Scan(), arguments(40), dynamic_shapes=shapes)
    assert "bdam_fast.selective_scan_forward" in program.graph_module.code
    again = arguments(77)
    assert torch.equal(program.module()(*again), Scan()(*again))


@pytest.mark.slow
def test_compile_with_inductor():
    torch._dynamo.reset()
    problem = leaves(scan_problem(2, 6, 40, 3))

    def loss(**tensors):
        return bdam_fast.selective_scan(**tensors, delta_softplus=True, backend="cpu").square().sum()

    eager = torch.autograd.grad(loss(**problem), list(problem.values()))
    graph = torch.autograd.grad(torch.compile(loss, fullgraph=True)(**problem), list(problem.values()))
    for a, b in zip(graph, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_leaves_dtypes_alone(backend):
    """No operand is rounded: bfloat16 streams meet float32 parameters and a float32 state."""
    problem = leaves(scan_problem(2, 5, 40, 3))
    problem["u"] = problem["u"].detach().bfloat16().requires_grad_()
    plain = run_scan(problem, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run_scan(problem, backend=backend)
    assert (cast["out"].dtype, cast["last"].dtype, cast["ddelta"].dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert all(same_bits(cast[name], plain[name]) for name in plain)


def test_double_backward_raises():
    problem = leaves(scan_problem(1, 3, 40, 2))
    out = bdam_fast.selective_scan(**problem, backend="cpu")
    grad = torch.autograd.grad(out.square().sum(), problem["A"], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="selective_scan: double backward is not implemented by the kernels; use"):
        grad.sum().backward()


@pytest.mark.parametrize("call", ["public", "raw", "no_grad", "backward"])
def test_forward_mode_raises(call):
    problem = scan_problem(1, 3, 4, 2)
    out, last, saved = op.OPERATOR.raw()(*raw_arguments(problem))
    with forward_ad.dual_level():
        dual = {**problem, "B": forward_ad.make_dual(problem["B"], torch.ones_like(problem["B"]))}
        backward = torch.ops.bdam_fast.selective_scan_backward
        with pytest.raises(RuntimeError, match="selective_scan: forward-mode differentiation needs backend"):
            if call == "public":
                bdam_fast.selective_scan(**dual, backend="cpu")
            elif call == "no_grad":
                with torch.no_grad():
                    bdam_fast.selective_scan(**dual, backend="cpu")
            elif call == "raw":
                op.OPERATOR.raw()(*raw_arguments(dual))
            else:
                backward(out, None, *raw_arguments(dual)[:10], saved, True, False)
        tangent = forward_ad.unpack_dual(bdam_fast.selective_scan(**dual, backend="reference")).tangent
    assert tangent.abs().sum() > 0


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "jacrev"])
@pytest.mark.parametrize("raw", [False, True])
def test_functorch_is_right_or_raises(transform, raw):
    problem = scan_problem(1, 3, 4, 2, absent=("initial_state",))
    others = {n: v for n, v in problem.items() if n != "u"}

    def scan(u, backend="cpu"):
        if raw and backend == "cpu":
            return op.OPERATOR.raw()(*raw_arguments({**others, "u": u}, save=False))[0]
        return bdam_fast.selective_scan(u, **others, delta_softplus=True, backend=backend)

    u = problem["u"]
    calls = {
        "vmap": lambda f: torch.func.vmap(f)(torch.stack([u, 2 * u])),
        "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(u),
        "jvp": lambda f: torch.func.jvp(f, (u,), (u,))[1],
        "jacrev": lambda f: torch.func.jacrev(f)(u),
    }
    if raw and transform == "vmap":  # the dispatcher's own loop over the batch
        expected = torch.stack([scan(u), scan(2 * u)])
        torch.testing.assert_close(calls["vmap"](scan), expected)
    else:
        with pytest.raises(RuntimeError, match=r"selective_scan: torch.func transforms need backend|forward-mode"):
            calls[transform](scan)
    assert calls[transform](lambda x: scan(x, "reference")).isfinite().all()


def test_needs_grad_looks_at_every_tensor():
    assert not _autograd.needs_grad((torch.ones(1), None, True))
    assert _autograd.needs_grad((None, torch.ones(1, requires_grad=True)))
    with torch.no_grad():
        assert not _autograd.needs_grad((torch.ones(1, requires_grad=True),))
