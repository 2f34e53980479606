"""selective_state_update's CUDA kernel, run on the CPU by the emulation, against the float64 reference."""

import pytest
import torch
from torch import Tensor

from bdam_fast.ops.selective_state_update.reference import selective_state_update_reference
from tests.support.cuda_host import emulated
from tests.support.operators import assert_close

NAMES = ("state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias")


def problem(batch=2, channels=21, states=16, *, dtype=torch.float32, groups=1) -> dict[str, Tensor]:
    """Tensor arguments of selective_state_update."""
    shape = (batch, states) if groups == 1 else (batch, groups, states)
    return {
        "state": torch.randn(batch, channels, states),
        "x": torch.randn(batch, channels).to(dtype),
        "dt": torch.randn(channels, batch).to(dtype).T,
        "A": -torch.rand(channels, states) * 4,
        "B": torch.randn(shape).to(dtype),
        "C": torch.randn(shape).to(dtype),
        "D": torch.randn(channels),
        "z": torch.randn(batch, channels).to(dtype),
        "dt_bias": torch.rand(channels),
    }


def check(tensors: dict[str, Tensor], softplus: bool = True) -> Tensor:
    """Output and new state against the reference; the state is updated in place."""
    emulated.module()
    arguments = [tensors.get(name) for name in NAMES]
    exact = [None if t is None else t.double() for t in arguments]
    same = selective_state_update_reference(*[None if t is None else t.clone() for t in arguments], softplus)
    want = selective_state_update_reference(*exact, softplus)
    out = torch.ops.bdam_fast_emulated.selective_state_update(*arguments, softplus)
    assert out.dtype == tensors["x"].dtype and out.stride() == torch.empty_like(tensors["x"]).stride()
    assert_close("out", out, want[0], same[0])
    assert_close("state", tensors["state"], want[1], same[1].to(tensors["state"].dtype))
    return out


@pytest.mark.parametrize("states", [1, 3, 16, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_states_and_dtypes(dtype, states):
    check(problem(states=states, dtype=dtype, groups=3))
    check(problem(1, 8, states, dtype=dtype), softplus=False)


@pytest.mark.parametrize("absent", [("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")], ids=str)
def test_optional_arguments(absent):
    check({name: value for name, value in problem().items() if name not in absent})


def test_an_empty_batch():
    tensors = problem(0)
    out = torch.ops.bdam_fast_emulated.selective_state_update(*[tensors[name] for name in NAMES], True)
    assert out.shape == (0, 21)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_argument_may_have_its_own_dtype(dtype):
    tensors = problem(dtype=torch.bfloat16)
    tensors["state"] = torch.randn(2, 16, 21).to(dtype).transpose(1, 2)
    tensors["dt"] = tensors["dt"].float()
    tensors["A"] = tensors["A"].double()
    check(tensors)
