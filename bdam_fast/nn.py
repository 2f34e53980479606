"""Modules over the operators: parameters and their initialisation, no mathematics.

B batch, L length, E = expand * d_model inner channels, N states, R rank of the step projection, W convolution width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdam_fast.ops.causal_conv1d.op import causal_conv1d
from bdam_fast.ops.selective_scan.op import selective_scan


class Mamba(nn.Module):
    """The Mamba-1 block (Gu and Dao 2023, figure 3 and algorithm 2): (B, L, d_model) to the same shape.

    Parameters have the names, shapes and initialisation of the published implementation, so its checkpoints load:
    `in_proj`, `conv1d` (E, 1, W), `x_proj`, `dt_proj`, `A_log` (E, N), `D` (E,), `out_proj`. Activations stay in the
    (B, L, E) memory order from end to end; the operators read and write it through transposed views.

    Args:
        d_model, d_state, d_conv, expand: widths; E = expand * d_model, N = d_state, W = d_conv.
        dt_rank: R, `auto` is d_model / 16 rounded up.
        dt_min, dt_max, dt_init_floor: the initial steps softplus(dt_proj.bias) are log-uniform in [dt_min, dt_max], at
            least dt_init_floor.
        dt_init, dt_scale: dt_proj.weight is uniform in, or (`constant`) equal to, R^-1/2 dt_scale.
        conv_bias, bias: whether conv1d, and in_proj and out_proj, have a bias.
        backend: of both operators; `auto`, `cpu` or `reference`.

    Raises:
        ValueError: `dt_init` is neither `random` nor `constant`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.backend = backend
        inner = self.d_inner
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias, device=device, dtype=dtype)
        self.conv1d = nn.Conv1d(
            inner, inner, d_conv, groups=inner, padding=d_conv - 1, bias=conv_bias, device=device, dtype=dtype
        )
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False, device=device, dtype=dtype)
        self.dt_proj = nn.Linear(self.dt_rank, inner, bias=True, device=device, dtype=dtype)
        self.A_log = nn.Parameter(torch.empty(inner, d_state, device=device, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(inner, device=device, dtype=torch.float32))
        self.out_proj = nn.Linear(inner, d_model, bias=bias, device=device, dtype=dtype)
        self._initialise_steps(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        self._initialise_states()

    def _initialise_steps(self, low: float, high: float, init: str, scale: float, floor: float) -> None:
        """dt_proj: steps log-uniform in [low, high] through the inverse of softplus."""
        bound = self.dt_rank**-0.5 * scale
        if init == "constant":
            nn.init.constant_(self.dt_proj.weight, bound)
        elif init == "random":
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        else:
            raise ValueError(f'Mamba: dt_init must be "random" or "constant", got {init!r}')
        span = math.log(high) - math.log(low)
        uniform = torch.rand(self.d_inner, device=self.dt_proj.bias.device, dtype=torch.float32)
        steps = torch.exp(uniform * span + math.log(low)).clamp(min=floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]  # read by the models that initialise all biases

    def _initialise_states(self) -> None:
        """A = -(1, …, N) in every channel (S4D-real), D = 1; neither decays."""
        with torch.no_grad():
            self.A_log.copy_(torch.arange(1, self.d_state + 1, dtype=torch.float32).log().expand(self.d_inner, -1))
            self.D.fill_(1.0)
        self.A_log._no_weight_decay = True  # type: ignore[attr-defined]
        self.D._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, hidden_states: Tensor, seq_idx: Tensor | None = None, reverse: bool = False) -> Tensor:
        """(B, L, d_model) to (B, L, d_model).

        Args:
            hidden_states: (B, L, d_model).
            seq_idx: (B, L) int32, the packed sequence that each step belongs to; a negative index is padding, whose
                output is that of a zero vector and which no other step sees.
            reverse: process the steps from the last to the first.

        Raises:
            ValueError: `hidden_states` has another shape.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[2] != self.d_model:
            raise ValueError(
                f"Mamba: hidden_states must have shape (B, L, {self.d_model}), got {tuple(hidden_states.shape)}"
            )
        options: dict[str, Any] = {"reverse": reverse, "seq_idx": seq_idx, "backend": self.backend}
        x_BLE, z_BLE = self.in_proj(hidden_states).chunk(2, dim=-1)
        weight = self.conv1d.weight.squeeze(1)
        x_BEL = causal_conv1d(x_BLE.transpose(1, 2), weight, self.conv1d.bias, "silu", **options)
        step_BLR, B_BLN, C_BLN = self.x_proj(x_BEL.transpose(1, 2)).split(
            [self.dt_rank, self.d_state, self.d_state], dim=-1
        )
        y_BEL = selective_scan(
            x_BEL,
            F.linear(step_BLR, self.dt_proj.weight).transpose(1, 2),
            -torch.exp(self.A_log.float()),
            B_BLN.transpose(1, 2),
            C_BLN.transpose(1, 2),
            self.D.float(),
            z_BLE.transpose(1, 2),
            self.dt_proj.bias.float(),
            delta_softplus=True,
            **options,
        )
        return self.out_proj(y_BEL.transpose(1, 2))

    def extra_repr(self) -> str:
        """The widths, for `print(model)`."""
        return f"d_model={self.d_model}, d_state={self.d_state}, d_conv={self.d_conv}, expand={self.expand}"
