"""Modules over the operators: parameters and their initialisation, no mathematics.

B batch, L length, E = expand * d_model inner channels, N states, R rank of the step projection, W convolution width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_tensor, sums_dtype
from ._plain import is_plain
from .ops.causal_conv1d.op import causal_conv1d
from .ops.causal_conv1d_update.op import causal_conv1d_update
from .ops.selective_scan.op import selective_scan
from .ops.selective_state_update.op import selective_state_update


def _wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 in a float64 block: decay, skip and step bias keep their digits whatever autocast does."""
    return x if x.dtype == torch.float64 else x.float()


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
        use_fast_path: of the published signature; there is one path here.
        layer_idx: the block's place in a model, by which it finds its states in `inference_params`.
        backend: of both operators; `auto`, `cuda`, `triton`, `cpu` or `reference`.

    conv1d and dt_proj are called as modules where they are not plain ones: of another class (LoRA, quantisation), or with
    hooks or a `forward` of their own. Where they are plain the operators read their weights, unseen by hooks of all modules.

    Raises:
        ValueError: `dt_init` is neither `random` nor `constant`.
    """

    backend = "auto"  # of a block that the published implementation pickled

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
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.use_fast_path, self.layer_idx, self.backend = use_fast_path, layer_idx, backend
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
        inference_params: Any = None,
        *,
        seq_idx: Tensor | None = None,
        reverse: bool = False,
        initial_states: tuple[Tensor, Tensor] | None = None,
        return_states: bool = False,
    ) -> Any:  # a union would make every caller narrow it
        """(B, L, d_model) to (B, L, d_model).

        Args:
            hidden_states: (B, L, d_model).
            inference_params: of the published signature: an object whose `key_value_memory_dict` holds this block's two
                states under its `layer_idx`, made at the first call and updated in place at each. They are used, for any
                number of steps, where its `seqlen_offset` is not 0.
            seq_idx: (B, L) int32, the packed sequence that each step belongs to; a negative index is padding, whose
                output is `out_proj.bias` (zero without one) and which no other step sees.
            reverse: process the steps from the last to the first.
            initial_states: (conv_state (B, E, W), ssm_state (B, E, N)) before the first processed step, read only; zero
                by default.
            return_states: also return the two states after the last processed step, new tensors with which `step` or
                another call continues. The oldest entry of conv_state, which nothing reads, is zero.

        Returns:
            out, or (out, (conv_state, ssm_state)) with states in float32 (float64 in a float64 block).

        Raises:
            TypeError: a state is no floating tensor.
            ValueError: `hidden_states` or a state has another shape; `inference_params` without a `layer_idx` of the
                block or with another option; `seq_idx` with a conv1d that is not plain.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[2] != self.d_model:
            raise ValueError(
                f"Mamba: hidden_states must have shape (B, L, {self.d_model}), got {tuple(hidden_states.shape)}"
            )
        if inference_params is not None:
            if seq_idx is not None or reverse or initial_states is not None or return_states:
                raise ValueError(
                    "Mamba: inference_params must come without seq_idx, reverse, initial_states, return_states"
                )
            return self._continue(hidden_states, inference_params)
        window, ssm_state = None, None
        if initial_states is not None:
            self._check_states(hidden_states.shape[0], *initial_states)
            window, ssm_state = initial_states[0][:, :, 1:], initial_states[1]
        options: dict[str, Any] = {"reverse": reverse, "seq_idx": seq_idx, "backend": self.backend}
        x_BLE, z_BLE = self.in_proj(hidden_states).chunk(2, dim=-1)
        x_BEL, final = self._convolve(x_BLE.transpose(1, 2), window, return_states, **options)
        delta_BLE, B_BLN, C_BLN, bias = self._projections(x_BEL.transpose(1, 2))
        y_BEL = selective_scan(
            x_BEL,
            delta_BLE.transpose(1, 2),
            -torch.exp(_wide(self.A_log)),
            B_BLN.transpose(1, 2),
            C_BLN.transpose(1, 2),
            _wide(self.D),
            z_BLE.transpose(1, 2),
            bias,
            delta_softplus=True,
            return_last_state=return_states,
            initial_state=ssm_state,
            **options,
        )
        if not return_states:
            return self.out_proj(y_BEL.transpose(1, 2))
        y_BEL, ssm_state = y_BEL
        return self.out_proj(y_BEL.transpose(1, 2)), (F.pad(final, (1, 0)), ssm_state)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of decoding: (out (B, 1, d_model), conv_state, ssm_state), the states updated in place.

        Args:
            hidden_states: (B, 1, d_model).
            conv_state, ssm_state: (B, E, W) and (B, E, N), from `allocate_inference_cache`, `forward` or the step before.

        Raises:
            TypeError: a state is no floating tensor.
            ValueError: an argument has another shape.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[1:] != (1, self.d_model):
            raise ValueError(
                f"Mamba: hidden_states must have shape (B, 1, {self.d_model}) in a step, "
                f"got {tuple(hidden_states.shape)}"
            )
        self._check_states(hidden_states.shape[0], conv_state, ssm_state)
        x_BE, z_BE = self.in_proj(hidden_states[:, 0]).chunk(2, dim=-1)
        if is_plain(self.conv1d, nn.Conv1d):
            weight = self.conv1d.weight.squeeze(1)
            x_BE = causal_conv1d_update(x_BE, conv_state, weight, self.conv1d.bias, "silu", backend=self.backend)
        else:
            steps = torch.cat([conv_state[:, :, 1:], x_BE[:, :, None]], 2)  # in the wider dtype of the two
            x_BE = F.silu(self.conv1d(steps.to(x_BE.dtype))[:, :, self.d_conv - 1])
            conv_state.copy_(steps)
        delta_BE, B_BN, C_BN, bias = self._projections(x_BE)
        y_BE = selective_state_update(
            *(ssm_state, x_BE, delta_BE, -torch.exp(_wide(self.A_log)), B_BN, C_BN),
            *(_wide(self.D), z_BE, bias, True),
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
            dtype: of both; by default float32 (float64 in a float64 block), in which the scan sums, and that of a plain
                conv1d for conv_state.
        """
        # Any layer may be quantised or wrapped: A_log is the block's own.
        sums = torch.float64 if any(p.dtype == torch.float64 for p in self.parameters()) else torch.float32
        entries = self.conv1d.weight.dtype if is_plain(self.conv1d, nn.Conv1d) else sums
        device = self.A_log.device
        conv_state = torch.zeros(batch_size, self.d_inner, self.d_conv, device=device, dtype=dtype or entries)
        return conv_state, torch.zeros(batch_size, self.d_inner, self.d_state, device=device, dtype=dtype or sums)

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The step (..., E), B and C (..., N) of x (..., E), and the step's bias if it is yet to be added."""
        rank, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        if not is_plain(self.dt_proj, nn.Linear):
            return self.dt_proj(rank), B, C, None
        bias = self.dt_proj.bias
        return F.linear(rank, self.dt_proj.weight), B, C, None if bias is None else _wide(bias)

    def _convolve(
        self,
        x_BEL: Tensor,
        window: Tensor | None,
        return_states: bool,
        reverse: bool,
        seq_idx: Tensor | None,
        backend: str,
    ) -> tuple[Tensor, Any]:
        """The activated convolution, and the window after the last processed step if it is wanted."""
        if is_plain(self.conv1d, nn.Conv1d):
            options: dict[str, Any] = {"reverse": reverse, "seq_idx": seq_idx, "backend": backend}
            filters = (self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu")
            out = causal_conv1d(x_BEL, *filters, initial_states=window, return_final_states=return_states, **options)
            return out if return_states else (out, None)
        if seq_idx is not None:
            raise ValueError(
                f"Mamba: seq_idx needs a plain nn.Conv1d, whose window can be emptied, got {type(self.conv1d).__name__}"
            )
        taps, length = self.d_conv, x_BEL.shape[2]
        steps = x_BEL.flip(2) if reverse else x_BEL
        before = steps.new_zeros(*steps.shape[:2], taps - 1) if window is None else window.to(steps.dtype)
        joined = torch.cat([before, steps], 2)  # the module pads with zeros, before it and behind it
        out = F.silu(self.conv1d(joined)[:, :, taps - 1 : taps - 1 + length])
        return out.flip(2) if reverse else out, joined[:, :, length:].to(sums_dtype(x_BEL)) if return_states else None

    def _continue(self, hidden_states: Tensor, inference_params: Any) -> Tensor:
        """The block with the states of `inference_params`, which are updated in place."""
        if self.layer_idx is None:
            raise ValueError("Mamba: inference_params needs a block that was made with layer_idx, got None")
        states, batch = inference_params.key_value_memory_dict, hidden_states.shape[0]
        if self.layer_idx not in states:
            states[self.layer_idx] = self.allocate_inference_cache(batch)
        conv_state, ssm_state = states[self.layer_idx]
        before = None if inference_params.seqlen_offset == 0 else (conv_state, ssm_state)
        if before is not None and hidden_states.shape[1] == 1:
            return self.step(hidden_states, conv_state, ssm_state)[0]
        self._check_states(batch, conv_state, ssm_state)
        out, (conv_after, ssm_after) = self.forward(hidden_states, initial_states=before, return_states=True)
        conv_state.copy_(conv_after)
        ssm_state.copy_(ssm_after)
        return out

    def _check_states(self, batch: int, conv_state: Tensor, ssm_state: Tensor) -> None:
        expected = (("conv_state", conv_state, self.d_conv), ("ssm_state", ssm_state, self.d_state))
        for name, state, width in expected:
            check_tensor("Mamba", name, state)
            if tuple(state.shape) != (batch, self.d_inner, width):
                raise ValueError(
                    f"Mamba: {name} must have shape ({batch}, {self.d_inner}, {width}), got {tuple(state.shape)}"
                )

    def extra_repr(self) -> str:
        """The widths, for `print(model)`."""
        return f"d_model={self.d_model}, d_state={self.d_state}, d_conv={self.d_conv}, expand={self.expand}"
