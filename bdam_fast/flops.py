"""FLOP formulas of the operators for `torch.utils.flop_counter.FlopCounterMode`, which knows only PyTorch's own.

Every addition, multiplication and evaluation of exp, softplus or silu counts one, as in the reference implementations; a
matrix product counts 2 m n k, as PyTorch's formulas do. Steps of padding count like others. A backward that computes the
forward's values again counts them again, as PyTorch's attention formulas do.

B batch, L length, D channels, N states (of HSIC: samples), W taps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _native, _operators

Shape = Sequence[int]
Formula = Callable[..., int]


def register_flop_formulas() -> None:
    """Teaches every `FlopCounterMode` that is made afterwards to count the operators; calling it again is free.

    Only calls of kernels are counted: `backend="reference"` runs operations that PyTorch's counter takes for free. Triton's
    operators exist from their first call on, so call them once before this.

    Raises:
        RuntimeError: the compiled extension is not available.
    """
    # 0.17 s that nobody else should pay at import.
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    _native.extension()
    for namespace in sorted(set(_operators.NAMESPACES.values())):
        for name, formula in _FORMULAS.items():
            target = getattr(getattr(torch.ops, namespace), name, None)
            if target is not None and target not in flop_registry:
                register_flop_formula(target)(formula)


def _size(shape: Shape) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total


def _scan(
    u: Shape,
    delta: Shape,
    A: Shape,
    B: Shape,
    C: Shape,
    D: Shape | None,
    z: Shape | None,
    delta_bias: Shape | None,
    initial_state: Shape | None,
    seq_idx: Shape | None,
    delta_softplus: bool,
    *_: Any,
    **__: Any,
) -> int:
    """dt A, exp, times B, decay, update, times C, sum for each state; dt u, and what is asked for, for each step."""
    step = 1 + (delta_bias is not None) + bool(delta_softplus) + 2 * (D is not None) + 2 * (z is not None)
    return _size(u) * (7 * A[1] + step)


def _scan_backward(
    dout: Shape,
    dlast_state: Shape | None,
    u: Shape,
    delta: Shape,
    A: Shape,
    B: Shape,
    C: Shape,
    D: Shape | None,
    z: Shape | None,
    delta_bias: Shape | None,
    initial_state: Shape | None,
    seq_idx: Shape | None,
    checkpoint: Shape,
    delta_softplus: bool,
    *_: Any,
    **__: Any,
) -> int:
    """The forward once more, then for each state: dC 2, dh 3, dB 2, d(dt u) 2, d decay 1, d(dt A) 1, d dt 2, dA 2; for
    each step d u and d dt 3, through softplus 2, its bias 1, D 4, z 4."""
    again = _scan(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, delta_softplus)
    step = 3 + 2 * bool(delta_softplus) + (delta_bias is not None) + 4 * (D is not None) + 4 * (z is not None)
    return again + _size(u) * (15 * A[1] + step)


def _state_update(
    state: Shape,
    x: Shape,
    dt: Shape,
    A: Shape,
    B: Shape,
    C: Shape,
    D: Shape | None,
    z: Shape | None,
    dt_bias: Shape | None,
    dt_softplus: bool,
    **_: Any,
) -> int:
    """The scan's count for one step."""
    return _scan(x, dt, A, B, C, D, z, dt_bias, state, None, dt_softplus)


def _conv(x: Shape, weight: Shape, bias: Any, initial: Any, seq_idx: Any, silu: bool, *_: Any, **__: Any) -> int:
    """A product and a sum for each tap; the bias is where the sum starts."""
    return _size(x) * (2 * weight[1] + bool(silu))


def _conv_backward(
    dout: Shape,
    dfinal: Shape | None,
    x: Shape,
    weight: Shape,
    bias: Shape | None,
    initial: Shape | None,
    seq_idx: Shape | None,
    silu: bool,
    *_: Any,
    **__: Any,
) -> int:
    """dx 2 W, dweight 2 W, dbias 1; with silu its argument once more, its derivative and the product with it."""
    return _size(x) * (4 * weight[1] + (bias is not None) + (2 * weight[1] + 2 if silu else 0))


def _conv_update(x: Shape, conv_state: Shape, weight: Shape, bias: Shape | None, silu: bool, **_: Any) -> int:
    return _size(x) * (2 * weight[1] + bool(silu))


def _hsic_products(x: Shape, y: Shape) -> int:
    """The matrix products of the linear form that the kernels take: N x N or D x D, the smaller one."""
    batch, samples, width_x = x
    width_y = y[2]
    if samples * (width_x + width_y) <= 2 * width_x * width_y:
        return batch * 2 * samples * samples * (width_x + width_y)
    return batch * 2 * samples * width_x * width_y


def _hsic(x: Shape, y: Shape, sigma_x: Any, sigma_y: Any, gaussian: bool, *_: Any, **__: Any) -> int:
    """Linear: its matrix products. Gaussian: difference, square and sum for each pair and feature, scaling and exp of
    both kernels, their product and its sum. What is linear in N is left out."""
    if not gaussian:
        return _hsic_products(x, y)
    return x[0] * x[1] ** 2 * (3 * (x[2] + y[2]) + 6)


def _hsic_backward(dvalue: Shape, x: Shape, y: Shape, saved: Shape, gaussian: bool, *_: Any, **__: Any) -> int:
    """Linear: one product for dx and one for dy from the saved matrix. Gaussian: the kernels once more, then a weighted
    sum of differences for each."""
    batch, samples, width_x = x
    if gaussian:
        return _hsic(x, y, None, None, True) + batch * samples**2 * 3 * (width_x + y[2])
    if samples * (width_x + y[2]) <= 2 * width_x * y[2]:
        return batch * 2 * samples * samples * (width_x + y[2])
    return batch * 4 * samples * width_x * y[2]


_FORMULAS: dict[str, Formula] = {
    "selective_scan_forward": _scan,
    "selective_scan_backward": _scan_backward,
    "selective_state_update": _state_update,
    "causal_conv1d_forward": _conv,
    "causal_conv1d_backward": _conv_backward,
    "causal_conv1d_update": _conv_update,
    "hsic_forward": _hsic,
    "hsic_backward": _hsic_backward,
}
