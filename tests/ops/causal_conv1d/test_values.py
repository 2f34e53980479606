"""causal_conv1d: values and gradients against the reference, and its options."""

import pytest
import torch

import bdam_fast
from tests.support.operators import BACKENDS, LENGTHS, leaves, packed_index, same_bits
from tests.support.operators.causal_conv1d import check_conv, conv_problem, run_conv

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
def test_widths_orders_and_directions(isa, width, order):
    for reverse in (False, True):
        for activation in (None, "swish"):
            check_conv(conv_problem(2, 19, 37, width, order=order), reverse=reverse, activation=activation)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
def test_dtypes(isa, dtype, order):
    for reverse in (False, True):
        check_conv(conv_problem(3, 35, 45, dtype=dtype, order=order), reverse=reverse)
    check_conv(conv_problem(2, 18, 40, 3, dtype=dtype, order=order), seq_idx=packed_index(2, 40))


@pytest.mark.parametrize("length", [0, 15, 16, 17, *LENGTHS, 515, 1023, 1025])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_lengths(length, order):
    """Time pieces from 256 steps on, and row tiles of 512: few channels, so that time is cut."""
    for reverse in (False, True):
        check_conv(conv_problem(1, 20, length, 4, order=order), reverse=reverse)
        check_conv(conv_problem(1, 20, length, 2, order=order, absent=("initial_states",)), reverse=reverse)


@pytest.mark.parametrize("channels", [1, 2, 15, 16, 17, 31, 33, 64, 257, 1100])
def test_channels(isa, channels):
    for order in ("bld", "bdl"):
        check_conv(conv_problem(1, channels, 21, order=order))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_batch(backend):
    for order in ("bld", "bdl"):
        got = run_conv(leaves(conv_problem(0, 5, 20, order=order)), backend=backend)
        assert got["out"].shape == (0, 5, 20)
        assert got["dweight"].abs().sum() == 0


@pytest.mark.parametrize("absent", [("bias",), ("initial_states",), ("bias", "initial_states")], ids=str)
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_optional_arguments(absent, order):
    check_conv(conv_problem(2, 18, 40, absent=absent, order=order))


@pytest.mark.parametrize("dout", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
def test_upstream_gradient_in_any_memory_order(order, dout):
    check_conv(conv_problem(2, 18, 40), order=dout)
    problem = leaves(conv_problem(2, 18, 40, order=order))
    grads = [
        torch.autograd.grad(bdam_fast.causal_conv1d(**problem, activation="silu", backend=b).sum(), problem["x"])[0]
        for b in BACKENDS
    ]
    torch.testing.assert_close(*grads)


def test_parameters_of_other_dtypes_and_strides():
    problem = conv_problem(2, 18, 40)
    problem["weight"] = torch.randn(4, 36).double()[:, ::2].T
    problem["bias"] = torch.randn(36).half()[::2]
    problem["initial_states"] = torch.randn(2, 3, 18).bfloat16().mT
    got = check_conv(problem)
    assert [got[n].dtype for n in ("dweight", "dbias", "dinitial_states")] == [
        torch.float64,
        torch.float16,
        torch.bfloat16,
    ]


@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_memory_order_is_kept(order):
    problem = leaves(conv_problem(2, 18, 40, order=order))
    out = bdam_fast.causal_conv1d(**problem, backend="cpu")
    assert out.stride() == problem["x"].stride()
    assert torch.autograd.grad(out.sum(), problem["x"])[0].stride() == problem["x"].stride()


def test_expanded_and_misaligned_inputs():
    wide = torch.randn(2 * 18 * 41 + 1)[1:]
    for x in (
        torch.randn(2, 1, 40).expand(2, 18, 40),
        torch.randn(2, 18, 1).expand(2, 18, 40),
        wide[:1440].view(2, 18, 40),
    ):
        check_conv({**conv_problem(2, 18, 40), "x": x})


@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("order", ["bld", "bdl"])
@pytest.mark.parametrize("reverse", [False, True])
def test_packed(isa, width, order, reverse):
    index = packed_index(3, 70, 0.3)
    index[2] = -1
    check_conv(conv_problem(3, 18, 70, width, order=order), seq_idx=index, reverse=reverse)
    every = torch.arange(70, dtype=torch.int32).flip(0).expand(3, -1)
    check_conv(conv_problem(3, 18, 70, width, order=order), seq_idx=every, reverse=reverse)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_are_the_sequences_one_by_one(backend):
    """With padding before, between, within and after them, and the weights' gradient summed over them."""
    pieces = {0: range(3, 8), 1: range(10, 50), 2: range(55, 57), 0x7FFFFFFF: range(60, 75)}
    index = torch.full((2, 80), -1, dtype=torch.int32)
    for number, steps in pieces.items():
        index[:, list(steps)] = number
    index[0, 20:24] = -5
    problem = conv_problem(2, 6, 80, absent=("initial_states",))
    problem["x"] = problem["x"].masked_fill((index < 0)[:, None], float("nan"))
    packed = leaves(problem)
    out, final = bdam_fast.causal_conv1d(
        **packed, activation="silu", return_final_states=True, seq_idx=index, backend=backend
    )
    (out.square().sum() + final.sum()).backward()
    total = {n: torch.zeros_like(problem[n]) for n in ("weight", "bias")}
    for b in range(2):
        assert out[b, :, index[b] < 0].abs().sum() == 0
        assert packed["x"].grad[b, :, index[b] < 0].abs().sum() == 0
        for number in pieces:
            own = (index[b] == number).nonzero().squeeze(1)
            single = leaves({**problem, "x": problem["x"][b : b + 1, :, own]})
            expected, state = bdam_fast.causal_conv1d(
                **single, activation="silu", return_final_states=True, backend=backend
            )
            torch.testing.assert_close(out[b : b + 1, :, own], expected)
            last = number == 0x7FFFFFFF
            (expected.square().sum() + (state.sum() if last else 0)).backward()
            torch.testing.assert_close(packed["x"].grad[b : b + 1, :, own], single["x"].grad)
            for name, value in total.items():
                value += single[name].grad
        torch.testing.assert_close(final[b : b + 1], state)
    for name, value in total.items():
        torch.testing.assert_close(packed[name].grad, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    x, weight = torch.tensor([[[1.0, 2.0, -1.0]]]), torch.tensor([[10.0, 1.0]])
    kwargs = {"initial_states": torch.tensor([[[3.0]]]), "return_final_states": True, "backend": backend}
    out, final = bdam_fast.causal_conv1d(x, weight, torch.tensor([0.5]), **kwargs)
    assert (out.tolist(), final.tolist()) == ([[[31.5, 12.5, 19.5]]], [[[-1.0]]])
    out, final = bdam_fast.causal_conv1d(x, weight, **kwargs, reverse=True)
    assert (out.tolist(), final.tolist()) == ([[[21.0, -8.0, 29.0]]], [[[1.0]]])
    out = bdam_fast.causal_conv1d(x, weight, activation="silu", backend=backend)
    torch.testing.assert_close(out, torch.nn.functional.silu(torch.tensor([[[1.0, 12.0, 19.0]]])))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 33, 68])
def test_two_parts_are_the_whole(backend, reverse, cut):
    problem = conv_problem(2, 18, 70, 4)
    kwargs = {"activation": "silu", "return_final_states": True, "reverse": reverse, "backend": backend}
    first, second = (slice(0, cut), slice(cut, 70)) if not reverse else (slice(cut, 70), slice(0, cut))
    a, state = bdam_fast.causal_conv1d(**{**problem, "x": problem["x"][:, :, first]}, **kwargs)
    b, state = bdam_fast.causal_conv1d(
        **{**problem, "x": problem["x"][:, :, second], "initial_states": state}, **kwargs
    )
    whole, final = bdam_fast.causal_conv1d(**problem, **kwargs)
    torch.testing.assert_close(torch.cat([a, b] if not reverse else [b, a], 2), whole)
    assert torch.equal(state, final)


@pytest.mark.parametrize("order", ["bld", "bdl"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e4, -1e4])
def test_extreme_values_stay_in_their_channel_and_window(isa, order, bad):
    problem = conv_problem(2, 18, 40, order=order)
    problem["x"][1, 7, 20] = bad
    outs = [bdam_fast.causal_conv1d(**problem, activation="silu", backend=b) for b in BACKENDS]
    torch.testing.assert_close(*outs, equal_nan=True)
    clean = {**problem, "x": problem["x"].clone()}
    clean["x"][1, 7, 20] = 0
    touched = ~torch.isclose(outs[0], bdam_fast.causal_conv1d(**clean, activation="silu", backend="cpu"), rtol=0)
    assert touched.nonzero().tolist() == [[1, 7, t] for t in range(20, 24)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_same_bits_with_any_number_of_threads(kernels, isa, dtype, order):
    problem = conv_problem(3, 70, 600, dtype=dtype, order=order)
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        results.append(run_conv(leaves(problem), backend="cpu"))
    assert all(same_bits(r[name], results[0][name]) for r in results for name in r)


def test_calls_are_counted():
    bdam_fast.reset_call_counts()
    run_conv(leaves(conv_problem()), backend="cpu")
    run_conv(leaves(conv_problem()), backend="reference")
    counts = {n: c for n, c in bdam_fast.call_counts().items() if c}
    assert counts == {f"causal_conv1d.{n}": 1 for n in ("cpu.backward", "cpu.forward", "reference.forward")}
