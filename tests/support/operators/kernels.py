"""The three operators that compute from whole sequences or samples: their problems, their calls and their raw operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import bdam_fast
from bdam_fast._operators import OPERATORS
from tests.support.operators.causal_conv1d import conv_problem, run_conv
from tests.support.operators.hsic import hsic_problem, run_problem
from tests.support.operators.selective_scan import run_scan, scan_problem

Problem = dict[str, Tensor]


@dataclass(frozen=True)
class Kernel:
    """An operator, with the options that the tests switch on."""

    name: str
    problem: Callable[..., Problem]
    run: Callable[..., dict[str, Tensor]]  # results and gradients of a problem
    sizes: Callable[[int], tuple[int, ...]]  # of a small problem of so many steps or samples
    inputs: tuple[str, ...]  # the tensors of the raw operator
    options: dict[str, Any]  # of the public function
    flags: dict[str, int]  # of the raw operator, to the same effect
    results: int  # that the public function returns; further ones are saved for the backward

    def small(self, length: int, **make: Any) -> Problem:
        """A small problem."""
        return self.problem(*self.sizes(length), **make)

    def batched(self, length: int) -> Problem:
        """A small problem as the raw operator takes it too: hsic's has a batch dimension."""
        return self.small(length, **({"batch": (2,)} if self.name == "hsic" else {}))

    def call(self, names: Any, backend: str = "cpu", **options: Any) -> Callable[..., Any]:
        """The public function of the tensors of these names, in their order."""
        names = tuple(names)

        def public(*tensors: Tensor) -> Any:
            arguments = dict(zip(names, tensors, strict=True)) | self.options | options
            return getattr(bdam_fast, self.name)(**arguments, backend=backend)

        return public

    def raw(self, backend: str = "cpu") -> Any:
        """The raw forward operator."""
        return OPERATORS[self.name].raw(backend)

    def raw_backward(self) -> Any:
        """The raw backward operator."""
        return getattr(torch.ops.bdam_fast, f"{self.name}_backward").default

    def raw_arguments(self, problem: Problem, **flags: int) -> tuple[Any, ...]:
        """The raw forward operator's arguments; the Gaussian kernel's have widths."""
        if flags.get("gaussian"):
            problem = {**problem, "sigma_x": torch.full(problem["x"].shape[:1], 1.3, dtype=torch.float32)}
        return (*(problem.get(name) for name in self.inputs), *(self.flags | flags).values())

    def backward_arguments(self, upstream: list[Tensor | None], saved: list[Tensor], forward: tuple) -> tuple[Any, ...]:
        """The raw backward operator's arguments after a forward with the arguments `forward` has saved `saved`."""
        tensors = forward[:2] if self.name == "hsic" else forward[: len(self.inputs)]  # hsic's widths are in `saved`
        return (*upstream, *tensors, *saved, *forward[len(self.inputs) :][:2])


SCAN = Kernel(
    "selective_scan",
    scan_problem,
    run_scan,
    lambda length: (2, 5, length, 3),
    ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state", "seq_idx"),
    {"delta_softplus": True, "return_last_state": True},
    {"delta_softplus": True, "reverse": False, "return_last_state": True, "save_states": 1},
    2,
)
CONV = Kernel(
    "causal_conv1d",
    conv_problem,
    run_conv,
    lambda length: (2, 5, length, 4),
    ("x", "weight", "bias", "initial_states", "seq_idx"),
    {"activation": "silu", "return_final_states": True},
    {"silu": True, "reverse": False, "return_final_states": True},
    2,
)
HSIC = Kernel(
    "hsic",
    hsic_problem,
    run_problem,
    lambda samples: (samples, 9, 20),
    ("x", "y", "sigma_x", "sigma_y"),
    {},
    {"gaussian": False, "unbiased": False},
    1,
)
KERNELS = (SCAN, CONV, HSIC)
