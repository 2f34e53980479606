"""Problems of causal_conv1d, and the comparison with its float64 reference."""

from functools import partial

import torch

import bdam_fast
from tests.support.operators import check, stream, with_gradients


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


def run_conv(problem, order="bld", upstream=None, **kwargs):
    """Output, final states and every gradient of a random scalar of both; dout lies in memory as `order` says.

    With `upstream` (dout, dfinal_states) they are the gradients of the results.
    """
    kwargs = {"activation": "silu", "return_final_states": True, **kwargs}
    result = bdam_fast.causal_conv1d(**problem, **kwargs)
    results = dict(zip(("out", "final"), result if kwargs["return_final_states"] else (result,), strict=False))
    torch.manual_seed(1)
    out, *final = results.values()
    if upstream is None:
        upstream = [stream(*out.shape, torch.float32, order), *(torch.randn(f.shape) for f in final)]
    return with_gradients(problem, results, [u.to(r) for u, r in zip(upstream, results.values(), strict=True)])


check_conv = partial(check, run_conv)
