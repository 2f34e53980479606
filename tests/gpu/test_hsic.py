"""hsic on a GPU (Triton): values and both gradients against float64 on the same device."""

import pytest
import torch

import bdam_fast
from bdam_fast import _tuning
from bdam_fast.ops.hsic.reference import median_sigma
from tests.support.gpu import (
    DEVICE,
    GPU,
    HALVES,
    ONLY_GPU,
    check,
    check_against_reference,
    check_autocast,
    check_compiled,
    check_graph,
    check_repeats,
    check_side_stream,
    on_device,
    small,
)
from tests.support.gpu import hsic_backends as backends
from tests.support.operators import leaves, same_bits
from tests.support.operators.hsic import KINDS, hsic_problem, run_problem
from tests.support.operators.kernels import HSIC

OP = "hsic"
pytestmark = pytest.mark.usefixtures("poisoned")
kinds = pytest.mark.parametrize(("kernel", "estimator"), KINDS)
SAMPLES = [4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 257, 520]


@backends
@pytest.mark.parametrize("samples", SAMPLES if GPU else SAMPLES[:7])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@kinds
def test_samples(kernel, estimator, dtype, samples, backend):
    for widths in ((40, 23), (3, 130)):
        make = {"batch": (2,), "dtype": dtype}
        check(OP, backend, samples, *widths, make=make, kernel=kernel, estimator=estimator)


@backends
@pytest.mark.parametrize("features", _tuning.CHOICES["hsic.features"][1:])
@kinds
def test_sizes_that_a_card_s_table_may_hold(kernel, estimator, features, backend):
    with _tuning.fixed({"hsic.features": features}):
        for samples in (20, 64):
            check(OP, backend, samples, 130, 70, make={"batch": (2,)}, kernel=kernel, estimator=estimator)


@small
@backends
@pytest.mark.parametrize("samples", [2, 3, 20, 65])
@pytest.mark.parametrize("order", ["rows", "columns", "strided"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_memory_orders(kernel, order, samples, backend):
    check(OP, backend, samples, 33, 18, make={"batch": (3,), "order": order}, kernel=kernel)


@backends
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 64, 97, 300])
@kinds
def test_features(kernel, estimator, width, backend):
    check(OP, backend, 20, width, 33, kernel=kernel, estimator=estimator)
    check(OP, backend, 150, 33, width, kernel=kernel, estimator=estimator)


@backends
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,)], ids=str)
@kinds
def test_batches(kernel, estimator, batch, backend):
    got = check(OP, backend, 12, 9, 20, make={"batch": batch}, kernel=kernel, estimator=estimator)
    assert got["value"].shape == batch


@small
@backends
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_widths_of_the_kernel(estimator, backend):
    problem = on_device(hsic_problem(30, 12, 20, batch=(3,)))
    sigmas = torch.tensor([0.5, 1.0, 30.0], device=DEVICE)
    options = {"kernel": "rbf", "sigma_x": sigmas, "sigma_y": 2.0, "estimator": estimator}
    check_against_reference(OP, backend, problem, **options)


@backends
@pytest.mark.parametrize("samples", [2, 3, 4, 17, 64, 511, 513, 520, 1500] if GPU else [2, 3, 64, 520])
def test_median_width(samples, backend):
    """The value with the median width is that with the exact width given, whichever way the median is found."""
    x = torch.randn(2, samples, 6, device=DEVICE)
    sigma = median_sigma(x.double()).float()
    automatic = bdam_fast.hsic(x, 2 * x, kernel="rbf", backend=backend)
    given = bdam_fast.hsic(x, 2 * x, kernel="rbf", sigma_x=sigma, sigma_y=2 * sigma, backend=backend)
    torch.testing.assert_close(automatic, given, rtol=1e-5, atol=0)


@backends
@pytest.mark.parametrize("samples", [20, 600])
def test_median_width_of_labels_and_of_equal_rows(samples, backend):
    labels = torch.nn.functional.one_hot((torch.arange(samples, device=DEVICE) % 10 == 0).long(), 2).float() * 0.3
    rows = torch.full((samples, 2), 0.7, device=DEVICE)
    assert bdam_fast.hsic(labels, rows, kernel="rbf", backend=backend) == 0
    got = bdam_fast.hsic(labels, labels, kernel="rbf", backend=backend)
    exact = bdam_fast.hsic(labels.double(), labels.double(), kernel="rbf", backend="reference")
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=0)


@backends
@kinds
def test_offsets_do_not_matter(kernel, estimator, backend):
    problem = on_device(hsic_problem(40, 33, 20))
    far = {"x": problem["x"] + 1000, "y": problem["y"] - 1000}
    near = {"x": far["x"].double() - 1000, "y": far["y"].double() + 1000}
    got = run_problem(leaves(far), kernel=kernel, estimator=estimator, backend=backend)
    exact = run_problem(leaves(near), kernel=kernel, estimator=estimator, backend="reference")
    for name, result in got.items():
        allowed = 1e-4 * exact[name].abs().max().item()
        torch.testing.assert_close(result.double(), exact[name], rtol=1e-4, atol=allowed)


@backends
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_broken_values_stay_in_their_problem(kernel, backend):
    problem = on_device(hsic_problem(20, 12, 9, batch=(3,)))
    good = run_problem(leaves(problem), kernel=kernel, backend=backend)
    problem["x"][1, 3, 5] = float("nan")
    got = run_problem(leaves(problem), kernel=kernel, backend=backend)
    assert got["value"].isnan().tolist() == [False, True, False]
    assert all(same_bits(got[name][::2], good[name][::2]) for name in got)


@backends
@pytest.mark.parametrize("shape", [(64, 96, 80), (300, 24, 40), (1200, 64, 64)] if GPU else [(70, 20, 30)])
@kinds
def test_same_bits_at_every_call(kernel, estimator, shape, backend):
    problem = on_device(hsic_problem(*shape, batch=(2,)))
    check_repeats(lambda: run_problem(leaves(problem), kernel=kernel, estimator=estimator, backend=backend))


@ONLY_GPU
@backends
def test_memory_of_the_gaussian_kernel_does_not_grow_with_the_square(backend):
    """At 16384 samples one N x N matrix of float32 is 1 GiB."""
    problem = leaves(on_device(hsic_problem(16384, 32, 32)))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run_problem(leaves(problem), kernel="rbf", backend=backend)
    assert torch.cuda.max_memory_allocated() - before < 2**28


@ONLY_GPU
@backends
@pytest.mark.parametrize("samples", [64, 700])
@kinds
def test_cuda_graph(kernel, estimator, samples, backend):
    problems = [on_device(hsic_problem(samples, 24, 30, batch=(2,))) for _ in range(2)]
    check_graph(HSIC.call("xy", backend, kernel=kernel, estimator=estimator), *problems)


@backends
@kinds
def test_compile_with_any_number_of_samples(kernel, estimator, backend):
    problems = [on_device(hsic_problem(samples, 24, 30, batch=(2,))) for samples in (40, 77, 130)]
    check_compiled(HSIC.call("xy", backend, kernel=kernel, estimator=estimator), problems)


@backends
@kinds
def test_autocast_leaves_dtypes_alone(kernel, estimator, backend):
    check_autocast(HSIC.call("xy", backend, kernel=kernel, estimator=estimator), on_device(hsic_problem(40, 24, 30)))


@ONLY_GPU
@backends
@kinds
def test_side_stream(kernel, estimator, backend):
    check_side_stream(
        HSIC.call("xy", backend, kernel=kernel, estimator=estimator), on_device(hsic_problem(64, 24, 30, batch=(2,)))
    )
