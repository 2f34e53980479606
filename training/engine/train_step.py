"""One optimiser step: encoders in micro-batches, heads and losses on the whole batch, task weights, mixed precision.

A step costs at most K passes through the heads (one per task, for GradNorm) and one through the encoders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdam_fast.profiling import span
from training.config import Config, OptimConfig
from training.data.loader import Batch
from training.engine.device import select_precision, tf32
from training.engine.distributed.ranks import ONE_RANK, Ranks
from training.engine.gradnorm import GradNorm, backward_tasks
from training.engine.losses import fixed_losses, task_losses, task_names
from training.models.batch_rows import BatchRows
from training.models.model import Model
from training.models.model_outputs import EncoderOutput
from training.models.retrieval_model import RetrievalModel

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Parts in which ranks add up the gradients of the encoders while their backward pass goes on.
BUCKETS = 16
# Modules compiled by torch.compile, one graph each.
COMPILED = ("visual", "text", "bdam", "identity_projection", "clothing_head", "text_projection", "fusion")


class StepResult(NamedTuple):
    """Values of one optimiser step; `losses` (including the gate regularisation) and `norms` are unweighted."""

    loss: float
    losses: dict[str, float]
    weights: dict[str, float]
    norms: dict[str, float]
    # Loss scale (fp16; 1 otherwise), and True if the scaled gradients overflowed, so that the weights did not change.
    scale: float
    skipped: bool


class NonFiniteError(RuntimeError):
    """Raised when one of the losses or a gradient norm, in `values`, is not finite; no weight has changed."""

    def __init__(self, values: dict[str, float]) -> None:
        super().__init__(", ".join(f"{name} {value:g}" for name, value in values.items()))
        self.values = values


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine from 1 towards 0 at `total`; `step` counts from 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def build_optimizer(model: RetrievalModel, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the model's parameter groups."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameter_groups(config.lr), lr=config.lr, weight_decay=config.weight_decay, fused=True)


def configure_model(
    model: RetrievalModel, config: OptimConfig, compiler: str = "inductor", mode: str | None = None
) -> None:
    """Applies `checkpointing` and `compile` to the model in place; parameter names stay.

    compiler, mode: backend and mode of torch.compile.
    """
    if config.checkpointing:
        assert isinstance(model, Model)
        model.visual.checkpoint_layers()
        model.text.checkpoint_layers()
        model.bdam.checkpointing = True
    if config.compile:
        # Several backward passes (one per task) use the same graph; a donated buffer is lost after the first.
        torch._functorch.config.donated_buffer = False
        for name in COMPILED:
            part = getattr(model, name, None)
            if part is not None:
                part.compile(backend=compiler, mode=mode)


def _encoder_norms(model: RetrievalModel) -> list[_BatchNorm]:
    """The batch normalisations of the encoders."""
    return [
        module for part in (model.visual, model.text) for module in part.modules() if isinstance(module, _BatchNorm)
    ]


def micro_batch_warnings(model: RetrievalModel, config: OptimConfig) -> list[str]:
    """A sentence where micro-batches make another step than the undivided one: batch statistics of a trained encoder."""
    if config.accumulate == 1 or not any(p.requires_grad for norm in _encoder_norms(model) for p in norm.parameters()):
        return []
    return [
        f"optim.accumulate {config.accumulate}: an encoder normalises by the statistics of each micro-batch, not of the whole "
        "batch, so that the step is not the undivided one; --optim.checkpointing saves memory and leaves it as it is"
    ]


@contextmanager
def _kept_statistics(model: RetrievalModel) -> Iterator[None]:
    """Leaves the running statistics of the encoders alone; those of the batch still normalise it."""
    following = [norm for norm in _encoder_norms(model) if norm.track_running_stats]
    try:
        for norm in following:
            norm.track_running_stats = False
        yield
    finally:
        for norm in following:
            norm.track_running_stats = True


def random_state(device: torch.device) -> list[Tensor]:
    """States of torch's global generators: CPU, and `device` if it is a GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(state: Sequence[Tensor], device: torch.device) -> None:
    """Restores the result of `random_state`; a GPU state is ignored on a CPU."""
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


class Stepper:
    """Optimiser, gradient scaler and task weights of `model`, which is already on its device, and the training step, of which
    `ranks` may share the work."""

    def __init__(self, config: Config, model: RetrievalModel, ranks: Ranks = ONE_RANK) -> None:
        self.config, self.model, self.ranks = config, model, ranks
        self.device = next(model.parameters()).device
        ranks.prepare(model)
        self.precision = select_precision(config.optim.precision, self.device)
        self.dtype = DTYPES.get(self.precision)
        if self.precision == "fp64":
            model.double()
        self.optimizer = build_optimizer(model, config.optim)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.gradnorm = GradNorm(task_names(config.loss, config.model.fusion.enabled), config.gradnorm)
        self._divide_parameters()
        configure_model(model, config.optim)

    def _divide_parameters(self) -> None:
        self.head_parameters, self.encoder_parameters = self.model.head_parameters(), self.model.encoder_parameters()
        self.parameters = [*self.encoder_parameters, *self.head_parameters]
        self.head_sum = self.ranks.gradient_sum(self.head_parameters)
        self.encoder_sum = self.ranks.gradient_sum(self.encoder_parameters, BUCKETS)

    def state_dict(self) -> dict[str, Any]:
        """State for `load_state_dict`, as tensors and plain values, without the weights of the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "gradnorm": self.gradnorm.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.gradnorm.load_state_dict(state["gradnorm"])

    def set_learning_rate(self, factor: float) -> None:
        """Sets the learning rate of every group to `factor` times its configured rate."""
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = factor * rate

    def run(self, batch: Batch, *, measure: bool) -> StepResult:
        """Runs one optimiser step on the rows of this rank.

        measure: measure the gradient norms and update the task weights (GradNorm).

        Raises NonFiniteError for a loss that is not finite, and for such a gradient norm if the loss scale cannot be lowered.
        """
        self.optimizer.zero_grad(set_to_none=True)
        batch = self._on_device(batch)
        labels = batch.labels
        rows = self.ranks.rows(len(labels.paths), self.config.optim.accumulate)
        parts = self._micro_batches(batch, rows)
        with span("encoders"), tf32(self.device):
            encoded, states = self._encode(parts)
        leaves = replace(encoded.leaves(), ids_B=labels.ids_B, rows=rows)
        with span("heads"), self._autocast():
            features = self.model.heads(leaves)
        loss, backend = self.config.loss, self.config.model.backend
        with span("losses"):
            features = rows.gather_features(features.to_float32())
            tasks = task_losses(features, labels.ids_B, labels.clothing_group_B, loss, backend, labels.has_other_B)
            fixed, weights = fixed_losses(features, loss), self.gradnorm.weights()
            values, regular = _to_floats(tasks), _to_floats(fixed)
        _require_finite(values | regular)
        scale = float(self.scaler.scale(torch.ones((), device=self.device)))
        norms = backward_tasks(
            tasks, weights, fixed, leaves.tensors(), self.head_parameters, measure=measure, scale=scale
        )
        norms = self.ranks.norms(norms)
        if scale <= 1.0:
            _require_finite({f"gradient norm of {name}": norm for name, norm in norms.items()})
        self.head_sum.start()
        with span("backward encoders"), tf32(self.device):
            self._backward(encoded, parts, states, leaves)
        self.encoder_sum.start()
        self.head_sum.wait()
        self.encoder_sum.wait()
        with span("optimiser"):
            skipped = self._update(scale)
        if skipped or not all(map(math.isfinite, norms.values())):
            norms = {}
        if norms:
            with span("gradnorm update"):
                self.gradnorm.update(values, norms)
        total = sum(weights[name] * value for name, value in values.items()) + sum(regular.values())
        return StepResult(total, values | regular, weights, norms, scale, skipped)

    def _on_device(self, batch: Batch) -> Batch:
        batch = batch.to(self.device)
        return replace(batch, images_BCHW=batch.images_BCHW.to(next(self.model.parameters()).dtype))

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def _micro_batches(self, batch: Batch, rows: BatchRows) -> list[Batch]:
        return [batch.part(part) for part in rows.slices] if len(rows.slices) > 1 else [batch]

    def _encode(self, parts: list[Batch]) -> tuple[EncoderOutput, list[list[Tensor]]]:
        """Encodes the whole batch. A single micro-batch keeps its graph; several keep only values and random states."""
        if len(parts) == 1:
            with self._autocast():
                return self.model.encode(parts[0]), []
        encoded, states = [], []
        for part in parts:
            states.append(random_state(self.device))
            # One autocast per micro-batch: weights cached without a graph must not be used by the pass with one.
            with torch.no_grad(), self._autocast():
                encoded.append(self.model.encode(part))
        return _concatenate(encoded), states

    def _backward(
        self, encoded: EncoderOutput, parts: list[Batch], states: list[list[Tensor]], leaves: EncoderOutput
    ) -> None:
        """Backward pass through the encoders; several micro-batches are encoded again, with their first random numbers, and
        without another update of running statistics."""
        if len(parts) == 1:
            self.encoder_sum.follow()
            encoded.backward(leaves)
            return
        after, start = random_state(self.device), 0
        for part, state in zip(parts, states, strict=True) if self.model.encoder_parameters() else ():
            set_random_state(state, self.device)
            # The backward pass too: with checkpointing it runs layers again.
            with _kept_statistics(self.model):
                with self._autocast():
                    encoded = self.model.encode(part)
                if part is parts[-1]:
                    self.encoder_sum.follow()
                encoded.backward(leaves, slice(start, start + len(part.paths)))
            start += len(part.paths)
        set_random_state(after, self.device)

    def _update(self, scale: float) -> bool:
        """Clips and steps; True if the step was skipped because the scaled gradients overflowed."""
        self.scaler.unscale_(self.optimizer)
        # An infinite bound measures without clipping.
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip_norm or math.inf))
        finite = math.isfinite(norm)
        if not finite and scale <= 1.0:
            raise NonFiniteError({"gradient norm": norm})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return not finite


def _concatenate(parts: list[EncoderOutput]) -> EncoderOutput:
    return replace(
        parts[0],
        image_tokens_BPC=torch.cat([part.image_tokens_BPC for part in parts]),
        text_tokens_VBTC=torch.cat([part.text_tokens_VBTC for part in parts], dim=1),
        text_mask_VBT=torch.cat([part.text_mask_VBT for part in parts], dim=1),
        ids_B=torch.cat([part.ids_B for part in parts]),
    )


def _to_floats(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items()}


def _require_finite(values: dict[str, float]) -> None:
    if not all(map(math.isfinite, values.values())):
        raise NonFiniteError(values)
