"""selective_scan on a GPU, CUDA C++ and Triton: values and every gradient against float64 on the same device."""

import pytest
import torch

import bdam_fast
from bdam_fast import _tuning
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
from tests.support.operators.kernels import SCAN
from tests.support.operators.selective_scan import run_scan, scan_problem, without_softplus

OP = "selective_scan"
pytestmark = pytest.mark.usefixtures("poisoned")
OPTIONAL = ("D", "z", "delta_bias", "initial_state")


class TestKernel(KernelTests):
    kernel, last, steps = SCAN, 16, ("u", "delta", "z", "B", "C")


@backends
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_lengths(dtype, order, length, backend):
    """64 channels take the kernels' vector loads, 37 the scalar ones."""
    for channels in (64, 37) if length <= 513 else (64,):
        check(OP, backend, 2, channels, length, 16, make={"dtype": dtype, "order": order})


@backends
@pytest.mark.parametrize("states", [1, 2, 3, 8, 16, 17, 32, 64, 256] if GPU else [1, 17])
@pytest.mark.parametrize("dtype", HALVES[:2], ids=str)
def test_states(dtype, states, backend):
    for order in ORDERS:
        check(OP, backend, 2, 20, 70, states, make={"dtype": dtype, "order": order})


@small
@backends
@pytest.mark.parametrize("channels", [1, 2, 3, 37, 128, 131])
@pytest.mark.parametrize("order", [*ORDERS, "strided"])
def test_channels_and_memory_orders(order, channels, backend):
    check(OP, backend, 2, channels, 19, 16, make={"order": order})


VARIANTS = [{"selective_scan.block_channels": 64}, {"selective_scan.saved_steps": 16}]
VARIANTS += [VARIANTS[0] | VARIANTS[1]]


@small
@backends
@pytest.mark.parametrize("variant", VARIANTS, ids=["narrow", "half", "both"])
@pytest.mark.parametrize("order", [*ORDERS, "strided"])
def test_fewer_channels_a_block_and_fewer_saved_states(order, variant, backend):
    """Variants of the CUDA kernels that a card's table may choose."""
    if backend == "triton":
        pytest.skip("variants of the CUDA kernels")
    with _tuning.fixed(variant):
        for dtype in HALVES:
            check(OP, backend, 2, 136, 29, 16, make={"dtype": dtype, "order": order})


@small
@backends
@pytest.mark.parametrize("groups", [(None, None), (1, None), (None, 1), (2, 2), (6, 1), (1, 3)], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_groups_and_constant_projections(reverse, groups, backend):
    for order in ORDERS:
        check(OP, backend, 2, 36, 33, 16, make={"groups": groups, "order": order}, reverse=reverse)


@small
@backends
@pytest.mark.parametrize("absent", [(), *((n,) for n in OPTIONAL), OPTIONAL], ids=str)
@pytest.mark.parametrize("softplus", [False, True])
def test_optional_arguments(softplus, absent, backend):
    problem = scan_problem(2, 36, 33, 16, absent=absent)
    problem = problem if softplus else without_softplus(problem)
    problem = on_device(problem)
    for last in (True, False):
        check_against_reference(OP, backend, problem, delta_softplus=softplus, return_last_state=last)


@small
@backends
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("padding", [0.01, 0.3])
@pytest.mark.parametrize("order", ORDERS)
def test_packed(order, padding, reverse, backend):
    for length in (1, 33, 77):
        check(OP, backend, 3, 36, length, 16, padding=padding, make={"order": order}, reverse=reverse)


@backends
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_in_half_precision(reverse, dtype, backend):
    check(OP, backend, 2, 64, 130, 16, padding=0.2, make={"dtype": dtype}, reverse=reverse)


@backends
def test_parameters_of_other_dtypes(backend):
    problem = scan_problem(2, 36, 40, 16, dtype=torch.bfloat16)
    problem["A"], problem["D"] = problem["A"].double(), problem["D"].half()
    problem["initial_state"] = problem["initial_state"].bfloat16().mT.contiguous().mT
    check_against_reference(OP, backend, on_device(problem))
    problem["delta"], problem["z"] = problem["delta"].float(), problem["z"].half()
    got = check_against_reference(OP, backend, on_device(problem))
    assert (got["ddelta"].dtype, got["dz"].dtype) == (torch.float32, torch.float16)


@backends
def test_expanded_and_misaligned_inputs(backend):
    whole = torch.randn(2 * 36 * 40 + 1)
    for u in (torch.randn(2, 1, 40).expand(2, 36, 40), whole[1:].view(2, 36, 40), whole[1:].view(2, 40, 36).mT):
        check_against_reference(OP, backend, on_device({**scan_problem(2, 36, 40, 16), "u": u}))


@backends
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e4, -1e4])
@pytest.mark.parametrize("where", ["u", "delta"])
def test_extreme_values_stay_in_their_channel(where, bad, backend):
    problem = on_device(scan_problem(2, 36, 40, 16))
    clean = bdam_fast.selective_scan(**problem, delta_softplus=True, backend=backend)
    problem[where] = problem[where].clone()
    problem[where][1, 7, 20] = bad
    got = bdam_fast.selective_scan(**problem, delta_softplus=True, backend=backend)
    others = torch.ones(2, 36, dtype=torch.bool, device=DEVICE)
    others[1, 7] = False
    assert same_bits(got[others], clean[others])
    expected = bdam_fast.selective_scan(**problem, delta_softplus=True, backend="reference")
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@backends
@pytest.mark.parametrize("reverse", [False, True])
def test_few_channels_and_many_steps(reverse, backend):
    """The regime that cuts time, where a kernel has one."""
    check(OP, backend, 1, 8, 4099 if GPU else 300, 16, reverse=reverse)
    check(OP, backend, 1, 8, 1500 if GPU else 200, 16, padding=0.01, reverse=reverse)


@backends
@pytest.mark.parametrize("shape", [(4, 256, 197, 16), (1, 16, 2048, 16), (3, 50, 60, 64)] if GPU else [(2, 40, 60, 16)])
@pytest.mark.parametrize("dtype", HALVES[:2], ids=str)
def test_same_bits_at_every_call(dtype, shape, backend):
    problem = on_device(scan_problem(*shape, dtype=dtype))
    check_repeats(lambda: run_scan(leaves(problem), backend=backend))


@ONLY_GPU
@backends
@pytest.mark.parametrize("gradient", [False, True])
def test_more_than_2_to_the_31_elements(gradient, backend, memory):
    """The last batch item lies past 2^31 elements; it alone gives the same. The states saved
    for the backward take 17 GiB, the gradients as much.
    """
    memory(60 if gradient else 40)
    batch, channels, length = 2050, 1024, 1024
    u = torch.empty(batch, length, channels, device=DEVICE, dtype=torch.bfloat16).normal_().transpose(1, 2)
    assert u.numel() > 2**31
    B = torch.randn(batch, length, 16, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
    A = -torch.rand(channels, 16, device=DEVICE) - 0.5
    last = [t[-1:].detach().clone(memory_format=torch.preserve_format) for t in (u, B)]
    results = []
    for inputs in ((u, B), last):
        x, projection = (t.requires_grad_(gradient) for t in inputs)
        out = bdam_fast.selective_scan(x, x, A, projection, projection, delta_softplus=True, backend=backend)
        grads = torch.autograd.grad(out, inputs, out.detach()) if gradient else ()
        results.append([t[-1:].float() for t in (out.detach(), *grads)])
        del out, grads
    for whole, single in zip(*results, strict=True):
        torch.testing.assert_close(whole, single, rtol=2e-2, atol=2e-2)
