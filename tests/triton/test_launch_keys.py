"""Launch keys of the Triton kernels: for each operator and layout one variant of a kernel serves all lengths and batches.

Two where steps are adjacent: lengths that are multiples of 16 get wide accesses of their own.
"""

import importlib.util
from collections import Counter
from functools import partial

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from tests.support.triton import causal_conv1d, causal_conv1d_update, hsic, selective_scan, selective_state_update
from tests.support.triton.launches import TARGETS, launch_keys

LENGTHS = (77, 192, 193, 197, 2045, 2048)
BATCHES = (1, 2, 5)
CALLS = {"selective_scan": selective_scan.scan, "causal_conv1d": causal_conv1d.conv}


def variants(calls, monkeypatch):
    """The numbers of times that a kernel is compiled for all of these calls together.

    Without scan_carry, which knows no streams: it is compiled for each of its two directions.
    """
    keys = set()
    for call in calls:
        with monkeypatch.context() as patch:
            keys |= launch_keys(call, TARGETS["sm_90"], patch)
    assert keys
    counts = Counter(kernel for kernel, _ in keys)
    if "scan_carry" in counts:
        assert counts.pop("scan_carry") == 2
    return set(counts.values())


@pytest.mark.parametrize("flags", [{}, {"reverse": True}, {"packed": True, "last": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("order", "most"), [("bld", 1), ("bdl", 2)])
@pytest.mark.parametrize("name", CALLS)
def test_lengths_and_batches(name, order, most, dtype, flags, monkeypatch):
    calls = [
        partial(CALLS[name], length=length, batch=batch, dtype=dtype, order=order, **flags)
        for length in LENGTHS
        for batch in BATCHES
    ]
    assert variants(calls, monkeypatch) == {most}


@pytest.mark.parametrize("channels", [5, 24, 100])
@pytest.mark.parametrize("name", CALLS)
def test_channels_that_are_no_multiple_of_16(name, channels, monkeypatch):
    """There nothing is aligned, so that (B, D, L) has the two variants and (B, L, D) one."""
    for order, most in (("bld", 1), ("bdl", 2)):
        calls = [
            partial(CALLS[name], length=length, batch=2, channels=channels, order=order, dtype=torch.bfloat16)
            for length in LENGTHS
        ]
        assert max(variants(calls, monkeypatch)) <= most


@pytest.mark.parametrize("order", ["bld", "bdl", "strided"])
def test_steps_of_a_longer_sequence(order, monkeypatch):
    """Decoding from x[:, :, t] of every length; one variant for one step and one for several at a time."""
    update = causal_conv1d_update.update
    one = [partial(update, 0, batch=batch, order=order) for batch in BATCHES]
    several = [partial(update, length, batch=batch, order=order) for batch in BATCHES for length in (2, 3, 16, 77)]
    assert variants(one, monkeypatch) == variants(several, monkeypatch) == {1}
    kind = "rows" if order == "bld" else "strided"
    steps = [partial(selective_state_update.update, batch, order=kind) for batch in BATCHES]
    assert variants(steps, monkeypatch) == {1}


@pytest.mark.parametrize("sigma", [False, True])
@pytest.mark.parametrize("samples", [(33, 48, 50, 64), (129, 160, 193, 400)])
def test_samples_of_a_tile(samples, sigma, monkeypatch):
    """hsic of 33 to 64 samples is one variant, and that of more than 128."""
    calls = [partial(hsic.hsic, n, batch=(b,), gaussian=True, sigma=sigma) for n in samples for b in BATCHES]
    found = variants(calls, monkeypatch)
    # The median is counted in three passes over different bits.
    assert found == ({1, 3} if samples[0] > 128 and not sigma else {1})
