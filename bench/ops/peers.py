"""Other implementations of the scan on a CPU; each takes (u, delta, A, B, C, D, z, delta_bias), softplus on.

B batch, L length, D channels, N states. u, delta, z (B, D, L) in either memory order; B, C (B, N, L). All work in float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Steps per chunk of chunked_cumsum. exp(-cumsum) overflows when the steps of a chunk add up to dt A = -88: 32 steps of
# the benchmark's inputs do, 16 reach about -40 and leave an error of 5e-7.
CHUNK = 16
# Steps that blocked_loop prepares at once: 17.9 ms at (8, 512, 273, 16), 21.5 one step at a time.
BLOCK = 16
TRANSFORMERS_MODULE = "transformers.models.mamba.modeling_mamba"


def _steps(u: Tensor, delta: Tensor, delta_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Returns dt and dt u, both (B, L, D)."""
    dt = F.softplus(delta.transpose(1, 2).float() + delta_bias)
    return dt, dt * u.transpose(1, 2).float()


def _finish(y: Tensor, u: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """Returns (y + D u) silu(z) of y (B, L, D), as (B, D, L) in u's dtype."""
    out = (y + D * u.transpose(1, 2).float()) * F.silu(z.transpose(1, 2).float())
    return out.transpose(1, 2).to(u.dtype)


def lean_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Loop over one state (B, D, N), updated in place: no gradient, and nothing of size L times N is ever written."""
    dt, x = _steps(u, delta, delta_bias)
    state = dt.new_zeros(*u.shape[:2], A.shape[1])
    decay, y = torch.empty_like(state), torch.empty_like(dt)
    dts, xs, ys = (t.unsqueeze(-1).unbind(1) for t in (dt, x, y))
    Bs, Cs = B.float().unsqueeze(1).unbind(3), C.float().unsqueeze(1).unbind(3)
    for t in range(u.shape[2]):
        torch.mul(dts[t], A, out=decay)
        state.mul_(decay.exp_()).addcmul_(xs[t], Bs[t])
        ys[t].copy_(torch.bmm(state, Cs[t].transpose(1, 2)))
    return _finish(y, u, D, z)


def blocked_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Lean loop with channels innermost, exp and the sum over states for BLOCK steps at once: no gradient."""
    dt, x = (t.transpose(0, 1).unsqueeze(2) for t in _steps(u, delta, delta_bias))
    B_LBN, C_LBN, A_ND = B.float().permute(2, 0, 1), C.float().permute(2, 0, 1), A.t().contiguous()
    state = dt.new_zeros(u.shape[0], A.shape[1], u.shape[1])
    y = torch.empty_like(dt)
    for start in range(0, u.shape[2], BLOCK):
        stop = start + BLOCK
        decay = (dt[start:stop] * A_ND).exp_()
        states = x[start:stop] * B_LBN[start:stop].unsqueeze(-1)
        for before, after in zip(decay.unbind(0), states.unbind(0), strict=True):
            state = after.addcmul_(before, state)
        y[start:stop] = C_LBN[start:stop].unsqueeze(2) @ states
    return _finish(y.squeeze(2).transpose(0, 1), u, D, z)


def compilable_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Lean loop without `out=` and in-place operations, which a compiler would undo anyway."""
    dt, x = _steps(u, delta, delta_bias)
    B_BLN, C_BLN = B.float().transpose(1, 2), C.float().transpose(1, 2)
    state = dt.new_zeros(*u.shape[:2], A.shape[1])
    outputs = []
    for t in range(u.shape[2]):
        state = torch.exp(dt[:, t, :, None] * A) * state + x[:, t, :, None] * B_BLN[:, t, None]
        outputs.append((state * C_BLN[:, t, None]).sum(-1))
    return _finish(torch.stack(outputs, 1), u, D, z)


def chunked_cumsum(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Parallel within chunks, in log space: h_t = e^{S_t} (h_0 + sum_{s<=t} e^{-S_s} dt_s B_s u_s), S = cumsum(dt) A."""
    batch, channels, length = u.shape
    dt, x = _steps(u, delta, delta_bias)
    padded = -(-length // CHUNK) * CHUNK

    def chunks(tensor: Tensor) -> Tensor:
        return F.pad(tensor, (0, 0, 0, padded - length)).view(batch, -1, CHUNK, tensor.shape[-1])

    logs = chunks(dt).cumsum(2).unsqueeze(3) * A.t()
    grow = torch.exp(logs)
    B_chunks, C_chunks = (chunks(t.float().transpose(1, 2)) for t in (B, C))
    sums = (torch.exp(-logs) * (chunks(x).unsqueeze(3) * B_chunks.unsqueeze(4))).cumsum(2)
    last = grow[:, :, -1]
    state = dt.new_zeros(batch, A.shape[1], channels)
    starts = []
    for decay, update in zip(last.unbind(1), (last * sums[:, :, -1]).unbind(1), strict=True):
        starts.append(state)
        state = torch.addcmul(update, decay, state)
    states = grow * (sums + torch.stack(starts, 1).unsqueeze(2))
    y = (C_chunks.unsqueeze(3) @ states).reshape(batch, padded, channels)[:, :length]
    return _finish(y, u, D, z)


def mambapy(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Parallel scan of the mambapy package, forward and backward, with the same prologue and epilogue."""
    pscan = importlib.import_module("mambapy.pscan").pscan
    dt, x = _steps(u, delta, delta_bias)
    states = pscan(torch.exp(dt.unsqueeze(-1) * A), x.unsqueeze(-1) * B.float().transpose(1, 2).unsqueeze(2))
    return _finish((states @ C.float().transpose(1, 2).unsqueeze(-1)).squeeze(-1), u, D, z)


def transformers_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Scan of Hugging Face transformers on a CPU (5.x: a module function)."""
    scan = importlib.import_module(TRANSFORMERS_MODULE).mamba_selective_scan
    return scan(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=True)


def missing(module: str, attribute: str) -> str:
    """Reason why a peer cannot be imported; an empty string if it can."""
    try:
        found = importlib.import_module(module)
    except ImportError as problem:
        return f"{problem}; `pip install -e .[bench]` installs it"
    return "" if hasattr(found, attribute) else f"{module} of this version has no {attribute}"


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiles with static shapes and a fresh cache (another case must not count as a recompilation)."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)
