"""Problems of causal_conv1d, and the comparison with its float64 reference."""

import torch

import bdam_fast
from tests.support.operators import assert_close, leaves, stream

NAMES = ("x", "weight", "bias", "initial_states")


def conv_problem(batch=2, channels=5, length=9, width=4, *, dtype=torch.float32, order="bld", absent=()):
    """Tensor arguments of causal_conv1d; the parameters are float32, or float64 with float64 streams."""
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    problem = {
        "x": stream(batch, channels, length, dtype, order),
        "weight": torch.randn(channels, width, dtype=kind),
        "bias": torch.randn(channels, dtype=kind),
        "initial_states": torch.randn(batch, channels, width - 1, dtype=kind),
    }
    return {name: value for name, value in problem.items() if name not in absent}


def run_conv(problem, order="bld", **kwargs):
    """Output, final states and every gradient of a random scalar of both; dout lies in memory as `order` says."""
    kwargs = {"activation": "silu", **kwargs}
    out, final = bdam_fast.causal_conv1d(**problem, return_final_states=True, **kwargs)
    torch.manual_seed(1)
    dout = stream(*out.shape, torch.float32, order).to(out)
    dfinal = torch.randn(final.shape).to(final)
    grads = torch.autograd.grad((out, final), list(problem.values()), (dout, dfinal))
    named = {f"d{name}": g for name, g in zip(problem, grads, strict=True)}
    return {"out": out.detach(), "final": final.detach(), **named}


def check_conv(problem, **kwargs):
    """Kernel against the reference in float64 and in the problem's own dtype, forward and every gradient."""
    exact = run_conv(leaves(problem, torch.float64), backend="reference", **kwargs)
    same = run_conv(leaves(problem), backend="reference", **kwargs)
    got = run_conv(leaves(problem), backend="cpu", **kwargs)
    for name, value in got.items():
        assert value.dtype == same[name].dtype, f"{name}: {value.dtype}, expected {same[name].dtype}"
        assert_close(name, value, exact[name], same[name])
    return got
