"""selective_scan: each error text, by every backend that could meet it."""

import pytest
import torch

import bdam_fast
from bdam_fast.ops.selective_scan import op
from tests.support.operators import scan_problem

GOOD = {"batch": 2, "channels": 6, "length": 8, "states": 3}
CASES = {
    "u list": ({"u": [1.0]}, TypeError, "selective_scan: u must be a tensor, got list"),
    "B list": ({"B": [1.0]}, TypeError, "selective_scan: B must be a tensor, got list"),
    "u int": (
        {"u": torch.ones(2, 6, 8, dtype=torch.int32)},
        TypeError,
        "selective_scan: u must be float32, bfloat16, float16 or float64, got torch.int32",
    ),
    "A complex": (
        {"A": torch.ones(6, 3, dtype=torch.complex64)},
        TypeError,
        "selective_scan: A must be float32, bfloat",
    ),
    "u dim": ({"u": torch.ones(6, 8)}, ValueError, r"selective_scan: u must have shape \(B, D, L\), got \(6, 8\)"),
    "A dim": ({"A": torch.ones(6)}, ValueError, r"selective_scan: A must have shape \(D, N\), got \(6,\)"),
    "no channel": ({"u": torch.ones(2, 0, 8)}, ValueError, "selective_scan: u must have at least one channel, got"),
    "no state": (
        {"A": torch.ones(6, 0)},
        ValueError,
        r"selective_scan: A must have 1 to 256 states, got shape \(6, 0\)",
    ),
    "states": (
        {"A": torch.ones(6, 257)},
        ValueError,
        r"selective_scan: A must have 1 to 256 states, got shape \(6, 257\)",
    ),
    "delta": (
        {"delta": torch.ones(2, 6, 7)},
        ValueError,
        r"selective_scan: delta must have shape \(2, 6, 8\) like u, got \(2, 6, 7\)",
    ),
    "A": ({"A": torch.ones(5, 3)}, ValueError, r"selective_scan: A must have shape \(6, 3\), got \(5, 3\)"),
    "B dim": (
        {"B": torch.ones(3)},
        ValueError,
        r"selective_scan: B must have shape \(D, N\), \(B, N, L\) or \(B, G, N, L\)",
    ),
    "B constant": ({"B": torch.ones(3, 6)}, ValueError, r"selective_scan: B must have shape \(6, 3\), got \(3, 6\)"),
    "B variable": ({"B": torch.ones(2, 3, 7)}, ValueError, r"selective_scan: B must have shape \(2, 3, 8\), got"),
    "C groups": (
        {"C": torch.ones(2, 4, 3, 8)},
        ValueError,
        r"selective_scan: C must have a number of groups that divides the 6 channels, got shape \(2, 4, 3, 8\)",
    ),
    "C grouped": ({"C": torch.ones(2, 2, 3, 9)}, ValueError, r"selective_scan: C must have shape \(2, 2, 3, 8\), got"),
    "B and C": (
        {"B": torch.ones(2, 2, 3, 8), "C": torch.ones(2, 3, 3, 8)},
        ValueError,
        "selective_scan: B and C must have as many groups, got 2 and 3",
    ),
    "D": ({"D": torch.ones(7)}, ValueError, r"selective_scan: D must have shape \(6,\), got \(7,\)"),
    "z": (
        {"z": torch.ones(1, 6, 8)},
        ValueError,
        r"selective_scan: z must have shape \(2, 6, 8\) like u, got \(1, 6, 8\)",
    ),
    "bias": (
        {"delta_bias": torch.ones(6, 1)},
        ValueError,
        r"selective_scan: delta_bias must have shape \(6,\), got \(6, 1\)",
    ),
    "state": (
        {"initial_state": torch.ones(2, 3, 6)},
        ValueError,
        r"selective_scan: initial_state must have shape \(2, 6, 3\), got \(2, 3, 6\)",
    ),
    "index type": (
        {"seq_idx": torch.zeros(2, 8, dtype=torch.int64)},
        TypeError,
        "selective_scan: seq_idx must be int32, got torch.int64",
    ),
    "index list": ({"seq_idx": [0]}, TypeError, "selective_scan: seq_idx must be a tensor, got list"),
    "index shape": (
        {"seq_idx": torch.zeros(2, 9, dtype=torch.int32)},
        ValueError,
        r"selective_scan: seq_idx must have shape \(2, 8\), got \(2, 9\)",
    ),
    "device": (
        {"delta": torch.ones(2, 6, 8, device="meta")},
        ValueError,
        "selective_scan: delta must be on cpu like the first argument, got meta",
    ),
    "index device": (
        {"seq_idx": torch.zeros(2, 8, dtype=torch.int32, device="meta")},
        ValueError,
        "selective_scan: seq_idx must be on cpu like the first argument, got meta",
    ),
    "backend": (
        {"backend": "fast"},
        ValueError,
        "selective_scan: backend must be one of auto, cuda, triton, cpu, reference, got 'fast'",
    ),
    "cuda": ({"backend": "cuda"}, ValueError, 'selective_scan: backend="cuda" needs tensors on a GPU'),
    "triton": ({"backend": "triton"}, ValueError, 'selective_scan: backend="triton" needs tensors on a GPU'),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_error(case, backend, grad):
    changes, error, text = CASES[case]
    problem = {n: v.requires_grad_(grad) for n, v in scan_problem(*GOOD.values()).items()}
    with pytest.raises(error, match=text):
        bdam_fast.selective_scan(**{"backend": backend, **problem, **changes})


def test_cpu_backend_refuses_other_devices():
    problem = {n: v.to("meta") for n, v in scan_problem(*GOOD.values()).items()}
    with pytest.raises(ValueError, match='selective_scan: backend="cpu" needs tensors on the CPU, got meta'):
        bdam_fast.selective_scan(**problem, backend="cpu")


RAW = {
    "delta": ({1: torch.ones(2, 6, 7)}, r"selective_scan: delta must have shape \(2, 6, 8\), got \(2, 6, 7\)"),
    "u": ({0: torch.ones(6)}, r"selective_scan: u must have shape \(B, D, L\), got \(6,\)"),
    "A": ({2: torch.ones(6)}, r"selective_scan: A must have shape \(D, N\), got \(6,\)"),
    "dtype": ({0: torch.ones(2, 6, 8, dtype=torch.int32)}, "selective_scan: u must be float32, bfloat16"),
    "states": ({2: torch.ones(6, 300)}, "selective_scan: needs D >= 1 and 1 <= N <= 256, got D = 6, N = 300"),
    "dim": ({3: torch.ones(3)}, "selective_scan: B must have 2, 3 or 4 dimensions, got 1"),
    "groups": ({4: torch.ones(2, 4, 3, 8)}, "selective_scan: C has 4 groups, which must divide the 6 channels"),
    "mixed": ({3: torch.ones(2, 2, 3, 8), 4: torch.ones(2, 3, 3, 8)}, "B and C must have as many groups, got 2 and 3"),
    "index": ({9: torch.ones(2, 8, dtype=torch.int64)}, "selective_scan: seq_idx must be int32"),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_operator_checks_what_it_reads(case):
    changes, text = RAW[case]
    problem = scan_problem(*GOOD.values(), absent=("D", "z", "delta_bias", "initial_state"))
    args = [
        problem["u"],
        problem["delta"],
        problem["A"],
        problem["B"],
        problem["C"],
        *[None] * 5,
        True,
        False,
        True,
        True,
    ]
    for place, value in changes.items():
        args[place] = value
    with pytest.raises(RuntimeError, match=text):
        op._raw()(*args)


@pytest.mark.parametrize("change", ["shape", "dtype", "strides"])
def test_raw_backward_refuses_other_saved_states(change):
    problem = scan_problem(2, 6, 40, 3, absent=("D", "z", "delta_bias", "initial_state"))
    args = [problem[n] for n in ("u", "delta", "A", "B", "C")] + [None] * 5
    out, _, saved = op._raw()(*args, True, False, False, True)
    bad = {"shape": saved[:1], "dtype": saved.double(), "strides": saved.transpose(3, 4).contiguous().transpose(3, 4)}
    with pytest.raises(
        RuntimeError, match="selective_scan: checkpoint must (have shape|come from the forward of the same)"
    ):
        torch.ops.bdam_fast.selective_scan_backward(out, None, *args, bad[change], True, False)


@pytest.mark.parametrize("place", range(1, 10))
def test_raw_operator_does_not_mix_real_and_meta_tensors(place):
    problem = scan_problem(*GOOD.values())
    args = [problem[n] for n in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")]
    args += [torch.zeros(2, 8, dtype=torch.int32), True, False, True, True]
    args[place] = args[place].to("meta")
    with pytest.raises(
        ValueError, match="selective_scan: all tensors must be on cpu like the first argument, got meta"
    ):
        op._raw()(*args)
