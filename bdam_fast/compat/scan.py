"""selective_scan_fn and selective_state_update of mamba_ssm, and VMamba's scan.

B batch, L length, D channels, N states, G groups, H heads.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _autograd, _checks
from ..ops.selective_scan.op import selective_scan
from ..ops.selective_state_update import op as state_update
from .arguments import takes_tensors
from .rows import at_rows, check_index, check_rows, packed, without_padding


@takes_tensors
def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Any:
    """`bdam_fast.selective_scan`: out (B, D, L), or (out, last_state (B, D, N)); the last state has a gradient too.

    Args:
        A: (D, N). A complex A runs on the reference, which says so once; B and C per step are then (B, N, 2 L) or
            (B, G, N, 2 L), real and imaginary parts in turn, or complex without the 2.
        cu_seqlens: (S + 1,) int32, the ends of S sequences packed in one row; the state starts from zero in each.

    Raises:
        ValueError: `cu_seqlens` with more than one row; otherwise as `bdam_fast.selective_scan`.
    """
    seq_idx = packed("selective_scan_fn", cu_seqlens, None, u)
    if A.is_complex():
        B, C = (per_step_as_complex(t) for t in (B, C))
    backend = backend_for("selective_scan_fn", A, backend)
    return selective_scan(
        *(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state), seq_idx=seq_idx, backend=backend
    )


def backend_for(op: str, A: Tensor, backend: str) -> str:
    """The backend, where `auto` is the reference for a complex A; a warning says so once."""
    if not A.is_complex() or backend != "auto":
        return backend
    _autograd.warn_reference(op, "A is complex, which no kernel takes")
    return "reference"


def per_step_as_complex(projection: Tensor) -> Tensor:
    """B or C of a complex A; per step in real numbers its last dimension holds real and imaginary parts in turn."""
    return projection if projection.is_complex() or projection.dim() < 3 else as_complex(projection)


def as_complex(parts: Tensor) -> Tensor:
    """Real and imaginary parts in turn in the last dimension, (..., 2 K), as K complex numbers of at least 32 bits a part."""
    wide = parts if parts.dtype == torch.float64 else parts.float()
    return torch.view_as_complex(wide.unflatten(-1, (-1, 2)).contiguous())


@takes_tensors
def vmamba_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
    backnrows: int = 1,
    oflex: bool = True,
    *,
    backend: str = "auto",
) -> Tensor:
    """The scan as VMamba calls it: no gate, and out (B, D, L) in float32 whatever u's dtype if `oflex`.

    A, B, C: complex as in `selective_scan_fn`.
    nrows, backnrows: how VMamba's kernels cut their work; they change nothing here.
    """
    if A.is_complex():
        B, C = (per_step_as_complex(t) for t in (B, C))
    backend = backend_for("vmamba_selective_scan", A, backend)
    return selective_scan(*(wide(u, oflex), delta, A, B, C, D, None, delta_bias, delta_softplus), backend=backend)


def wide(u: Tensor, oflex: bool) -> Tensor:
    """u in float32, if the output is to be; the output has u's dtype."""
    return u.float() if oflex and u.dtype in (torch.float16, torch.bfloat16) else u


@takes_tensors
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
    *,
    check_indices: bool = False,
    backend: str = "auto",
) -> Tensor:
    """`bdam_fast.selective_state_update`, also with heads and with the states of a batch chosen by index.

    Args:
        state: (B, D, N), or with H heads (B, H, D, N), heads and channels adjacent; updated in place.
        x, dt, z: (B, D) or (B, H, D).
        A, D, dt_bias: (D, N), (D,), (D,), or with H in front.
        B, C: (B, N) or (B, G, N) with G dividing H (dividing D without heads).
        state_batch_indices: (B,) int32, the row of `state` that belongs to each item of x, no row twice. An item with a
            negative index is padding: its output is zero and no state is read or written.
        check_indices: raise where a row stands twice (which waits for a GPU); without it one of the items wins.

    Returns:
        out, x's shape and dtype.

    Raises:
        ValueError: a wrong shape, heads that lie apart in memory, or an index behind the last row.
    """
    op = "selective_state_update"
    if state_batch_indices is not None:
        check_index(op, "state_batch_indices", state_batch_indices, x.shape[0])
        check_rows(op, "state_batch_indices", state_batch_indices, state.shape[0], check_indices)
        x, dt, B, C, z = without_padding(state_batch_indices < 0, x, dt, B, C, z)

        def step(states: Tensor) -> Tensor:
            return selective_state_update(states, x, dt, A, B, C, D, z, dt_bias, dt_softplus, backend=backend)

        return at_rows(state, state_batch_indices, step)
    if state.dim() != 4:
        return state_update.selective_state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, backend=backend)
    heads = state.shape[1]
    if heads > 1 and state.stride(1) != state.shape[2] * state.stride(2):
        raise ValueError(f"{op}: state must have adjacent heads and channels, got strides {tuple(state.stride())}")
    for name, value in (("B", B), ("C", C)):
        if value.dim() == 3 and heads % max(value.shape[1], 1):
            shape = _checks.shape_text(value.shape)
            raise ValueError(f"{op}: {name} must have groups that divide the {heads} heads, got shape {shape}")
    state = state.view(state.shape[0], -1, state.shape[3])
    D, z, dt_bias = (None if t is None else t.flatten(-2) for t in (D, z, dt_bias))
    out = state_update.selective_state_update(
        state, x.flatten(1), dt.flatten(1), A.flatten(0, 1), B, C, D, z, dt_bias, dt_softplus, backend=backend
    )
    return out.view(x.shape)


selective_scan_ref = partial(selective_scan_fn, backend="reference")
selective_state_update_ref = partial(selective_state_update, backend="reference")
