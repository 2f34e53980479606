"""Wrong arguments of every operator and the errors that they raise, the same by every backend.

`CHOSEN` says the text of each shape check; every tensor argument of every operator is moreover broken in the ways of
`broken_tensors`.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, ones, tensor

import bdam_fast
from bdam_fast._operators import OPERATORS
from tests.support.operators.causal_conv1d import conv_problem
from tests.support.operators.hsic import pair
from tests.support.operators.selective_scan import scan_problem
from tests.support.operators.updates import UPDATES, step_problem, update_problem

# Changes of good arguments, the error, and how its text goes on after the operator's name.
Case = tuple[dict[str, Any], type[Exception], str]


def index() -> Tensor:
    """seq_idx of two sequences of 8 steps."""
    return torch.zeros(2, 8, dtype=torch.int32)


# Good arguments of each operator. The first tensor decides the device.
GOOD: dict[str, Callable[[], dict[str, Tensor]]] = {
    "selective_scan": lambda: {**scan_problem(2, 6, 8, 3), "seq_idx": index()},
    "selective_state_update": lambda: step_problem(2, 6, 3),
    "causal_conv1d": lambda: {**conv_problem(2, 6, 8), "seq_idx": index()},
    "causal_conv1d_update": lambda: update_problem(2, 6),
    "hsic": lambda: dict(zip("xy", pair(6, 3, 4), strict=True)),
}
WRITTEN = [update.state for update in UPDATES]

CHOSEN: dict[str, dict[str, Case]] = {
    "selective_scan": {
        "u as (B, L, D)": (
            {"u": ones(2, 8, 6)},
            ValueError,
            "u must have shape (B, D, L) with D = 6 like A, got (2, 8, 6), which looks like (B, L, D); "
            "pass u.transpose(1, 2)",
        ),
        "u dim": ({"u": ones(6, 8)}, ValueError, "u must have shape (B, D, L), got (6, 8)"),
        "A dim": ({"A": ones(6)}, ValueError, "A must have shape (D, N), got (6,)"),
        "no channel": ({"u": ones(2, 0, 8)}, ValueError, "u must have at least one channel, got"),
        "no state": ({"A": ones(6, 0)}, ValueError, "A must have 1 to 256 states, got shape (6, 0)"),
        "states": ({"A": ones(6, 257)}, ValueError, "A must have 1 to 256 states, got shape (6, 257)"),
        "delta": ({"delta": ones(2, 6, 7)}, ValueError, "delta must have shape (2, 6, 8) like u, got (2, 6, 7)"),
        "A": ({"A": ones(5, 3)}, ValueError, "A must have shape (6, 3), got (5, 3)"),
        "B dim": ({"B": ones(3)}, ValueError, "B must have shape (D, N), (B, N, L) or (B, G, N, L)"),
        "B constant": ({"B": ones(3, 6)}, ValueError, "B must have shape (6, 3), got (3, 6)"),
        "B variable": ({"B": ones(2, 3, 7)}, ValueError, "B must have shape (2, 3, 8), got"),
        "C groups": (
            {"C": ones(2, 4, 3, 8)},
            ValueError,
            "C must have a number of groups that divides the 6 channels, got shape (2, 4, 3, 8)",
        ),
        "C grouped": ({"C": ones(2, 2, 3, 9)}, ValueError, "C must have shape (2, 2, 3, 8), got"),
        "B and C": (
            {"B": ones(2, 2, 3, 8), "C": ones(2, 3, 3, 8)},
            ValueError,
            "B and C must have as many groups, got 2 and 3",
        ),
        "D": ({"D": ones(7)}, ValueError, "D must have shape (6,), got (7,)"),
        "z": ({"z": ones(1, 6, 8)}, ValueError, "z must have shape (2, 6, 8) like u, got (1, 6, 8)"),
        "bias": ({"delta_bias": ones(6, 1)}, ValueError, "delta_bias must have shape (6,), got (6, 1)"),
        "state": (
            {"initial_state": ones(2, 3, 6)},
            ValueError,
            "initial_state must have shape (2, 6, 3), got (2, 3, 6)",
        ),
        "index shape": ({"seq_idx": ones(2, 9).int()}, ValueError, "seq_idx must have shape (2, 8), got (2, 9)"),
    },
    "selective_state_update": {
        "state dim": ({"state": ones(6, 3)}, ValueError, "state must have shape (B, D, N), got (6, 3)"),
        "no channel": ({"state": ones(2, 0, 3)}, ValueError, "state must have at least one channel, got shape"),
        "no state": ({"state": ones(2, 6, 0)}, ValueError, "state must have 1 to 256 states, got shape (2, 6, 0)"),
        "states": ({"state": ones(2, 6, 257)}, ValueError, "state must have 1 to 256 states, got shape"),
        "expanded": (
            {"state": ones(2, 1, 3).expand(-1, 6, -1)},
            ValueError,
            "state is updated in place and must not be expanded, got strides (3, 0, 1)",
        ),
        "x": ({"x": ones(2, 5)}, ValueError, "x must have shape (2, 6), got (2, 5)"),
        "x as (B, 1, D)": (
            {"x": ones(2, 1, 6)},
            ValueError,
            "x must have shape (2, 6), one step, got (2, 1, 6); pass x[:, 0]",
        ),
        "dt": ({"dt": ones(2, 6, 1)}, ValueError, "dt must have shape (2, 6) like x, got (2, 6, 1)"),
        "A": ({"A": ones(3, 6)}, ValueError, "A must have shape (6, 3), got (3, 6)"),
        "A complex": ({"A": ones(6, 3).cfloat()}, TypeError, "A must be float32, bfloat16, float16 or float64, got"),
        "B dim": ({"B": ones(3)}, ValueError, "B must have shape (B, N) or (B, G, N), got (3,)"),
        "B": ({"B": ones(6, 3)}, ValueError, "B must have shape (2, 3), got (6, 3)"),
        "groups": (
            {"C": ones(2, 4, 3)},
            ValueError,
            "C must have a number of groups that divides the 6 channels, got shape (2, 4, 3)",
        ),
        "grouped": ({"C": ones(2, 2, 4)}, ValueError, "C must have shape (2, 2, 3), got (2, 2, 4)"),
        "B and C": (
            {"B": ones(2, 2, 3), "C": ones(2, 3, 3)},
            ValueError,
            "B and C must have as many groups, got 2 and 3",
        ),
        "D": ({"D": ones(7)}, ValueError, "D must have shape (6,), got (7,)"),
        "z": ({"z": ones(1, 6)}, ValueError, "z must have shape (2, 6) like x, got (1, 6)"),
        "bias": ({"dt_bias": ones(6, 1)}, ValueError, "dt_bias must have shape (6,), got (6, 1)"),
    },
    "causal_conv1d": {
        "x dim": ({"x": ones(6, 8)}, ValueError, "x must have shape (B, D, L), got (6, 8)"),
        "x as (B, L, D)": ({"x": ones(2, 8, 6)}, ValueError, "x must have shape (B, D, L) with D = 6 like weight, got"),
        "no channel": ({"x": ones(2, 0, 8)}, ValueError, "x must have at least one channel, got"),
        "weight dim": ({"weight": ones(6, 1, 4)}, ValueError, "weight must have shape (D, W), got (6, 1, 4)"),
        "weight": ({"weight": ones(5, 4)}, ValueError, "weight must have shape (6, 4), got (5, 4)"),
        "wide": ({"weight": ones(6, 9)}, ValueError, "weight must have 1 to 8 taps, got shape (6, 9)"),
        "no tap": ({"weight": ones(6, 0)}, ValueError, "weight must have 1 to 8 taps, got shape (6, 0)"),
        "bias": ({"bias": ones(6, 1)}, ValueError, "bias must have shape (6,), got (6, 1)"),
        "state": ({"initial_states": ones(2, 6, 4)}, ValueError, "initial_states must have shape (2, 6, 3), got"),
        "silu": ({"activation": "relu"}, ValueError, 'activation must be None, "silu" or "swish", got \'relu\''),
        "activation": ({"activation": True}, TypeError, "activation must be None or a string, got bool"),
        "index": ({"seq_idx": ones(2, 9).int()}, ValueError, "seq_idx must have shape (2, 8), got (2, 9)"),
    },
    "causal_conv1d_update": {
        "x dim": ({"x": ones(6)}, ValueError, "x must have shape (B, D) or (B, D, L), got (6,)"),
        "x as (B, L, D)": ({"x": ones(2, 3, 6)}, ValueError, "x must have shape (B, D, L) with D = 6 like weight, got"),
        "no channel": ({"x": ones(2, 0)}, ValueError, "x must have at least one channel, got"),
        "state dim": ({"conv_state": ones(6, 4)}, ValueError, "conv_state must have shape (B, D, S), got (6, 4)"),
        "state": ({"conv_state": ones(1, 6, 4)}, ValueError, "conv_state must have shape (2, 6, 4), got (1, 6, 4)"),
        "short": (
            {"conv_state": ones(2, 6, 2)},
            ValueError,
            "conv_state must have at least W - 1 = 3 entries, got shape (2, 6, 2)",
        ),
        "expanded": (
            {"conv_state": ones(1, 6, 4).expand(2, -1, -1)},
            ValueError,
            "conv_state is updated in place and must not be expanded, got strides (0, 4, 1)",
        ),
        "weight dim": ({"weight": ones(6, 1, 4)}, ValueError, "weight must have shape (D, W), got (6, 1, 4)"),
        "weight": ({"weight": ones(5, 4)}, ValueError, "weight must have shape (6, 4), got (5, 4)"),
        "wide": ({"weight": ones(6, 9)}, ValueError, "weight must have 1 to 8 taps, got shape (6, 9)"),
        "bias": ({"bias": ones(6, 1)}, ValueError, "bias must have shape (6,), got (6, 1)"),
        "silu": ({"activation": "relu"}, ValueError, 'activation must be None, "silu" or "swish", got'),
        "activation": ({"activation": True}, TypeError, "activation must be None or a string, got bool"),
    },
    "hsic": {
        "y half": ({"y": ones(6, 4).half()}, TypeError, "y must be torch.float32 like x, got torch.float16"),
        "x dim": ({"x": ones(6)}, ValueError, "x must have shape (..., N, Dx), got (6,)"),
        "y dim": ({"y": ones(6)}, ValueError, "y must have shape (..., N, Dy), got (6,)"),
        "no feature": ({"y": ones(6, 0)}, ValueError, "y must have a feature, got shape (6, 0)"),
        "samples": ({"y": ones(7, 4)}, ValueError, "y must have shape (6, Dy) like x, got (7, 4)"),
        "batch": ({"x": ones(6, 3).expand(2, 6, 3)}, ValueError, "y must have shape (2, 6, Dy) like x, got (6, 4)"),
        "none": (
            {"x": ones(6, 3)[:0], "y": ones(6, 4)[:0]},
            ValueError,
            "the biased estimator needs at least 2 samples, got 0",
        ),
        "one": (
            {"x": ones(6, 3)[:1], "y": ones(6, 4)[:1]},
            ValueError,
            "the biased estimator needs at least 2 samples, got 1",
        ),
        "three": (
            {"x": ones(6, 3)[:3], "y": ones(6, 4)[:3], "estimator": "unbiased"},
            ValueError,
            "the unbiased estimator needs at least 4 samples, got 3",
        ),
        "kernel": ({"kernel": "gauss"}, ValueError, "kernel must be one of linear, rbf, got 'gauss'"),
        "estimator": ({"estimator": "v"}, ValueError, "estimator must be one of biased, unbiased, got 'v'"),
        "linear": ({"sigma_x": 1.0}, ValueError, 'sigma_x is for kernel="rbf" only, got it with kernel="linear"'),
        "zero": ({"kernel": "rbf", "sigma_y": 0}, ValueError, "sigma_y must be positive and finite, got 0"),
        "nan": ({"kernel": "rbf", "sigma_y": float("nan")}, ValueError, "sigma_y must be positive and finite, got nan"),
        "entry": (
            {"kernel": "rbf", "sigma_x": tensor(-1.0)},
            ValueError,
            "sigma_x must be positive and finite in every entry",
        ),
        "string": (
            {"kernel": "rbf", "sigma_x": "median"},
            TypeError,
            "sigma_x must be None, a number or a tensor, got str",
        ),
        "width shape": ({"kernel": "rbf", "sigma_x": ones(2)}, ValueError, "sigma_x must broadcast to (), got (2,)"),
        "width int": ({"kernel": "rbf", "sigma_x": tensor(1)}, TypeError, "sigma_x must be float32, bfloat16"),
        "width gradient": (
            {"kernel": "rbf", "sigma_x": tensor(1.0, requires_grad=True)},
            ValueError,
            "sigma_x must not require a gradient: it is a constant; pass sigma_x.detach",
        ),
    },
}


def broken_tensors(op: str) -> dict[str, Case]:
    """Every tensor argument of an operator as a list, of integers, with one more row, one more dimension, elsewhere."""
    cases: dict[str, Case] = {}
    for place, (name, value) in enumerate(GOOD[op]().items()):
        other, wanted = (
            (value.int(), "float32, bfloat16, float16 or float64")
            if name != "seq_idx"
            else (value.float(), "int32 or int64")
        )
        cases[f"{name} is a list"] = ({name: [1.0]}, TypeError, f"{name} must be a tensor, got list")
        cases[f"{name} is of {other.dtype}"] = ({name: other}, TypeError, f"{name} must be {wanted}, got {other.dtype}")
        cases[f"{name} has one more row"] = ({name: torch.cat([value, value[:1]])}, ValueError, "")
        cases[f"{name} has one more dimension"] = ({name: value[None]}, ValueError, "")
        if place > 0:
            text = f"{name} must be on cpu like the first argument, got meta"
            cases[f"{name} is elsewhere"] = ({name: value.to("meta")}, ValueError, text)
    return cases


CASES = {op: CHOSEN[op] | broken_tensors(op) for op in CHOSEN}
EVERY = [pytest.param(op, case, id=f"{op}-{case}") for op, cases in CASES.items() for case in cases]


def in_a_pool(value: Any) -> tuple[Any, Tensor | None]:
    """The same tensor as a part of a larger one, which is returned too; what lies elsewhere or is expanded stays."""
    expanded = isinstance(value, Tensor) and any(
        n > 1 and s == 0 for n, s in zip(value.shape, value.stride(), strict=True)
    )
    if not isinstance(value, Tensor) or value.is_meta or value.dim() == 0 or expanded:
        return value, value if expanded else None
    pool = ones([n + 2 for n in value.shape]).to(value.dtype)
    inside = pool[tuple(slice(1, n + 1) for n in value.shape)].copy_(value.detach())
    return inside, pool


def check_refused(op: str, case: str, backend: str, grad: bool = False) -> None:
    """The error and its whole text are the reference's; no memory in or around the arguments is written."""
    changes, error, text = CASES[op][case]
    pools: list[tuple[Tensor, Tensor]] = []
    arguments: dict[str, Any] = {}
    for name, value in (GOOD[op]() | changes).items():
        arguments[name], pool = in_a_pool(value)
        if pool is not None:
            pools.append((pool, pool.clone()))
        if grad and name not in changes and name not in WRITTEN and arguments[name].is_floating_point():
            arguments[name].requires_grad_()
    texts = []
    for who in (backend, "reference"):
        with pytest.raises(error, match=f"^{re.escape(f'{op}: {text}')}") as caught:
            getattr(bdam_fast, op)(**arguments, backend=who)
        assert caught.type is error
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert all(torch.equal(pool, before) for pool, before in pools)


# The flags of the raw forward operators, which follow the tensors.
FLAGS: dict[str, dict[str, bool]] = {
    "selective_scan": dict.fromkeys(("delta_softplus", "reverse", "return_last_state", "save_states"), False),
    "selective_state_update": {"dt_softplus": False},
    "causal_conv1d": dict.fromkeys(("silu", "reverse", "return_final_states"), False),
    "causal_conv1d_update": {"silu": False},
    "hsic": {"gaussian": True, "unbiased": False},
}


def raw_arguments(op: str) -> dict[str, Any]:
    """Good arguments of the raw operator by name; hsic's have a batch dimension and widths."""
    good = GOOD[op]()
    if op == "hsic":
        good = {name: torch.stack([value, value]) for name, value in good.items()}
        good |= {"sigma_x": ones(2), "sigma_y": ones(2)}
    return {**good, **FLAGS[op]}


def raw_cases(op: str) -> list[str]:
    """The cases whose arguments a raw operator can have: tensors of one device."""
    changes = {case: changes for case, (changes, _, _) in CASES[op].items() if op != "hsic"}
    return [c for c, new in changes.items() if all(isinstance(v, Tensor) and not v.is_meta for v in new.values())]


def check_raw_refused(op: str, case: str, backend: str) -> None:
    """By kernels that do not check for themselves: the public function's error, and nothing is written."""
    changes, error, text = CASES[op][case]
    arguments = {name: in_a_pool(value) for name, value in (raw_arguments(op) | changes).items()}
    before = [(pool, pool.clone()) for _, pool in arguments.values() if pool is not None]
    with pytest.raises(error, match=f"^{re.escape(f'{op}: {text}')}"):
        OPERATORS[op].raw(backend)(*(value for value, _ in arguments.values()))
    assert all(torch.equal(pool, values) for pool, values in before)


def check_refused_in_cpp(op: str, changes: dict[str, Any], text: str) -> None:
    """The check of the CPU's raw operator, in its own words; the state stays as it was."""
    good = raw_arguments(op)
    before = {name: value.clone() for name, value in good.items() if name in WRITTEN}
    with pytest.raises(RuntimeError, match=f"{op}: .*{re.escape(text)}"):
        OPERATORS[op].raw()(*(good | changes).values())
    assert all(torch.equal(good[name], value) for name, value in before.items())
