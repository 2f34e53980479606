"""The Triton kernels of hsic under Triton's interpreter, against the textbook formula in float64."""

from functools import partial

import pytest
import torch

from bdam_fast import _tuning
from bdam_fast.ops.hsic import triton_impl, triton_small
from bdam_fast.ops.hsic.reference import median_sigma
from tests.support.operators import same_bits
from tests.support.operators.hsic import KINDS, check_hsic, clusters, near_rows, outlier, pair, rbf_error, run_hsic

pytestmark = pytest.mark.usefixtures("poison")


@pytest.fixture(autouse=True)
def tiles_from_65_samples(monkeypatch):
    """Two tiles where 129 samples would make three: the interpreter's time goes by programs."""
    monkeypatch.setattr(triton_impl, "SMALL", 64)


check, run = partial(check_hsic, backend="triton"), partial(run_hsic, backend="triton")


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("samples", [4, 5, 15, 16, 17, 33, 64, 65, 128])
def test_few_samples(monkeypatch, kernel, estimator, samples):
    monkeypatch.setattr(triton_impl, "SMALL", 128)
    check(*pair(samples, 20, 23), kernel=kernel, estimator=estimator)
    sigmas = {"sigma_x": 0.7, "sigma_y": 1.9} if kernel == "rbf" else {}
    check(*pair(samples, 1, 37), kernel=kernel, estimator=estimator, **sigmas)


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("features", _tuning.CHOICES["hsic.features"][1:])
def test_every_size_that_a_card_s_table_may_hold(features, kernel, estimator):
    """Blocks of fewer samples than features take as many features as samples."""
    with _tuning.fixed({"hsic.features": features}):
        for samples in (9, 31, 64):
            for most in (32, 64):
                small = triton_small.small_of(samples, 70, 37)
                found = small.features(most, torch.device("cpu"))
                assert found == min(features, small.BLOCK, most) and small.share % found == 0
            check(*pair(samples, 70, 37), kernel=kernel, estimator=estimator)
        assert triton_small.small_of(100, 70, 37).features(64, torch.device("cpu")) == 16


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize(("samples", "widths"), [(9, (150, 64)), (40, (65, 129)), (70, (128, 140))])
def test_parts_of_the_features(monkeypatch, kernel, estimator, samples, widths):
    """Parts of 64 features, or of 128 from 65 samples on; the last of a side may be one feature."""
    monkeypatch.setattr(triton_impl, "SMALL", 128)
    small = triton_small.small_of(samples, *widths)
    assert (small.parts(widths[0]), small.parts(widths[1])) == {9: (3, 1), 40: (2, 3), 70: (1, 2)}[samples]
    check(*pair(samples, *widths, batch=(2,)), kernel=kernel, estimator=estimator)


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize(("samples", "widths", "parts"), [(9, (300, 64), (2, 1)), (70, (130, 257), (1, 2))])
def test_longer_parts_where_there_would_be_many(monkeypatch, kernel, estimator, samples, widths, parts):
    monkeypatch.setattr(triton_impl, "SMALL", 128)
    monkeypatch.setattr(triton_small, "MOST_PARTS", 2)
    small = triton_small.small_of(samples, *widths)
    assert (small.parts(widths[0]), small.parts(widths[1])) == parts
    check(*pair(samples, *widths), kernel=kernel, estimator=estimator)


def test_how_long_a_part_is():
    sizes = [(64, 768), (64, 4096), (64, 4097), (65, 8192), (32, 802816)]
    shares = [triton_small.small_of(samples, width, 48).share for samples, width in sizes]
    assert shares == [64, 64, 128, 128, 12544]


@pytest.mark.parametrize("gaussian", [False, True])
def test_an_item_has_the_same_bits_in_every_batch(gaussian):
    def run_raw(x, y):
        value, saved = triton_impl.forward(x, y, None, None, gaussian, False)
        return value, *triton_impl.backward(torch.ones_like(value), x, y, saved, gaussian, False)

    x, y = pair(33, 70, 130, batch=(3,))
    for together, alone in zip(run_raw(x, y), run_raw(x[2:], y[2:]), strict=True):
        assert same_bits(together[2:], alone)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_two_and_three_samples(kernel):
    for samples in (2, 3):
        check(*pair(samples, 3, 5, batch=(2,)), kernel=kernel)


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("samples", [65, 129])
def test_many_samples(kernel, estimator, samples):
    """Tiles, and both forms of the linear kernel."""
    check(*pair(samples, 20, 3), kernel=kernel, estimator=estimator)
    if kernel == "linear":
        check(*pair(samples, 200, 300, batch=(2,)), kernel=kernel, estimator=estimator)


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_and_memory_orders(kernel, estimator, dtype):
    for order in ("rows", "columns", "strided"):
        check(*pair(21, 35, 18, dtype=dtype, order=order), kernel=kernel, estimator=estimator)
    check(*pair(70, 3, 7, dtype=dtype, order="strided"), kernel=kernel, estimator=estimator)


@pytest.mark.parametrize("samples", [20, 70])
def test_given_widths(samples):
    x, y = pair(samples, 5, 8, batch=(3,))
    check(x, y, kernel="rbf", sigma_x=torch.tensor([0.5, 1.0, 30.0]), sigma_y=torch.tensor(2.0))
    check(x[:2], y[:2], kernel="rbf", estimator="unbiased", sigma_y=torch.tensor([0.5, 100.0]))


def sigmas(x, y):
    saved = triton_impl.forward(x, y, None, None, True, False)[1]
    return saved[:, 0], saved[:, 2]


@pytest.mark.parametrize("samples", [2, 3, 4, 17, 64, 65, 100])
def test_median_width(samples):
    x, y = torch.randn(2, samples, 6), torch.randn(2, samples, 1) * 1e-3
    for got, t in zip(sigmas(x, y), (x, y), strict=True):
        torch.testing.assert_close(got.double(), median_sigma(t.double()), rtol=2e-6, atol=0)


@pytest.mark.parametrize("samples", [20, 75])
def test_median_width_of_labels_and_of_equal_rows(samples):
    """Equal rows have distance zero exactly: the mean steps in when most pairs coincide, and 1 when all do."""
    labels = torch.nn.functional.one_hot((torch.arange(samples) % 10 == 0).long(), 2).float() * 0.3
    rows = torch.full((1, samples, 2), 0.7)
    found = sigmas(labels[None], rows)
    torch.testing.assert_close(found[0], median_sigma(labels[None]), rtol=1e-6, atol=0)
    assert found[1] == median_sigma(rows) == 1
    assert triton_impl.forward(labels[None], rows, None, None, True, False)[0] == 0


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
@pytest.mark.parametrize("samples", [40, 80])
def test_offsets_do_not_matter(kernel, estimator, samples):
    """Features a thousand away from zero: what centring first is for."""
    x, y = (t + offset for t, offset in zip(pair(samples, 33, 20), (1000, -1000), strict=True))
    exact = run_hsic(x.double() - 1000, y.double() + 1000, kernel=kernel, estimator=estimator, backend="reference")
    for name, value in run(x, y, kernel=kernel, estimator=estimator).items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-5, atol=1e-5 * exact[name].abs().max().item())


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_no_digits_are_lost_to_what_cancels(estimator):
    """Data spread far beyond the widths, which inner products of centred rows cannot tell apart."""
    error = partial(rbf_error, estimator=estimator, backend="triton")
    assert max(error(*outlier(1e5, 40)), error(*outlier(1e6, 64, 3)), error(*clusters(1e4, 40))) <= 1e-5
    assert error(*clusters(1e2, 40), sigma_x=1.0, sigma_y=2.0) <= 1e-5
    # Tiles.
    assert error(*(outlier(1e6, 75, 3) if estimator == "biased" else clusters(1e4, 75, 3))) <= 1e-5
    assert error(*clusters(1e2, 70, 3), sigma_x=1.0, sigma_y=2.0) <= 1e-5


def test_rows_that_nearly_coincide():
    assert rbf_error(*near_rows(), sigma_x=0.01, sigma_y=0.01, backend="triton") <= 1e-5


@pytest.mark.parametrize(("samples", "bad"), [(20, float("nan")), (20, float("inf")), (70, float("nan"))])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_broken_values_stay_in_their_problem(samples, bad):
    gaussian = {"kernel": "rbf", "sigma_x": 1.0, "sigma_y": None if samples == 20 else 1.0}
    for options in ({}, gaussian):
        x, y = pair(samples, 5, 9, batch=(3,))
        good = run(x, y, **options)
        x[1, 3, 2] = bad
        got = run(x, y, **options)
        assert got["value"].isnan().tolist() == [False, True, False]
        assert all(same_bits(value[::2], good[name][::2]) for name, value in got.items())


@pytest.mark.parametrize(("kernel", "estimator"), KINDS)
def test_empty_batch_and_same_bits_again(kernel, estimator):
    for samples in (12, 70):
        assert run(*pair(samples, 5, 9, batch=(0,)), kernel=kernel, estimator=estimator)["value"].shape == (0,)
        x, y = pair(samples, 5, 9, batch=(1,))
        first, again = (run(x, y, kernel=kernel, estimator=estimator) for _ in range(2))
        assert all(same_bits(again[name], value) for name, value in first.items())


@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_splits_of_a_row_of_tiles(monkeypatch, programs):
    """One split, and with many programs as many as there are tiles, which are small here: three."""
    monkeypatch.setattr(triton_impl, "BLOCK", 32)
    monkeypatch.setattr(triton_impl, "PROGRAMS", programs)
    given = {"estimator": "unbiased", "sigma_x": 1.0, "sigma_y": 1.0} if programs == 2 else {}
    check(*pair(73, 5, 17), kernel="rbf", **given)


def high() -> None:
    torch.set_float32_matmul_precision("high")


def allow() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def newer() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def all_backends() -> None:
    torch.backends.fp32_precision = "tf32"


def contradicting() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def state() -> list[object]:
    """Answer of each way of asking, or that it raises."""
    found: list[object] = []
    for ask in (
        lambda: torch.backends.cuda.matmul.fp32_precision,
        lambda: torch.backends.mkldnn.matmul.fp32_precision,
        torch.get_float32_matmul_precision,
        # What cuBLAS asks before every product.
        torch._C._get_cublas_allow_tf32,
    ):
        try:
            found.append(ask())
        except RuntimeError as error:
            found.append(type(error))
    return found


@pytest.fixture
def settings():
    matmul, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = matmul.fp32_precision, mkldnn.fp32_precision, torch.backends.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    matmul.fp32_precision, mkldnn.fp32_precision, torch.backends.fp32_precision = before


@pytest.mark.parametrize("setting", [high, allow, newer, all_backends, contradicting])
def test_matrix_products_are_in_full_precision(setting, settings, monkeypatch):
    """A user's TF32 or autocast changes nothing, and is there again afterwards."""
    x, y = pair(70, 200, 300)
    plain, seen = run(x, y, estimator="unbiased"), []
    product = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *args, **named: seen.append(state()) or product(*args, **named))
    setting()
    before = state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = run(x, y, estimator="unbiased")
    assert state() == before
    assert seen and all(found[0] == "ieee" and found[2:] == ["highest", False] for found in seen)
    assert all(same_bits(again[name], value) for name, value in plain.items())


@pytest.mark.parametrize("samples", [20, 70])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_order_of_programs_does_not_matter(kernel, samples, programs_from_the_last):
    x, y = (torch.stack([a, 2 * a.flip(0)]) for a in pair(samples, 5, 7))
    forwards = run(x, y, kernel=kernel)
    programs_from_the_last()
    again = run(x, y, kernel=kernel)
    assert [name for name in forwards if not same_bits(again[name], forwards[name])] == []
