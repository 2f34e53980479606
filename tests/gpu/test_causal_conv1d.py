"""causal_conv1d on a GPU, CUDA C++ and Triton: values and every gradient against float64 on the same device."""

import pytest
import torch

import bdam_fast
from tests.support.gpu import (
    DEVICE,
    GPU,
    HALVES,
    LENGTHS,
    ONLY_GPU,
    ORDERS,
    backends,
    check,
    check_against_reference,
    check_repeats,
    on_device,
    small,
)
from tests.support.gpu_kernels import KernelTests
from tests.support.operators import leaves, same_bits
from tests.support.operators.causal_conv1d import conv_problem, run_conv
from tests.support.operators.kernels import CONV

OP = "causal_conv1d"
pytestmark = pytest.mark.usefixtures("poisoned")


class TestKernel(KernelTests):
    kernel, last, steps = CONV, 4, ("x",)


@backends
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_lengths(dtype, order, length, backend):
    """64 channels take the kernels' vector loads, 37 the scalar ones."""
    for channels in (64, 37):
        check(OP, backend, 2, channels, length, 4, make={"dtype": dtype, "order": order})


@small
@backends
@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", [*ORDERS, "strided"])
@pytest.mark.parametrize("reverse", [False, True])
def test_widths_and_memory_orders(reverse, order, width, backend):
    for activation in (None, "silu"):
        check(OP, backend, 2, 19, 37, width, make={"order": order}, reverse=reverse, activation=activation)


@small
@backends
@pytest.mark.parametrize("channels", [1, 2, 3, 8, 37, 128, 131])
@pytest.mark.parametrize("absent", [(), ("bias",), ("initial_states",), ("bias", "initial_states")], ids=str)
def test_channels_and_optional_arguments(absent, channels, backend):
    for order in ORDERS:
        check(OP, backend, 1, channels, 21, 4, make={"order": order, "absent": absent})


@small
@backends
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("padding", [0.01, 0.3])
@pytest.mark.parametrize("order", ORDERS)
def test_packed(order, padding, reverse, backend):
    for length, width in ((1, 4), (33, 2), (77, 4), (130, 7)):
        check(OP, backend, 3, 36, length, width, padding=padding, make={"order": order}, reverse=reverse)


@backends
@pytest.mark.parametrize("dout", [*ORDERS, "strided"])
@pytest.mark.parametrize("order", ORDERS)
def test_upstream_gradient_in_any_memory_order(order, dout, backend):
    check_against_reference(OP, backend, on_device(conv_problem(2, 36, 40, order=order)), order=dout)


@backends
def test_parameters_of_other_dtypes(backend):
    problem = conv_problem(2, 18, 40, dtype=torch.bfloat16)
    problem["weight"] = torch.randn(4, 36).double()[:, ::2].T
    problem["bias"] = torch.randn(36).half()[::2]
    problem["initial_states"] = torch.randn(2, 3, 18).bfloat16().mT
    check_against_reference(OP, backend, on_device(problem))


@backends
def test_expanded_and_misaligned_inputs(backend):
    whole = torch.randn(2 * 32 * 40 + 1)
    for x in (torch.randn(2, 1, 40).expand(2, 32, 40), whole[1:].view(2, 32, 40), whole[1:].view(2, 40, 32).mT):
        check_against_reference(OP, backend, on_device({**conv_problem(2, 32, 40), "x": x}))


@backends
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e4, -1e4])
@pytest.mark.parametrize("order", ORDERS)
def test_extreme_values_stay_in_their_channel_and_window(order, bad, backend):
    problem = on_device(conv_problem(2, 36, 40, order=order))
    clean = bdam_fast.causal_conv1d(**problem, activation="silu", backend=backend)
    problem["x"] = problem["x"].clone()
    problem["x"][1, 7, 20] = bad
    got = bdam_fast.causal_conv1d(**problem, activation="silu", backend=backend)
    others = torch.ones(2, 36, 40, dtype=torch.bool, device=DEVICE)
    others[1, 7, 20:24] = False
    assert same_bits(got[others], clean[others])
    expected = bdam_fast.causal_conv1d(**problem, activation="silu", backend="reference")
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@backends
@pytest.mark.parametrize("shape", [(4, 256, 197), (1, 16, 2048), (3, 50, 600)] if GPU else [(2, 40, 60)])
@pytest.mark.parametrize("dtype", HALVES[:2], ids=str)
def test_same_bits_at_every_call(dtype, shape, backend):
    for order in ORDERS:
        problem = on_device(conv_problem(*shape, dtype=dtype, order=order))
        check_repeats(lambda problem=problem: run_conv(leaves(problem), backend=backend))


@ONLY_GPU
@backends
@pytest.mark.parametrize("order", ORDERS)
def test_more_than_2_to_the_31_elements(order, backend, memory):
    """The last batch item lies past 2^31 elements; it alone gives the same: output and gradient of x."""
    memory(40)
    batch, channels, length = 2050, 1024, 1024
    x = torch.empty(batch, channels, length, device=DEVICE, dtype=torch.bfloat16).normal_()
    x = x if order == "bdl" else x.view(batch, length, channels).transpose(1, 2)
    assert x.numel() > 2**31
    weight = torch.randn(channels, 4, device=DEVICE)
    results = []
    for inputs in (x, x[-1:].clone(memory_format=torch.preserve_format)):
        inputs = inputs.detach().requires_grad_()
        out = bdam_fast.causal_conv1d(inputs, weight, activation="silu", backend=backend)
        (dx,) = torch.autograd.grad(out, inputs, out.detach())
        results.append([t[-1:].float().clone() for t in (out.detach(), dx)])
        del out, dx
    for whole, single in zip(*results, strict=True):
        torch.testing.assert_close(whole, single, rtol=2e-2, atol=2e-2)
