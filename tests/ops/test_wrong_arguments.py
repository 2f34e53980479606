"""Every wrong argument of every operator raises the same error by the CPU's kernels and the reference; and wrong backends."""

import re

import pytest

import bdam_fast
from bdam_fast._operators import OPERATORS
from tests.support.operators.wrong_arguments import CASES, EVERY, GOOD, check_refused, raw_arguments


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("op", "case"), EVERY)
def test_error(op, case, backend, grad):
    check_refused(op, case, backend, grad)


@pytest.mark.parametrize("op", CASES)
@pytest.mark.parametrize(
    ("backend", "error", "text"),
    [
        ("fast", ValueError, "backend must be one of auto, cuda, triton, cpu, reference, got 'fast'"),
        ("cuda", ValueError, 'backend="cuda" needs tensors on a GPU, got cpu'),
        ("triton", ValueError, 'backend="triton" needs tensors on a GPU (or TRITON_INTERPRET=1, for tests), got cpu'),
    ],
)
def test_backend_that_cannot_run(op, backend, error, text, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if (op, backend) == ("hsic", "cuda"):
        error, text = RuntimeError, 'there is no CUDA C++ kernel; use backend="triton"'
    with pytest.raises(error, match=f"^{re.escape(f'{op}: {text}')}$"):
        getattr(bdam_fast, op)(**GOOD[op](), backend=backend)


@pytest.mark.parametrize("op", CASES)
def test_cpu_backend_refuses_other_devices(op):
    with pytest.raises(ValueError, match=f'^{op}: backend="cpu" needs tensors on the CPU, got meta$'):
        getattr(bdam_fast, op)(**{n: v.to("meta") for n, v in GOOD[op]().items()}, backend="cpu")


TENSORS = [(op, name) for op in CASES for name, value in raw_arguments(op).items() if not isinstance(value, bool)]


@pytest.mark.parametrize(("op", "name"), [pair for pair in TENSORS if pair[1] != next(iter(raw_arguments(pair[0])))])
def test_raw_operator_does_not_mix_real_and_meta_tensors(op, name):
    arguments = raw_arguments(op)
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(ValueError, match=f"^{op}: all tensors must be on cpu like the first argument, got meta$"):
        OPERATORS[op].raw()(*arguments.values())
