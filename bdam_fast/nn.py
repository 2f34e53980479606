"""Modules over the operators: parameters and their initialisation, no mathematics.

B batch, L length, E = expand * d_model inner channels, N states, R rank of the step projection, W convolution width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdam_fast.ops.causal_conv1d.op import causal_conv1d
from bdam_fast.ops.causal_conv1d_update.op import causal_conv1d_update
from bdam_fast.ops.selective_scan.op import selective_scan
from bdam_fast.ops.selective_state_update.op import selective_state_update


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
        backend: of both operators; `auto`, `cuda`, `triton`, `cpu` or `reference`.

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

    def forward(
        self,
        hidden_states: Tensor,
        seq_idx: Tensor | None = None,
        reverse: bool = False,
        *,
        initial_states: tuple[Tensor, Tensor] | None = None,
        return_states: bool = False,
    ) -> Any:  # a union would make every caller narrow it
        """(B, L, d_model) to (B, L, d_model).

        Args:
            hidden_states: (B, L, d_model).
            seq_idx: (B, L) int32, the packed sequence that each step belongs to; a negative index is padding, whose
                output is that of a zero vector and which no other step sees.
            reverse: process the steps from the last to the first.
            initial_states: (conv_state (B, E, W), ssm_state (B, E, N)) before the first processed step, read only; zero
                by default.
            return_states: also return the two states after the last processed step, new tensors with which `step` or
                another call continues. The oldest entry of conv_state, which nothing reads, is zero.

        Returns:
            out, or (out, (conv_state, ssm_state)) with states in float32 (float64 in a float64 block).

        Raises:
            ValueError: `hidden_states` or a state has another shape.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[2] != self.d_model:
            raise ValueError(
                f"Mamba: hidden_states must have shape (B, L, {self.d_model}), got {tuple(hidden_states.shape)}"
            )
        window, ssm_state = None, None
        if initial_states is not None:
            self._check_states(hidden_states.shape[0], *initial_states)
            window, ssm_state = initial_states[0][:, :, 1:], initial_states[1]
        options: dict[str, Any] = {"reverse": reverse, "seq_idx": seq_idx, "backend": self.backend}
        x_BLE, z_BLE = self.in_proj(hidden_states).chunk(2, dim=-1)
        x_BEL = causal_conv1d(
            *(x_BLE.transpose(1, 2), self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu"),
            initial_states=window,
            return_final_states=return_states,
            **options,
        )
        if return_states:
            x_BEL, final = x_BEL
        delta_BLE, B_BLN, C_BLN = self._projections(x_BEL.transpose(1, 2))
        y_BEL = selective_scan(
            x_BEL,
            delta_BLE.transpose(1, 2),
            -torch.exp(self.A_log.float()),
            B_BLN.transpose(1, 2),
            C_BLN.transpose(1, 2),
            self.D.float(),
            z_BLE.transpose(1, 2),
            self.dt_proj.bias.float(),
            delta_softplus=True,
            return_last_state=return_states,
            initial_state=ssm_state,
            **options,
        )
        if not return_states:
            return self.out_proj(y_BEL.transpose(1, 2))
        y_BEL, ssm_state = y_BEL
        conv_state = F.pad(final, (1, 0))
        return self.out_proj(y_BEL.transpose(1, 2)), (conv_state, ssm_state)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of decoding: (out (B, 1, d_model), conv_state, ssm_state), the states updated in place.

        Args:
            hidden_states: (B, 1, d_model).
            conv_state, ssm_state: (B, E, W) and (B, E, N), from `allocate_inference_cache`, `forward` or the step before.

        Raises:
            ValueError: an argument has another shape.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[1:] != (1, self.d_model):
            raise ValueError(
                f"Mamba: hidden_states must have shape (B, 1, {self.d_model}) in a step, "
                f"got {tuple(hidden_states.shape)}"
            )
        self._check_states(hidden_states.shape[0], conv_state, ssm_state)
        x_BE, z_BE = self.in_proj(hidden_states[:, 0]).chunk(2, dim=-1)
        weight = self.conv1d.weight.squeeze(1)
        x_BE = causal_conv1d_update(x_BE, conv_state, weight, self.conv1d.bias, "silu", backend=self.backend)
        delta_BE, B_BN, C_BN = self._projections(x_BE)
        y_BE = selective_state_update(
            *(ssm_state, x_BE, delta_BE, -torch.exp(self.A_log.float()), B_BN, C_BN),
            *(self.D.float(), z_BE, self.dt_proj.bias.float(), True),
            backend=self.backend,
        )
        return self.out_proj(y_BE)[:, None], conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Zero states for `step`: conv_state (B, E, W) and ssm_state (B, E, N).

        Args:
            batch_size: B.
            max_seqlen: of the existing module's signature; these states have the same size at any length.
            dtype: of both; by default that of conv1d for conv_state, and float32 for ssm_state, in which the scan sums.
        """
        weight = self.conv1d.weight
        conv_state = torch.zeros(
            batch_size, self.d_inner, self.d_conv, device=weight.device, dtype=dtype or weight.dtype
        )
        kind = torch.float64 if weight.dtype == torch.float64 else torch.float32
        ssm_state = torch.zeros(batch_size, self.d_inner, self.d_state, device=weight.device, dtype=dtype or kind)
        return conv_state, ssm_state

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The step before its bias (..., E), B and C (..., N) of x (..., E)."""
        rank, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return F.linear(rank, self.dt_proj.weight), B, C

    def _check_states(self, batch: int, conv_state: Tensor, ssm_state: Tensor) -> None:
        expected = (("conv_state", conv_state, self.d_conv), ("ssm_state", ssm_state, self.d_state))
        for name, state, width in expected:
            if tuple(state.shape) != (batch, self.d_inner, width):
                raise ValueError(
                    f"Mamba: {name} must have shape ({batch}, {self.d_inner}, {width}), got {tuple(state.shape)}"
                )

    def extra_repr(self) -> str:
        """The widths, for `print(model)`."""
        return f"d_model={self.d_model}, d_state={self.d_state}, d_conv={self.d_conv}, expand={self.expand}"
