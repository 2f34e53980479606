"""selective_scan: the kernel against the float64 reference, over shapes, memory orders, dtypes and options."""

import pytest
import torch

import bdam_fast
from tests.support.operators import LENGTHS, leaves, packed_index, same_bits
from tests.support.operators.selective_scan import check_scan, run_scan, scan_problem, with_own_dtypes, without_softplus

pytestmark = pytest.mark.usefixtures("kernels")

# (B, D, L, N): around the tile (32 steps), the unit (16 channels), each width (16, 8, 4 lanes),
# the chunk (4 states).
SHAPES = [
    (2, 16, 32, 4),
    (1, 17, 33, 5),
    (2, 15, 31, 3),
    (1, 37, 70, 16),
    (3, 4, 65, 8),
    (2, 40, 64, 17),
    (1, 3, 5, 256),
    (2, 1, 40, 1),
]


@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_orders(isa, shape, order):
    check_scan(scan_problem(*shape, order=order))


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(length):
    check_scan(scan_problem(1, 7, length, 3, order="bdl"), reverse=length % 2 == 0)


@pytest.mark.parametrize("states", [1, 3, 8, 16, 17, 64, 256])
def test_states(isa, states):
    check_scan(scan_problem(1, 11, 35, states))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("groups", [(1, 1), (3, 3), (3, 1), (1, 3), (None, 1), (3, None), (None, None)], ids=str)
def test_projections_reverse_and_packing(isa, groups, packed, reverse):
    problem = scan_problem(2, 21, 50, 5, groups=groups)
    check_scan(problem, reverse=reverse, seq_idx=packed_index(2, 50) if packed else None)


@pytest.mark.parametrize(
    "absent",
    [
        (),
        ("D",),
        ("z",),
        ("delta_bias",),
        ("initial_state",),
        ("D", "z", "delta_bias", "initial_state"),
        ("z", "initial_state"),
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.parametrize("softplus", [False, True])
def test_optional_arguments(absent, length, softplus):
    problem = scan_problem(2, 18, length, 6, absent=absent)
    problem = problem if softplus else without_softplus(problem)
    check_scan(problem, delta_softplus=softplus)
    check_scan(problem, delta_softplus=softplus, return_last_state=False)


@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(isa, dtype, order):
    check_scan(scan_problem(2, 19, 45, 6, dtype=dtype, order=order))


def test_every_argument_may_have_its_own_dtype():
    problem = with_own_dtypes(scan_problem(2, 9, 40, 4, dtype=torch.bfloat16))
    got = check_scan(problem)
    assert (got["out"].dtype, got["last"].dtype) == (torch.bfloat16, torch.float32)
    assert [got[f"d{n}"].dtype for n in ("A", "B", "D")] == [torch.float64, torch.float16, torch.float16]


def test_sixteen_bit_conversions_keep_subnormals_infinities_and_ties():
    values = torch.tensor([6e-8, 3e-6, 6.1e-5, 1.0009766, 2049.0, 65504.0, float("inf"), -float("inf"), 0.0, -2.5])
    for dtype in (torch.float16, torch.bfloat16):
        u = values.to(dtype).reshape(1, -1, 1)
        zero = torch.zeros_like(u)
        one = torch.ones(1, 1, 1, dtype=dtype)
        out = bdam_fast.selective_scan(u, zero, -torch.ones(10, 1), one, one, D=torch.ones(10), backend="cpu")
        finite = u.isfinite()
        assert torch.equal(out[finite], u[finite])
        rounded = bdam_fast.selective_scan(
            u.float(), zero, -torch.ones(10, 1), one, one, D=torch.full((10,), 1 / 3), backend="cpu"
        )
        same = bdam_fast.selective_scan(
            u, zero, -torch.ones(10, 1), one, one, D=torch.full((10,), 1 / 3), backend="cpu"
        )
        assert torch.equal(same[finite], rounded[finite].to(dtype))


@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_memory_order_is_kept(order):
    problem = scan_problem(2, 6, 40, 3, order=order)
    got = run_scan(leaves(problem), backend="cpu")
    for name in ("out", "du", "ddelta", "dz"):
        assert got[name].stride() == problem["u"].stride(), name
    assert got["dB"].stride() == problem["B"].stride()


def test_expanded_and_misaligned_views():
    problem = scan_problem(3, 5, 40, 4)
    problem["u"] = problem["u"][:1].expand(3, -1, -1)
    problem["B"] = problem["B"][:, :, :1].expand(-1, -1, 40)
    problem["delta"] = torch.randn(3 * 5 * 40 + 1)[1:].view(3, 40, 5).transpose(1, 2)
    problem["A"] = problem["A"][:, :1].expand(-1, 4)
    check_scan(problem)


@pytest.mark.parametrize(
    "make", [lambda g: g.transpose(0, 2).contiguous().transpose(0, 2), lambda g: g[:, :1].expand_as(g)]
)
def test_upstream_gradient_with_any_strides(make):
    problem = leaves(scan_problem(2, 18, 40, 4))
    out = bdam_fast.selective_scan(**problem, delta_softplus=True, backend="cpu")
    upstream = make(torch.randn(2, 18, 40))
    assert upstream.stride() != upstream.contiguous().stride()
    strided = torch.autograd.grad(out, list(problem.values()), upstream, retain_graph=True)
    dense = torch.autograd.grad(out, list(problem.values()), upstream.contiguous())
    assert all(same_bits(a, b) for a, b in zip(strided, dense, strict=True))


@pytest.mark.parametrize("shape", [(0, 4, 5, 3), (2, 4, 0, 3), (0, 4, 0, 3)], ids=str)
def test_empty(shape):
    batch, channels, length, states = shape
    got = check_scan(scan_problem(*shape))
    assert got["out"].shape == (batch, channels, length)
    if batch:  # no step at all: the state passes through, and so does its gradient
        problem = scan_problem(*shape)
        assert torch.equal(run_scan(leaves(problem), backend="cpu")["last"], problem["initial_state"])
    assert got["dA"].abs().sum() == 0


@pytest.mark.parametrize("shape", [(3, 40, 100, 5), (2, 513, 70, 16), (1, 7, 300, 17)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(shape, dtype):
    problem = scan_problem(*shape, dtype=dtype)
    runs = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        runs.append(run_scan(leaves(problem), backend="cpu"))
    for other in runs[1:]:
        assert [name for name in other if not same_bits(runs[0][name], other[name])] == []


def test_saved_states_do_not_depend_on_the_instruction_set(kernels):
    problem = leaves(scan_problem(2, 21, 70, 5))
    expected = run_scan(problem, backend="cpu")
    for isa in kernels.available_isas():
        out, last = bdam_fast.selective_scan(**problem, delta_softplus=True, return_last_state=True, backend="cpu")
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in (out, last)]
        kernels.set_isa(isa)  # the backward runs on another instruction set than the forward
        grads = torch.autograd.grad((out, last), list(problem.values()), upstream)
        for name, grad in zip(problem, grads, strict=True):
            torch.testing.assert_close(grad, expected[f"d{name}"], rtol=2e-5, atol=2e-5)
        kernels.set_isa(kernels.available_isas()[-1])
