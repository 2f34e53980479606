"""The Mamba block between its projections, as mamba_ssm and Vision Mamba call it.

B batch, L length, D channels, N states, W width, R rank of the step projection.
"""

from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .. import _checks
from ..ops.causal_conv1d.op import causal_conv1d
from ..ops.selective_scan.op import selective_scan
from .arguments import takes_tensors
from .scan import as_complex, backend_for, per_step_as_complex


@takes_tensors
def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
    *,
    backend: str = "auto",
) -> Tensor:
    """The Mamba block between its input projection and its result: convolution, projections, scan, output projection.

    Args:
        xz: (B, 2 D, L), the inputs of the convolution and the gate.
        conv1d_weight, conv1d_bias: (D, 1, W), (D,).
        x_proj_weight, delta_proj_weight, out_proj_weight: (R + 2 N, D), (D, R), (d_model, D).
        A, D, delta_bias: (D, N), (D,), (D,). A complex A runs on the reference, which says so once; B and C are then
            complex too, or their N, or 2 L a step, hold real and imaginary parts in turn, so that x_proj_weight has R + 4 N
            rows.
        B, C: constant (D, N) or per step (B, 1, N, L); by default projected from the convolution's output.
        B_proj_bias, C_proj_bias: (N,), added to a projected B or C.
        checkpoint_lvl: 0 or 1. In the existing package 1 computes the convolution again in the backward; here both keep
            it, and the results are the same.
        b_rms_weight, c_rms_weight, dt_rms_weight: (N,), (N,), (D,): B, C and the projected step are divided by their root
            mean square over states, states and channels (plus b_c_dt_rms_eps) and multiplied by these.

    Returns:
        (B, L, d_model).

    Raises:
        TypeError: A is complex and `backend` one of the kernels; a norm of a complex B or C.
        ValueError: another checkpoint_lvl, a norm of a constant B or C, or a wrong shape.
    """
    op = "mamba_inner_fn"
    _check_level(op, checkpoint_lvl)
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    norms = (b_rms_weight, c_rms_weight, dt_rms_weight)
    _check_output(op, out_proj_weight, out_proj_bias, A)
    inputs = _inputs(op, xz, weights, A, (B, C), (B_proj_bias, C_proj_bias), norms, b_c_dt_rms_eps, backend)
    backend = backend_for(op, A, backend)
    return _project(inputs.scan(A, D, delta_bias, delta_softplus, backend=backend), out_proj_weight, out_proj_bias)


@takes_tensors
def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    *,
    backend: str = "auto",
) -> Tensor:
    """`mamba_inner_fn` before its output projection, as Vision Mamba calls it: (B, D, L). The arguments are as there.

    Raises:
        TypeError: A is complex and `backend` one of the kernels.
        ValueError: another checkpoint_lvl, or a wrong shape.
    """
    op = "mamba_inner_fn_no_out_proj"
    _check_level(op, checkpoint_lvl)
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    inputs = _inputs(op, xz, weights, A, (B, C), (B_proj_bias, C_proj_bias), backend=backend)
    return inputs.scan(A, D, delta_bias, delta_softplus, backend=backend_for(op, A, backend))


@takes_tensors
def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    *,
    backend: str = "auto",
) -> Tensor:
    """Vision Mamba's first bidirectional block: the sum of a scan forwards with A and one backwards with A_b, (B, L, d_model).

    Both scans take the same convolution, projections, D and bias. The other arguments are those of `mamba_inner_fn`.

    Raises:
        TypeError: only one of A and A_b is complex, or both are and `backend` is one of the kernels.
        ValueError: a wrong shape.
    """
    op = "bimamba_inner_fn"
    if A_b.is_complex() != A.is_complex():
        kind = "complex" if A.is_complex() else "real"
        raise TypeError(f"{op}: A_b must be {kind} like A, got {A_b.dtype}")
    _checks.check_shape(op, "A_b", A_b, A.shape, "A")
    _check_output(op, out_proj_weight, out_proj_bias, A)
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    inputs = _inputs(op, xz, weights, A, (B, C), (B_proj_bias, C_proj_bias), backend=backend)
    backend = backend_for(op, A, backend)
    forwards = inputs.scan(A, D, delta_bias, delta_softplus, backend=backend)
    backwards = inputs.scan(A_b, D, delta_bias, delta_softplus, reverse=True, backend=backend)
    return _project(forwards + backwards, out_proj_weight, out_proj_bias)


class _Inputs(NamedTuple):
    """The tensors that the scan of a block reads."""

    x: Tensor  # (B, D, L)
    delta: Tensor  # (B, D, L), before its bias
    B: Tensor
    C: Tensor
    z: Tensor  # (B, D, L)

    def scan(self, A: Tensor, D: Tensor | None, delta_bias: Tensor | None, softplus: bool, **options: Any) -> Tensor:
        """The scan with a set of states, (B, D, L)."""
        return selective_scan(self.x, self.delta, A, self.B, self.C, D, self.z, delta_bias, softplus, **options)


def _inputs(
    op: str,
    xz: Tensor,
    weights: tuple[Tensor, Tensor | None, Tensor, Tensor],
    A: Tensor,
    given: tuple[Tensor | None, Tensor | None],
    biases: tuple[Tensor | None, Tensor | None],
    norms: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    eps: float = 0.0,
    backend: str = "auto",
) -> _Inputs:
    _check_inputs(op, xz, weights, A, given)
    conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight = weights
    states, rank = _numbers(A), delta_proj_weight.shape[1]
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d(x, conv1d_weight.squeeze(1), conv1d_bias, "silu", backend=backend)
    projected = F.linear(x.transpose(1, 2), x_proj_weight)  # (B, L, R + 2 N)
    delta = F.linear(projected[..., :rank], delta_proj_weight)
    if norms[2] is not None:
        delta = _rms_norm(delta, norms[2], eps)
    places = (projected[..., rank : rank + states], projected[..., -states:])
    B, C = (_projection(op, "BC"[i], given[i], places[i], biases[i], norms[i], eps, A.is_complex()) for i in range(2))
    return _Inputs(x, delta.transpose(1, 2), B, C, z)


def _numbers(A: Tensor) -> int:
    """Real numbers of a projected B or C at a step: N, or 2 N for a complex A."""
    return A.shape[1] * (2 if A.is_complex() else 1)


def _check_inputs(
    op: str,
    xz: Tensor,
    weights: tuple[Tensor, Tensor | None, Tensor, Tensor],
    A: Tensor,
    given: tuple[Tensor | None, Tensor | None],
) -> None:
    conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight = weights
    _checks.check_dim(op, "xz", xz, "(B, 2 D, L)", 3)
    _checks.check_dim(op, "A", A, "(D, N)", 2)
    channels, states = A.shape[0], _numbers(A)
    if xz.shape[1] != 2 * channels:
        shape = _checks.shape_text(xz.shape)
        raise ValueError(f"{op}: xz must have 2 D = {2 * channels} channels for A's {channels}, got shape {shape}")
    _checks.check_dim(op, "conv1d_weight", conv1d_weight, "(D, 1, W)", 3)
    _checks.check_shape(op, "conv1d_weight", conv1d_weight, (channels, 1, conv1d_weight.shape[2]))
    if conv1d_bias is not None:
        _checks.check_shape(op, "conv1d_bias", conv1d_bias, (channels,))
    _checks.check_dim(op, "delta_proj_weight", delta_proj_weight, "(D, R)", 2)
    rank = delta_proj_weight.shape[1]
    _checks.check_shape(op, "delta_proj_weight", delta_proj_weight, (channels, rank))
    # Rows for a B or C that is given are allowed: nothing reads them.
    rows = rank + states * sum(t is None for t in given)
    if tuple(x_proj_weight.shape) not in ((rows, channels), (rank + 2 * states, channels)):
        expected = _checks.shape_text((rank + 2 * states, channels))
        raise ValueError(
            f"{op}: x_proj_weight must have shape {expected}, R + {'4' if A.is_complex() else '2'} N rows for R = {rank} "
            f"and N = {A.shape[1]}, "
            f"got {_checks.shape_text(x_proj_weight.shape)}"
        )


def _check_level(op: str, checkpoint_lvl: int) -> None:
    if checkpoint_lvl not in (0, 1):
        raise ValueError(f"{op}: checkpoint_lvl must be 0 or 1, got {checkpoint_lvl!r}")


def _check_output(op: str, weight: Tensor, bias: Tensor | None, A: Tensor) -> None:
    _checks.check_dim(op, "out_proj_weight", weight, "(d_model, D)", 2)
    _checks.check_shape(op, "out_proj_weight", weight, (weight.shape[0], A.shape[0]))
    if bias is not None:
        _checks.check_shape(op, "out_proj_bias", bias, (weight.shape[0],))


def _project(y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(y.transpose(1, 2), weight, None if bias is None else bias.to(weight.dtype))


def _projection(
    op: str,
    name: str,
    given: Tensor | None,
    projected: Tensor,
    bias: Tensor | None,
    rms_weight: Tensor | None,
    eps: float,
    has_complex_states: bool,
) -> Tensor:
    """B or C as the scan takes it; `projected` is (B, L, N), or (B, L, 2 N) with real and imaginary parts in turn."""
    if given is not None:
        if rms_weight is None:
            return per_step_as_complex(given) if has_complex_states else given
        if given.dim() == 2:
            raise ValueError(f"{op}: {name.lower()}_rms_weight must come with a {name} per step, got (D, N)")
        if has_complex_states:
            raise TypeError(f"{op}: {name.lower()}_rms_weight must come without a {name} for a complex A")
        return _rms_norm(given.mT, rms_weight, eps).mT
    if bias is not None:
        projected = projected + bias.to(projected.dtype)
    projected = projected if rms_weight is None else _rms_norm(projected, rms_weight, eps)
    return (as_complex(projected) if has_complex_states else projected).transpose(1, 2)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


mamba_inner_ref = partial(mamba_inner_fn, backend="reference")
bimamba_inner_ref = partial(bimamba_inner_fn, backend="reference")
