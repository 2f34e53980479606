"""causal_conv1d and PyTorch's machinery: autograd, registration, compilation, autocast, and what must raise."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import bdam_fast
from bdam_fast.ops.causal_conv1d import op
from tests.support.operators import leaves, packed_index, same_bits
from tests.support.operators.causal_conv1d import NAMES, conv_problem, run_conv

pytestmark = pytest.mark.usefixtures("kernels")


def raw_arguments(problem, *, seq_idx=None, reverse=False, final=True):
    """The raw forward operator's arguments."""
    return (*(problem.get(n) for n in NAMES), seq_idx, True, reverse, final)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "order"), [(2, "bld"), (5, "bld"), (17, "bdl")])
def test_gradcheck(length, order, reverse):
    problem = conv_problem(2, 3, length, dtype=torch.float64, order=order)
    for index in (None, packed_index(2, length)):

        def conv(*tensors, index=index):
            return bdam_fast.causal_conv1d(
                **dict(zip(problem, tensors, strict=True)),
                activation="silu",
                return_final_states=True,
                reverse=reverse,
                seq_idx=index,
                backend="cpu",
            )

        assert torch.autograd.gradcheck(conv, list(leaves(problem).values()))


def test_reference_has_second_derivatives():
    problem = conv_problem(1, 2, 4, 3, dtype=torch.float64)
    index = torch.tensor([[0, -1, 0, 1]], dtype=torch.int32)

    def conv(*tensors):
        named = dict(zip(problem, tensors, strict=True))
        return bdam_fast.causal_conv1d(**named, activation="silu", seq_idx=index, backend="reference")

    assert torch.autograd.gradgradcheck(conv, list(leaves(problem).values()))


@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("absent", [(), ("bias", "initial_states")], ids=str)
def test_opcheck(order, absent):
    problem = leaves(conv_problem(2, 5, 20, order=order, absent=absent))
    passed = torch.library.opcheck(op.OPERATOR.raw(), raw_arguments(problem, seq_idx=packed_index(2, 20)))
    assert set(passed.values()) == {"SUCCESS"}
    args = [a.detach() if isinstance(a, torch.Tensor) else a for a in raw_arguments(problem)]
    out, final = op.OPERATOR.raw()(*args)
    backward = torch.ops.bdam_fast.causal_conv1d_backward.default
    args = (torch.randn_like(out), torch.randn_like(final), *args[:7])
    assert set(torch.library.opcheck(backward, args).values()) == {"SUCCESS"}


def test_only_wanted_gradients_are_returned():
    problem = conv_problem(2, 5, 40)
    full = run_conv(leaves(problem), backend="cpu")
    for name in problem:
        only = {n: v.detach().requires_grad_(n == name) for n, v in problem.items()}
        out = bdam_fast.causal_conv1d(**only, activation="silu", return_final_states=True, backend="cpu")
        torch.manual_seed(1)
        upstream = (torch.randn(2, 40, 5).transpose(1, 2), torch.randn(2, 5, 3))
        torch.autograd.backward(out, upstream)
        assert [n for n, v in only.items() if v.grad is not None] == [name]
        assert same_bits(only[name].grad, full[f"d{name}"])


def test_gradient_through_one_result_only():
    for which in (0, 1):
        grads = []
        for backend in ("cpu", "reference"):
            torch.manual_seed(0)
            own = leaves(conv_problem(2, 5, 2))  # shorter than the window: the initial states are in the final ones
            bdam_fast.causal_conv1d(**own, return_final_states=True, backend=backend)[which].square().sum().backward()
            grads.append({n: v.grad for n, v in own.items() if v.grad is not None and v.grad.abs().sum() > 0})
        assert grads[0].keys() == grads[1].keys()
        for name, grad in grads[1].items():
            torch.testing.assert_close(grads[0][name], grad)


@pytest.mark.parametrize("final", [False, True])
def test_raw_operator_has_the_same_gradient(final):
    problem = conv_problem(2, 5, 20)
    own, public = leaves(problem), leaves({n: v.clone() for n, v in problem.items()})
    out, state = op.OPERATOR.raw()(*raw_arguments(own, final=final))
    assert state.requires_grad == final
    out.square().sum().backward()
    bdam_fast.causal_conv1d(**public, activation="silu", backend="cpu").square().sum().backward()
    assert all(same_bits(own[n].grad, public[n].grad) for n in own)


def test_activation_checkpointing():
    problem = leaves(conv_problem(2, 5, 40))

    def conv(x):
        return bdam_fast.causal_conv1d(**{**problem, "x": x}, activation="silu", backend="cpu")

    direct = torch.autograd.grad(conv(problem["x"]).square().sum(), problem["x"])[0]
    again = torch.autograd.grad(checkpoint(conv, problem["x"], use_reentrant=False).square().sum(), problem["x"])[0]
    assert torch.equal(direct, again)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_compile_fullgraph(backend, order):
    """One graph, forward and backward, with and without gradients; the second length makes L dynamic."""
    torch._dynamo.reset()

    def conv(problem, index):
        out, final = bdam_fast.causal_conv1d(
            **problem, activation="silu", return_final_states=True, seq_idx=index, backend=backend
        )
        return out * 2, final

    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    for length in (40, 77, 130):
        problem, index = leaves(conv_problem(2, 6, length, order=order)), packed_index(2, length)
        results = []
        for function in (conv, compiled):
            out, final = function(problem, index)
            grads = torch.autograd.grad(out.square().sum() + final.sum(), list(problem.values()))
            with torch.no_grad():
                results.append([out, final, *grads, *function(problem, index)])
        for eager, graph in zip(*results, strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-6, atol=1e-6)


def test_export():
    class Conv(torch.nn.Module):
        def forward(self, x, weight):
            return bdam_fast.causal_conv1d(x, weight, activation="silu", backend="cpu")

    steps = torch.export.Dim("steps", min=2, max=4096)
    weight = torch.randn(6, 4)
    program = torch.export.export(Conv(), (torch.randn(2, 6, 40), weight), dynamic_shapes=({2: steps}, None))
    assert "bdam_fast.causal_conv1d_forward" in program.graph_module.code
    again = torch.randn(2, 6, 77)
    assert torch.equal(program.module()(again, weight), Conv()(again, weight))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_leaves_dtypes_alone(backend):
    problem = conv_problem(2, 5, 40, dtype=torch.bfloat16)
    plain = run_conv(leaves(problem), backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run_conv(leaves(problem), backend=backend)
    assert (cast["out"].dtype, cast["final"].dtype) == (torch.bfloat16, torch.float32)
    assert all(same_bits(cast[name], plain[name]) for name in plain)


def test_double_backward_raises():
    problem = leaves(conv_problem(1, 3, 40))
    out = bdam_fast.causal_conv1d(**problem, activation="silu", backend="cpu")
    grad = torch.autograd.grad(out.square().sum(), problem["weight"], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="causal_conv1d: double backward is not implemented by the kernels; use"):
        grad.sum().backward()


@pytest.mark.parametrize("call", ["public", "raw", "no_grad", "backward"])
def test_forward_mode_raises(call):
    problem = conv_problem(1, 3, 4)
    out = op.OPERATOR.raw()(*raw_arguments(problem))[0]
    with forward_ad.dual_level():
        dual = {**problem, "weight": forward_ad.make_dual(problem["weight"], torch.ones_like(problem["weight"]))}
        with pytest.raises(RuntimeError, match="causal_conv1d: forward-mode differentiation needs backend"):
            if call == "public":
                bdam_fast.causal_conv1d(**dual, backend="cpu")
            elif call == "no_grad":
                with torch.no_grad():
                    bdam_fast.causal_conv1d(**dual, backend="cpu")
            elif call == "raw":
                op.OPERATOR.raw()(*raw_arguments(dual))
            else:
                torch.ops.bdam_fast.causal_conv1d_backward(out, None, *raw_arguments(dual)[:7])
        tangent = forward_ad.unpack_dual(bdam_fast.causal_conv1d(**dual, backend="reference")).tangent
    assert tangent.abs().sum() > 0


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "jacrev"])
@pytest.mark.parametrize("raw", [False, True])
def test_functorch_is_right_or_raises(transform, raw):
    problem = conv_problem(1, 3, 4, absent=("initial_states",))
    others = {n: v for n, v in problem.items() if n != "x"}

    def conv(x, backend="cpu"):
        if raw and backend == "cpu":
            return op.OPERATOR.raw()(*raw_arguments({**others, "x": x}))[0]
        return bdam_fast.causal_conv1d(x, **others, activation="silu", backend=backend)

    x = problem["x"]
    calls = {
        "vmap": lambda f: torch.func.vmap(f)(torch.stack([x, 2 * x])),
        "grad": lambda f: torch.func.grad(lambda a: f(a).sum())(x),
        "jvp": lambda f: torch.func.jvp(f, (x,), (x,))[1],
        "jacrev": lambda f: torch.func.jacrev(f)(x),
    }
    if raw and transform == "vmap":  # the dispatcher's own loop over the batch
        torch.testing.assert_close(calls["vmap"](conv), torch.stack([conv(x), conv(2 * x)]))
    else:
        with pytest.raises(RuntimeError, match=r"causal_conv1d: torch.func transforms need backend|forward-mode"):
            calls[transform](conv)
    assert calls[transform](lambda a: conv(a, "reference")).isfinite().all()


@pytest.mark.parametrize("place", range(1, 5))
def test_raw_operator_does_not_mix_real_and_meta_tensors(place):
    args = list(raw_arguments(conv_problem(2, 6, 8), seq_idx=torch.zeros(2, 8, dtype=torch.int32)))
    args[place] = args[place].to("meta")
    with pytest.raises(ValueError, match="causal_conv1d: all tensors must be on cpu like the first argument, got meta"):
        op.OPERATOR.raw()(*args)
