"""Problems of selective_scan, and the comparison with its float64 reference."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import bdam_fast
from tests.support.operators import check, leaves, stream, with_gradients

# Steps, decays and softplus at the edges of the exponentials. A negative step without softplus and a negative A grow
# beyond every dtype, so -1e4 comes with softplus only.
DECAYS = [(20.0, -0.1), (19.99, -0.1), (20.01, -0.1), (1e4, -1.0), (1.0, 0.0), (1e-3, -1e4), (1.0, -1e4), (0.05, 0.5)]
EXTREMES = [(-1e4, -1.0, True), *((delta, A, softplus) for delta, A in DECAYS for softplus in (False, True))]


def scan_problem(
    batch: int = 2,
    channels: int = 5,
    length: int = 9,
    states: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    order: str = "bld",
    groups: tuple[int | None, int | None] = (1, 1),
    absent: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Tensor arguments of selective_scan.

    `groups` of B and C: None is constant (D, N), 1 is (B, N, L), else (B, G, N, L).
    """

    def projection(count: int | None) -> Tensor:
        if count is None:
            return torch.randn(channels, states)
        whole = stream(batch, count * states, length, dtype, order)
        return whole if count == 1 else whole.unflatten(1, (count, states))

    parameter_type = torch.float64 if dtype == torch.float64 else torch.float32
    problem = {
        "u": stream(batch, channels, length, dtype, order),
        "delta": stream(batch, channels, length, dtype, order) - 0.5,
        "A": -torch.arange(1, states + 1) * torch.exp(0.1 * torch.randn(channels, states)),
        "B": projection(groups[0]),
        "C": projection(groups[1]),
        "D": torch.randn(channels),
        "z": stream(batch, channels, length, dtype, order),
        "delta_bias": torch.rand(channels) * 2 - 2,
        "initial_state": torch.randn(batch, channels, states),
    }
    for name in ("A", "B", "C", "D", "delta_bias", "initial_state"):
        if problem[name].dtype == torch.float32:
            problem[name] = problem[name].to(parameter_type)
    return {name: value for name, value in problem.items() if name not in absent}


def without_softplus(problem: dict[str, Tensor]) -> dict[str, Tensor]:
    """The problem with steps of both signs that do not let the state explode."""
    scales = {"delta": 0.05, "delta_bias": 0.02}
    return problem | {name: scale * problem[name] for name, scale in scales.items() if name in problem}


def with_own_dtypes(problem: dict[str, Tensor]) -> dict[str, Tensor]:
    """The problem with all dtypes among its arguments."""
    kinds = {"delta": torch.float32, "A": torch.float64, "B": torch.float16, "D": torch.float16}
    kinds["initial_state"] = torch.bfloat16
    return {name: value.to(kinds.get(name, value.dtype)) for name, value in problem.items()}


def run_scan(problem: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
    """Output, last state and every gradient of a random scalar of both.

    The upstream gradients have the memory order of the results: kernels read them in the same way only then.
    """
    kwargs = {"delta_softplus": True, "return_last_state": True, **kwargs}
    result = bdam_fast.selective_scan(**problem, **kwargs)
    results = dict(zip(("out", "last"), result if kwargs["return_last_state"] else (result,), strict=False))
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in results.values()]
    upstream = [torch.empty_like(r).copy_(value) for r, value in zip(results.values(), upstream, strict=True)]
    return with_gradients(problem, results, upstream)


check_scan = partial(check, run_scan)


def check_growing_state(backend: str, length: int, order: str, reverse: bool) -> None:
    """States of zero that grow by e^10 a step, over a chunk by more than float32 has, and the gradients of such states.

    The input begins two steps before the end, and the gradient ends two steps after the beginning.
    """
    problem = scan_problem(1, 4, length, 2, order=order, absent=("D", "z", "delta_bias", "initial_state"))
    problem["A"], problem["delta"] = torch.ones(4, 2), torch.full_like(problem["delta"], 10.0)
    upstream = torch.ones_like(problem["u"])
    first, last = slice(0, length - 2), slice(2, length)
    problem["u"][..., last if reverse else first] = 0.0
    upstream[..., first if reverse else last] = 0.0

    def run(dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor]:
        given = leaves(problem, dtype)
        out = bdam_fast.selective_scan(**given, reverse=reverse, backend=backend)
        return out.detach(), torch.autograd.grad(out, given["u"], upstream.to(dtype))[0]

    for name, got, exact in zip(
        ("out", "du"), run(torch.float32, backend), run(torch.float64, "reference"), strict=True
    ):
        torch.testing.assert_close(got, exact.float(), msg=lambda text, name=name: f"{name}: {text}")
