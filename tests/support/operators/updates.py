"""The two operators that update a state in place: their problems, and the comparison with their float64 references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import bdam_fast
from bdam_fast._operators import OPERATORS, Operator
from tests.support.operators import assert_close, same_bits, stream

Problem = dict[str, Tensor]


def row(batch: int, channels: int, dtype: torch.dtype = torch.float32, order: str = "rows") -> Tensor:
    """(B, D) with channels adjacent, or neither dimension."""
    if order == "rows":
        return torch.randn(batch, channels).to(dtype)
    return torch.randn(2 * batch, 3 * channels + 1).to(dtype)[::2, 1::3]


def step_problem(
    batch: int = 2,
    channels: int = 5,
    states: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    state: str = "bdn",
    order: str = "rows",
    groups: int = 0,
    absent: tuple[str, ...] = (),
) -> Problem:
    """Tensor arguments of selective_state_update; parameters and state float32, or float64 with float64 streams.

    `state`: memory order bdn (as allocated), bnd (channels adjacent) or strided. `groups` 0: B and C are (B, N).
    """
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = {"bdn": (batch, channels, states), "bnd": (batch, states, channels)}
    if state == "strided":
        h = torch.randn(batch, 2 * channels, 2 * states + 1, dtype=kind)[:, 1::2, 1::2]
    else:
        h = torch.randn(shapes[state], dtype=kind)
        h = h if state == "bdn" else h.mT
    B, C = (row(batch, max(groups, 1) * states, dtype, order) for _ in range(2))
    problem = {
        "state": h,
        "x": row(batch, channels, dtype, order),
        "dt": row(batch, channels, dtype, order) - 0.5,
        "A": -torch.arange(1, states + 1) * torch.exp(0.1 * torch.randn(channels, states, dtype=kind)),
        "B": B.unflatten(1, (groups, states)) if groups else B,
        "C": C.unflatten(1, (groups, states)) if groups else C,
        "D": torch.randn(channels, dtype=kind),
        "z": row(batch, channels, dtype, order),
        "dt_bias": torch.rand(channels, dtype=kind) * 2 - 2,
    }
    return {name: value for name, value in problem.items() if name not in absent}


def odd_step_problem() -> Problem:
    """Arguments of selective_state_update with other dtypes and strides, some expanded."""
    problem = step_problem(2, 18, 16)
    return problem | {
        "A": problem["A"].T.contiguous().T.double(),
        "D": torch.randn(36).half()[::2],
        "dt_bias": torch.randn(1).bfloat16().expand(18),
        "C": torch.randn(1, 16).half().expand(2, -1),
        "dt": torch.randn(2, 1).expand(-1, 18),
    }


def update_problem(
    batch: int = 2,
    channels: int = 5,
    length: int = 0,
    width: int = 4,
    entries: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    order: str = "bdl",
    absent: tuple[str, ...] = (),
) -> Problem:
    """Tensor arguments of causal_conv1d_update; `length` 0 is x (B, D). The state lies in memory like x."""
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    x = stream(batch, channels, max(length, 1), dtype, order)
    problem = {
        "x": x if length else x[:, :, 0],
        "conv_state": stream(batch, channels, width if entries is None else entries, kind, order),
        "weight": torch.randn(channels, width, dtype=kind),
        "bias": torch.randn(channels, dtype=kind),
    }
    return {name: value for name, value in problem.items() if name not in absent}


def copy_of(t: Tensor) -> Tensor:
    """The same values and strides in other memory."""
    whole = torch.empty(0, dtype=t.dtype, device=t.device)
    return whole.set_(t.untyped_storage().clone(), t.storage_offset(), t.shape, t.stride())


@dataclass(frozen=True)
class Update:
    """An operator whose argument `state` is updated in place."""

    name: str
    problem: Callable[..., Problem]
    names: tuple[str, ...]  # of the tensor arguments, in the order of the raw operator
    state: str
    options: dict[str, Any]  # of the public function; the raw operator's last argument, True, says the same
    state_is_exact: bool  # entries only move

    @property
    def operator(self) -> Operator:
        """The operator behind the public function."""
        return OPERATORS[self.name]

    def public(self, **arguments: Any) -> Tensor:
        """The public function, with `options` unless the arguments say otherwise."""
        return getattr(bdam_fast, self.name)(**{**self.options, **arguments})

    def raw_arguments(self, problem: Problem) -> tuple[Any, ...]:
        """The raw operator's arguments."""
        return (*(problem.get(name) for name in self.names), True)

    def run(self, problem: Problem, dtype: torch.dtype | None = None, **options: Any) -> tuple[Tensor, Tensor]:
        """(out, new state), leaving the problem's own state alone but for its memory order."""
        tensors = {n: v if dtype is None else v.to(dtype) for n, v in problem.items()}
        tensors[self.state] = copy_of(tensors[self.state])
        return self.public(**tensors, **options), tensors[self.state]

    def check(self, problem: Problem, backend: str = "cpu", **options: Any) -> tuple[Tensor, Tensor]:
        """A backend against the reference in float64 and in the problem's own dtypes."""
        exact = self.run(problem, torch.float64, backend="reference", **options)
        same = self.run(problem, backend="reference", **options)
        got = self.run(problem, backend=backend, **options)
        assert [t.dtype for t in got] == [problem["x"].dtype, problem[self.state].dtype]
        assert_close("out", got[0], exact[0], same[0])
        if self.state_is_exact:
            assert same_bits(got[1], same[1])
        else:
            # A float64 state carries the rounding of the float32 that it was computed in.
            wider = got[1].dtype == torch.float64 and problem["x"].dtype != torch.float64
            rounded = got[1].float() if wider else got[1]
            assert_close("state", rounded, exact[1], same[1])
        return got

    def follow(self, backend: str = "cpu", steps: int = 1, **problem: Tensor) -> tuple[Tensor, Tensor]:
        """(last output, new state) of steps from a copy of the state that autograd follows, each on the last output."""
        state, x = problem.pop(self.state).clone(), problem.pop("x")
        for _ in range(steps):
            x = self.public(**problem, x=x, backend=backend, **{self.state: state})
        return x, state


SELECTIVE_STATE_UPDATE = Update(
    "selective_state_update",
    step_problem,
    ("state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias"),
    "state",
    {"dt_softplus": True},
    state_is_exact=False,
)
CAUSAL_CONV1D_UPDATE = Update(
    "causal_conv1d_update",
    update_problem,
    ("x", "conv_state", "weight", "bias"),
    "conv_state",
    {"activation": "silu"},
    state_is_exact=True,
)
UPDATES = (SELECTIVE_STATE_UPDATE, CAUSAL_CONV1D_UPDATE)
run_step, check_step = SELECTIVE_STATE_UPDATE.run, SELECTIVE_STATE_UPDATE.check
run_update, check_update = CAUSAL_CONV1D_UPDATE.run, CAUSAL_CONV1D_UPDATE.check
