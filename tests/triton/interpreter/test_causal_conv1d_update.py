"""The Triton kernel of causal_conv1d_update under Triton's interpreter, against the reference in float64."""

import pytest
import torch

from bdam_fast.ops.causal_conv1d_update.reference import causal_conv1d_update_reference
from bdam_fast.ops.causal_conv1d_update.triton_impl import update
from tests.support.operators import assert_close, same_bits, stream

pytestmark = pytest.mark.usefixtures("poison")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def problem(batch=2, channels=5, length=0, width=4, entries=4, *, dtype=torch.float32, order="bdl"):
    """(x, conv_state, weight, bias); length 0 is x (B, D)."""
    x = stream(batch, channels, max(length, 1), dtype, order)
    state = stream(batch, channels, entries, torch.float32, order)
    return [x if length else x[:, :, 0], state, torch.randn(channels, width), torch.randn(channels)]


def check(tensors, silu=True):
    x, state, weight, bias = tensors
    exact, _ = causal_conv1d_update_reference(*(None if t is None else t.double() for t in tensors), silu)
    same, after = causal_conv1d_update_reference(*tensors, silu)
    wide = torch.zeros(*state.shape[:2], 2 * state.shape[2], dtype=state.dtype)[:, :, ::2]
    own = state.clone() if state.stride(1) == 1 else wide.copy_(state)
    out = update(x, own, weight, bias, silu)
    assert (out.dtype, out.stride()) == (x.dtype, torch.empty_like(x).stride())
    assert same_bits(own, after)
    assert_close("out", out, exact, same)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("order", ["bdl", "bld", "strided"])
def test_widths_entries_and_lengths(width, order):
    for entries in (width - 1, width, width + 9):
        for length in (0, 1, 3):
            check(problem(2, 9, length, width, entries, order=order), silu=length > 0)


@pytest.mark.parametrize("channels", [1, 2, 33, 129, 300])
def test_channels(channels):
    check(problem(2, channels))
    x, state, weight, _ = problem(2, channels, 2)
    check((x, state, weight, None))


@pytest.mark.parametrize("state", DTYPES, ids=str)
@pytest.mark.parametrize("x", DTYPES[:3], ids=str)
def test_dtypes(x, state):
    tensors = problem(2, 9, 2, dtype=x)
    check([tensors[0], tensors[1].double().mul(1.1).to(state), tensors[2].to(state), tensors[3]])


def test_long_states_and_many_steps():
    for length in (1, 5, 8, 30, 70):
        check(problem(1, 3, length, 3, 40))
    check(problem(1, 3, 33, 1, 0))


def test_parameters_of_other_strides_and_empty_batches():
    x, state, weight, bias = problem(2, 6)
    check((x, state, torch.randn(4, 12)[:, ::2].T, bias))
    check((torch.randn(2, 1).expand(-1, 6), state, weight, torch.randn(1).expand(6)))
    assert update(x[:0], state[:0], weight, bias, True).shape == (0, 6)
    before = state.clone()
    assert update(torch.randn(2, 6, 0), state, weight, bias, True).shape == (2, 6, 0)
    assert same_bits(state, before)
