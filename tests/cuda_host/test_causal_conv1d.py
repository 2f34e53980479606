"""causal_conv1d's CUDA C++ kernels on the CPU emulation against the float64 reference, forward and backward."""

from functools import partial

import pytest
import torch

import bdam_fast
from tests.support.cuda_host import build
from tests.support.operators import leaves, packed_index, same_bits, stream
from tests.support.operators.causal_conv1d import check_conv, conv_problem, run_conv

pytestmark = pytest.mark.usefixtures("emulated_backend")
NAMES = ("x", "weight", "bias", "initial_states")
ORDERS = ["bld", "bdl"]
check = partial(check_conv, backend="cuda")


def run(problem, order="bld", **kwargs):
    """Output, final states and every gradient."""
    return run_conv(leaves(problem), order, backend="cuda", **kwargs)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", [*ORDERS, "strided"])
def test_widths_orders_and_directions(width, order):
    """37 steps and 19 channels: no vectors in one memory order, misaligned rows in the other; then whole vectors."""
    for reverse in (False, True):
        for activation in (None, "silu"):
            check(conv_problem(2, 19, 37, width, order=order), order=order, reverse=reverse, activation=activation)
            check(conv_problem(1, 24, 40, width, order=order), order=order, reverse=reverse, activation=activation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", [*ORDERS, "strided"])
def test_dtypes(dtype, order):
    for width in (2, 3, 4, 7):
        for channels, length in ((8, 40), (9, 45)):
            for reverse in (False, True):
                check(conv_problem(2, channels, length, width, dtype=dtype, order=order), order=order, reverse=reverse)
            packed = packed_index(2, length)
            check(conv_problem(2, channels, length, width, dtype=dtype, order=order), order=order, seq_idx=packed)


LENGTHS = [0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 77, 127, 128, 130, 192, 193, 197]
LENGTHS += [255, 257, 511, 513, 1025, 2049]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("order", ORDERS)
def test_lengths(length, order):
    """One channel's rows are cut in runs from 512 steps on, runs of channels' steps from 32 on."""
    for reverse in (False, True):
        check(conv_problem(1, 4, length, 4, order=order), order=order, reverse=reverse)
        check(conv_problem(2, 3, length, 3, order=order, absent=("initial_states",)), order=order, reverse=reverse)
        check(conv_problem(1, 4, length, 2, order=order), order=order, reverse=reverse, return_final_states=False)


@pytest.mark.parametrize("channels", [1, 2, 15, 16, 17, 31, 33, 64, 128, 132, 257, 260])
@pytest.mark.parametrize("order", ORDERS)
def test_channels(channels, order):
    check(conv_problem(2, channels, 21, order=order), order=order)


@pytest.mark.parametrize("order", ORDERS)
def test_no_batch(order):
    got = run(conv_problem(0, 5, 20, order=order), order)
    assert got["out"].shape == (0, 5, 20)
    assert got["dweight"].abs().sum() == 0 and got["dbias"].abs().sum() == 0


@pytest.mark.parametrize("absent", [("bias",), ("initial_states",), ("bias", "initial_states")], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_optional_arguments(absent, order):
    check(conv_problem(2, 20, 40, absent=absent, order=order), order=order)
    check(conv_problem(2, 20, 40, absent=absent, order=order), order=order, seq_idx=packed_index(2, 40))


@pytest.mark.parametrize("dout", [*ORDERS, "strided"])
@pytest.mark.parametrize("order", [*ORDERS, "strided"])
def test_upstream_gradient_in_any_memory_order(order, dout):
    check(conv_problem(2, 20, 40, order=order), order=dout)


def test_parameters_of_other_dtypes_and_strides():
    problem = conv_problem(2, 20, 40)
    problem["weight"] = torch.randn(4, 40).double()[:, ::2].T
    problem["bias"] = torch.randn(40).half()[::2]
    problem["initial_states"] = torch.randn(2, 3, 20).bfloat16().mT
    for order in ORDERS:
        problem["x"] = stream(2, 20, 40, torch.float32, order)
        got = check(problem, order=order)
        assert got["dweight"].dtype == torch.float64 and got["dinitial_states"].stride() == (60, 1, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ORDERS)
def test_memory_order_is_kept(order, dtype):
    problem = conv_problem(2, 20, 40, order=order, dtype=dtype)
    got = run(problem, order)
    assert got["out"].stride() == got["dx"].stride() == problem["x"].stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expanded_and_misaligned_inputs(dtype):
    flat = torch.randn(2 * 20 * 48 + 9).to(dtype)
    views = [torch.randn(2, 1, 40).expand(2, 20, 40), torch.randn(2, 20, 1).expand(2, 20, 40)]
    for offset in (1, 2, 3, 5):
        views += [flat[offset : offset + 1600].view(2, 20, 40), flat[offset : offset + 1600].view(2, 40, 20).mT]
    views += [flat[: 2 * 20 * 48].view(2, 20, 48)[:, :, 3:43], flat[: 2 * 40 * 24].view(2, 40, 24)[:, :, 2:22].mT]
    for x in views:
        for reverse in (False, True):
            check({**conv_problem(2, 20, 40), "x": x.to(dtype)}, order="bdl", reverse=reverse)


@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("channels", [5, 8])
@pytest.mark.parametrize("reverse", [False, True])
def test_packed(width, channels, reverse):
    """Runs of 16 and 32 steps begin within sequences, in padding, and where no step has been processed yet."""
    index = packed_index(3, 150, 0.3)
    index[1, 20:110] = -1
    index[2] = -1
    every = torch.arange(150, dtype=torch.int32).flip(0).expand(3, -1)
    late = torch.full((3, 150), -1, dtype=torch.int32)
    late[:, 70:] = 3
    for order in ORDERS:
        for seq_idx in (index, every, late):
            check(conv_problem(3, channels, 150, width, order=order), order=order, seq_idx=seq_idx, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_not_read_into_anything(reverse):
    index = packed_index(2, 90, 0.4)
    problem = conv_problem(2, 8, 90)
    clean = run(problem, seq_idx=index, reverse=reverse)
    problem["x"] = problem["x"].masked_fill((index < 0)[:, None], float("nan"))
    got = run(problem, seq_idx=index, reverse=reverse)
    assert all(same_bits(got[name], clean[name]) for name in clean)
    assert got["out"].mT[index < 0].abs().sum() == 0 and got["dx"].mT[index < 0].abs().sum() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e4, -1e4])
@pytest.mark.parametrize("where", NAMES)
@pytest.mark.parametrize("order", ORDERS)
def test_extreme_values_stay_in_their_channel(order, where, bad):
    problem = conv_problem(2, 20, 40, order=order)
    broken = {name: value.clone() for name, value in problem.items()}
    broken[where][(slice(None),) * (where in ("x", "initial_states")) + (6,)] = bad
    others = torch.arange(20) != 6
    clean, got = run(problem, order), run(broken, order)
    for name, value in got.items():
        along = 0 if name in ("dweight", "dbias") else 1
        assert same_bits(
            value.index_select(along, others.nonzero()[:, 0]), clean[name].movedim(along, 0)[others].movedim(0, along)
        )
    expected = run_conv(leaves(broken), order, backend="reference")
    torch.testing.assert_close(got["out"], expected["out"], equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ORDERS)
def test_small_thread_orders_give_the_same_bits(order, dtype, monkeypatch):
    for packed in (None, packed_index(2, 77, 0.3)):
        problem = conv_problem(2, 132, 77, order=order, dtype=dtype)
        results = []
        for name in ("forward", "reverse", "random", "random:5"):
            monkeypatch.setenv("BDAM_HOST_ORDER", name)
            results.append(run(problem, order, seq_idx=packed))
        assert all(same_bits(r[name], value) for r in results for name, value in results[0].items())


@pytest.mark.parametrize("order", [*ORDERS, "strided"])
def test_small_cases(order):
    """Cases that the sanitized process runs: every kernel, and every edge of it."""
    for width in (1, 2, 3, 4, 6):
        for channels, length in ((4, 0), (5, 1), (8, 2), (3, 9), (8, 33)):
            for reverse in (False, True):
                for dtype in (torch.float32, torch.bfloat16):
                    problem = conv_problem(2, channels, length, width, order=order, dtype=dtype)
                    check(problem, order=order, reverse=reverse)
                    check(problem, order=order, reverse=reverse, seq_idx=packed_index(2, length))


def test_no_access_out_of_bounds():
    build.library(sanitize="causal_conv1d")
    arguments = ("-m", "pytest", "-s", "-p", "no:cacheprovider", __file__, "-k", "small")
    done = build.run_sanitized(*arguments, family="causal_conv1d")
    assert done.returncode == 0 and done.stdout.count(".") >= 7, done.stdout[-3000:] + done.stderr[-3000:]


def test_calls_are_counted(emulated_backend):
    emulated_backend.reset_call_counts()
    run(conv_problem())
    counts = {name: count for name, count in emulated_backend.call_counts().items() if count}
    assert counts == {"causal_conv1d.cuda.forward": 1, "causal_conv1d.cuda.backward": 1}


RAW = {
    "x": ({"x": torch.ones(2, 5)}, r"causal_conv1d: x must have shape \(B, D, L\), got \(2, 5\)"),
    "float64": ({"x": torch.ones(2, 5, 9).double()}, "causal_conv1d: the CUDA kernels take no float64 x"),
    "weight": ({"weight": torch.ones(4, 4)}, r"causal_conv1d: weight must have shape \(5, 4\), got \(4, 4\)"),
    "width": ({"weight": torch.ones(5, 9)}, "causal_conv1d: needs D >= 1 and a width of 1 to 8, got D = 5, width = 9"),
    "bias": ({"bias": torch.ones(4)}, r"causal_conv1d: bias must have shape \(5,\), got \(4,\)"),
    "states": ({"initial_states": torch.ones(2, 5, 4)}, r"initial_states must have shape \(2, 5, 3\), got \(2, 5, 4\)"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_operators_check_what_they_touch(case):
    changes, text = RAW[case]
    tensors = [{**conv_problem(), **changes}.get(name) for name in NAMES] + [None]
    with pytest.raises(RuntimeError, match=text):
        torch.ops.bdam_fast_emulated.causal_conv1d_forward(*tensors, True, False, True)
    with pytest.raises(RuntimeError, match=text):
        torch.ops.bdam_fast_emulated.causal_conv1d_backward(torch.ones(2, 5, 9), None, *tensors, True, False)


def test_same_as_the_cpu_kernels():
    problem = conv_problem(2, 20, 77)
    out = bdam_fast.causal_conv1d(**problem, activation="silu", backend="cpu")
    torch.testing.assert_close(run(problem)["out"], out)
