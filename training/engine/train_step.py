"""One optimiser step: encoders in micro-batches, heads and losses on the whole batch, task weights, mixed precision.

A step costs K passes through the heads at most (one per task, for GradNorm) and one through the encoders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bdam_fast.profiling import span
from training.config import Config, OptimConfig
from training.data.loader import Batch
from training.engine.gradnorm import GradNorm, backward_tasks
from training.engine.losses import fixed_losses, task_losses, task_names
from training.models.model import Encoded, Model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Parts of the model that torch.compile takes, one graph each.
COMPILED = ("visual", "text", "bdam", "identity_projection", "clothing_head", "text_projection", "fusion")


class Step(NamedTuple):
    """Values of one optimiser step; `losses` and `norms` unweighted, the gate regularisation among the losses."""

    loss: float
    losses: dict[str, float]
    weights: dict[str, float]
    norms: dict[str, float]
    # What the losses were multiplied by (fp16; 1 otherwise), and whether the gradients overflowed with it, so that the
    # weights stayed as they were.
    scale: float
    skipped: bool


class NotFinite(RuntimeError):
    """Losses or a gradient norm, in `values`, of which one is not finite; no weight has changed."""

    def __init__(self, values: dict[str, float]) -> None:
        super().__init__(", ".join(f"{name} {value:g}" for name, value in values.items()))
        self.values = values


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine from 1 towards 0 at `total`; `step` counts from 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def build_optimizer(model: Model, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the model's parameter groups."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameter_groups(config.lr), lr=config.lr, weight_decay=config.weight_decay, fused=True)


def prepare(model: Model, config: OptimConfig, compiler: str = "inductor") -> None:
    """Sets the model up for `checkpointing` and `compile`, in place; names of parameters stay. compiler: of torch.compile."""
    if config.checkpointing:
        model.visual.checkpoint_layers()
        model.text.checkpoint_layers()
        model.bdam.checkpointing = True
    if config.compile:
        # Backward passes run once per task over the same graph; a donated buffer is gone after the first.
        torch._functorch.config.donated_buffer = False
        for name in COMPILED:
            part = getattr(model, name)
            if part is not None:
                part.compile(backend=compiler)


def random_state(device: torch.device) -> list[Tensor]:
    """States of torch's global generators: CPU, and that of `device` where it is another."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(state: Sequence[Tensor], device: torch.device) -> None:
    """Restores what `random_state` returned; states of a device that is not there now are left out."""
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


class Stepper:
    """Optimiser, gradient scaler and task weights of `model`, which is on its device, and the step that uses them."""

    def __init__(self, config: Config, model: Model) -> None:
        self.config, self.model = config, model
        self.device = next(model.parameters()).device
        self.dtype = DTYPES.get(config.optim.precision)
        self.optimizer = build_optimizer(model, config.optim)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.optim.precision == "fp16")
        self.gradnorm = GradNorm(task_names(config.loss, config.model.fusion.enabled), config.gradnorm)
        self.head_parameters = model.head_parameters()
        self.parameters = [*model.encoder_parameters(), *self.head_parameters]
        prepare(model, config.optim)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs, as tensors and plain values; the model's weights are not in it."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "gradnorm": self.gradnorm.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.gradnorm.load_state_dict(state["gradnorm"])

    def set_rate(self, factor: float) -> None:
        """Learning rate of every group: `factor` times that of the configuration."""
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = factor * rate

    def run(self, batch: Batch, *, measure: bool) -> Step:
        """One step; measure: GradNorm measures its norms and updates the task weights.

        Raises NotFinite when a loss is not, or when the gradient norm is not without a scale that could be lowered.
        """
        self.optimizer.zero_grad(set_to_none=True)
        batch = batch.to(self.device)
        parts = self._parts(batch)
        with span("encoders"):
            encoded, states = self._encode(parts)
        leaves = encoded.leaves()
        with span("heads"), self._autocast():
            features = self.model.heads(leaves)
        loss, backend = self.config.loss, self.config.model.backend
        with span("losses"):
            features = features.widened()
            tasks = task_losses(features, batch.ids_B, batch.clothing_group_B, loss, backend)
            fixed, weights = fixed_losses(features, loss), self.gradnorm.weights()
            values, regular = _numbers(tasks), _numbers(fixed)
        _require_finite(values | regular)
        scale = float(self.scaler.scale(torch.ones((), device=self.device)))
        norms = backward_tasks(
            tasks, weights, fixed, leaves.tensors(), self.head_parameters, measure=measure, scale=scale
        )
        if scale <= 1.0:
            _require_finite({f"gradient norm of {name}": norm for name, norm in norms.items()})
        with span("backward encoders"):
            self._backward(encoded, parts, states, leaves)
        with span("optimiser"):
            skipped = self._update(scale)
        if skipped or not all(map(math.isfinite, norms.values())):
            norms = {}
        if norms:
            with span("gradnorm update"):
                self.gradnorm.update(values, norms)
        total = sum(weights[name] * value for name, value in values.items()) + sum(regular.values())
        return Step(total, values | regular, weights, norms, scale, skipped)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def _parts(self, batch: Batch) -> list[Batch]:
        count, size = len(batch.paths), min(self.config.optim.accumulate, len(batch.paths))
        bounds = [count * i // size for i in range(size + 1)]
        return [batch.part(slice(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)] if size > 1 else [batch]

    def _encode(self, parts: list[Batch]) -> tuple[Encoded, list[list[Tensor]]]:
        """Of the whole batch. One part keeps its graph; of several only the values and the random states are kept."""
        if len(parts) == 1:
            with self._autocast():
                return self.model.encode(parts[0]), []
        encoded, states = [], []
        for part in parts:
            states.append(random_state(self.device))
            # One autocast per part: what it caches of the weights without a graph must not serve the pass with one.
            with torch.no_grad(), self._autocast():
                encoded.append(self.model.encode(part))
        return _joined(encoded), states

    def _backward(self, encoded: Encoded, parts: list[Batch], states: list[list[Tensor]], leaves: Encoded) -> None:
        """Through the encoders; several parts are encoded again one by one, with the random numbers of the first time."""
        if len(parts) == 1:
            encoded.backward(leaves)
            return
        after, start = random_state(self.device), 0
        for part, state in zip(parts, states, strict=True) if self.model.encoder_parameters() else ():
            set_random_state(state, self.device)
            with self._autocast():
                encoded = self.model.encode(part)
            encoded.backward(leaves, slice(start, start + len(part.paths)))
            start += len(part.paths)
        set_random_state(after, self.device)

    def _update(self, scale: float) -> bool:
        """Clips and steps; whether the step was left out because the scaled gradients overflowed."""
        self.scaler.unscale_(self.optimizer)
        # A bound of infinity measures without clipping.
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip_norm or math.inf))
        finite = math.isfinite(norm)
        if not finite and scale <= 1.0:
            raise NotFinite({"gradient norm": norm})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return not finite


def _joined(parts: list[Encoded]) -> Encoded:
    return replace(
        parts[0],
        image_tokens_BPC=torch.cat([part.image_tokens_BPC for part in parts]),
        text_tokens_VBTC=torch.cat([part.text_tokens_VBTC for part in parts], dim=1),
        text_mask_VBT=torch.cat([part.text_mask_VBT for part in parts], dim=1),
        ids_B=torch.cat([part.ids_B for part in parts]),
    )


def _numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items()}


def _require_finite(values: dict[str, float]) -> None:
    if not all(map(math.isfinite, values.values())):
        raise NotFinite(values)
