"""Blocks of Vision Mamba and VMamba with random weights, by PyTorch's own functions or by `bdam_fast.compat`.

B batch, L length, D channels, N states, R rank of the step projection, H and W of a feature map, K = 4 directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdam_fast import compat

STATES, WIDTH = 8, 4


def scan_loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan as a loop over the steps: u, dt (B, D, L), B, C (B, D or 1, N, L) -> (B, D, L)."""
    decay = torch.exp(dt.unsqueeze(-1) * A.unsqueeze(1)).unbind(2)
    update = ((dt * u).unsqueeze(-1) * B.transpose(2, 3)).unbind(2)
    state, outputs = torch.zeros_like(decay[0]), []
    for a, b, c in zip(decay, update, C.unbind(3), strict=True):
        state = a * state + b
        outputs.append((state * c).sum(-1))
    return torch.stack(outputs, 2) + D[:, None] * u


class VisionBlock(nn.Module):
    """Vision Mamba's bidirectional block, (B, L, d_model) to the same shape.

    shared: its first version, in which both directions have one convolution and one set of projections; else its second,
    in which each direction has its own and runs on a sequence that is turned round.
    """

    def __init__(self, d_model: int, shared: bool) -> None:
        super().__init__()
        inner, rank = 2 * d_model, 4
        self.shared, self.fused, self.rank = shared, False, rank
        self.in_proj, self.out_proj = nn.Linear(d_model, 2 * inner, bias=False), nn.Linear(inner, d_model, bias=False)
        directions = 1 if shared else 2
        self.conv = nn.ModuleList(
            nn.Conv1d(inner, inner, WIDTH, groups=inner, padding=WIDTH - 1) for _ in range(directions)
        )
        self.x_proj = nn.ModuleList(nn.Linear(inner, rank + 2 * STATES, bias=False) for _ in range(directions))
        self.dt_proj = nn.ModuleList(nn.Linear(rank, inner) for _ in range(directions))
        self.A_log = nn.Parameter(torch.arange(1.0, STATES + 1).log().expand(2, inner, -1).clone())
        self.D = nn.Parameter(torch.ones(directions, inner))

    def forward(self, hidden: Tensor) -> Tensor:
        """The block."""
        xz, A = self.in_proj(hidden).transpose(1, 2), -torch.exp(self.A_log)
        if self.shared:
            if self.fused:
                states = {"D": self.D[0], "delta_bias": self.dt_proj[0].bias}
                return compat.bimamba_inner_fn(xz, *self._weights(0), self.out_proj.weight, None, A[0], A[1], **states)
            return self.out_proj(sum(self._written_out(xz, 0, A[i], turned=i == 1) for i in range(2)).transpose(1, 2))
        parts = [self._direction(xz if i == 0 else xz.flip(2), i, A[i]) for i in range(2)]
        return self.out_proj((parts[0] + parts[1].flip(2)).transpose(1, 2))

    def _weights(self, i: int) -> tuple[Tensor, ...]:
        return (self.conv[i].weight, self.conv[i].bias, self.x_proj[i].weight, self.dt_proj[i].weight)

    def _direction(self, xz: Tensor, i: int, A: Tensor) -> Tensor:
        if not self.fused:
            return self._written_out(xz, i, A, turned=False)
        return compat.mamba_inner_fn_no_out_proj(
            xz, *self._weights(i), A, D=self.D[i], delta_bias=self.dt_proj[i].bias, delta_softplus=True
        )

    def _written_out(self, xz: Tensor, i: int, A: Tensor, turned: bool) -> Tensor:
        """One direction, (B, D, L); turned: its scan runs from the last step to the first."""
        x, z = xz.chunk(2, 1)
        x = F.silu(self.conv[i](x)[..., : x.shape[2]])
        step, B, C = self.x_proj[i](x.transpose(1, 2)).split([self.rank, STATES, STATES], -1)
        streams = [x, F.softplus(self.dt_proj[i](step)).transpose(1, 2), B.mT[:, None], C.mT[:, None]]
        u, dt, B, C = (t.flip(-1) for t in streams) if turned else streams
        y = scan_loop(u, dt, A, B, C, self.D[i])
        return (y.flip(2) if turned else y) * F.silu(z)


class CrossScanBlock(nn.Module):
    """VMamba's scan of a feature map (B, D, H, W) along rows and columns, forwards and backwards, summed: (B, D, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fused, self.rank = False, 2
        self.x_proj = nn.Parameter(torch.randn(4, self.rank + 2 * STATES, channels) / channels**0.5)
        self.dt_proj = nn.Parameter(torch.randn(4, channels, self.rank) / self.rank**0.5)
        self.dt_bias = nn.Parameter(torch.rand(4 * channels) - 2)
        self.A_log = nn.Parameter(torch.arange(1.0, STATES + 1).log().expand(4 * channels, -1).clone())
        self.D = nn.Parameter(torch.ones(4 * channels))

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        batch, channels, height, width = x.shape
        rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
        u = torch.stack([rows, columns, rows.flip(2), columns.flip(2)], 1)  # (B, K, D, L)
        step, B, C = torch.einsum("bkdl,kcd->bkcl", u, self.x_proj).split([self.rank, STATES, STATES], 2)
        delta = torch.einsum("bkrl,kdr->bkdl", step, self.dt_proj).flatten(1, 2)
        u, A = u.flatten(1, 2), -torch.exp(self.A_log)
        if self.fused:
            y = compat.vmamba_selective_scan(
                u, delta, A, B.contiguous(), C.contiguous(), self.D, self.dt_bias, True, nrows=1
            )
        else:
            dt, (B, C) = F.softplus(delta + self.dt_bias[:, None]), (t.repeat_interleave(channels, 1) for t in (B, C))
            y = scan_loop(u, dt, A, B, C, self.D)
        y = y.view(batch, 4, channels, -1)
        y = y[:, :2] + y[:, 2:].flip(3)
        return y[:, 0].view_as(x) + y[:, 1].view(batch, channels, width, height).transpose(2, 3)
