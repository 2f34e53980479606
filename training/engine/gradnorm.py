"""GradNorm: task weights w_k = exp(s_k) that balance gradient norms (paper eq. 5 and 6, readings 16 to 18).

The norm of a weighted loss is w_k times the norm of the loss, so the gradient of eq. (5) with respect to s_k needs no
double backward: d/ds_k |w_k n_k - target_k| = sign(w_k n_k - target_k) w_k n_k, targets taken as constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bdam_fast.profiling import span
from training.config import GradNormConfig


class GradNorm:
    """Weights of `tasks`, plain numbers outside the graph: the weighted sum of the losses does not train them, and eq. (5)
    does not train the model. They sum to the number of tasks. With `enabled` off they stay 1."""

    def __init__(self, tasks: Sequence[str], config: GradNormConfig) -> None:
        self.config = config
        self._log_weights = dict.fromkeys(tasks, 0.0)
        self._first_losses = dict.fromkeys(tasks, 0.0)
        self._moments = {task: (0.0, 0.0) for task in tasks}
        self._steps = 0

    def weights(self) -> dict[str, float]:
        """Weight w_k of each task."""
        return {task: math.exp(s) for task, s in self._log_weights.items()}

    def update(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> None:
        """One step: s -> w = exp(s) -> clip -> renormalise to sum K -> s = log w.

        losses: L_k of this step, unweighted. norms: gradient norm of each, unweighted, on the shared layer. The first
        `warm_steps` calls only average the losses into L_k^0. A task whose norm is 0 has no
        target and keeps its weight. Raises ValueError, before any change, for tasks other than those of the
        constructor and for numbers that are not finite.
        """
        for name, values in (("losses", losses), ("norms", norms)):
            if set(values) != set(self._log_weights):
                raise ValueError(f"GradNorm: {name} must be of the tasks {[*self._log_weights]}, got {[*values]}")
            bad = {task: value for task, value in values.items() if not math.isfinite(value)}
            if bad:
                raise ValueError(f"GradNorm: {name} must be finite numbers, got {bad}")
        if not self.config.enabled:
            return
        self._steps += 1
        if self._steps <= self.config.warm_steps:
            for task, first in self._first_losses.items():
                self._first_losses[task] = first + (losses[task] - first) / self._steps
            return
        self._step(losses, norms)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs, as plain numbers."""
        return {
            "log_weights": dict(self._log_weights),
            "first_losses": dict(self._first_losses),
            "moments": {task: [*moments] for task, moments in self._moments.items()},
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the result of `state_dict`. Raises ValueError when its tasks differ."""
        if set(state["log_weights"]) != set(self._log_weights):
            raise ValueError(
                f"GradNorm: the stored state is of the tasks {[*state['log_weights']]}, expected {[*self._log_weights]}"
            )
        # In the task order of this object: the first task is the reference of the form "paper".
        self._log_weights = {task: float(state["log_weights"][task]) for task in self._log_weights}
        self._first_losses = {task: float(state["first_losses"][task]) for task in self._first_losses}
        # States of the time before Adam have none.
        moments = state.get("moments", {})
        self._moments = {task: tuple(moments.get(task, (0.0, 0.0))) for task in self._moments}
        self._steps = int(state["steps"])

    def _step(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> None:
        config, stepped = self.config, dict(self._log_weights)
        weighted = {task: w * norms[task] for task, w in self.weights().items() if norms[task] > 0}
        if not weighted:
            return
        targets = self._targets(losses, weighted)
        strength = config.alpha if config.form == "paper" else 1.0
        for task, value in weighted.items():
            pull = math.copysign(value, value - targets[task]) if value != targets[task] else 0.0
            # Relative to the mean norm: the penalty of the log weights must not depend on the unit of the norms.
            unit = sum(weighted.values()) / len(weighted) if config.optimizer == "adam" else 1.0
            gradient = strength * pull / unit + 2 * config.log_penalty * self._log_weights[task]
            stepped[task] -= config.lr * (self._adam(task, gradient) if config.optimizer == "adam" else gradient)
        # Clipped before exp, which would overflow after a huge gradient.
        low, high = (math.log(bound) for bound in config.clip)
        clipped = {task: math.exp(min(max(stepped[task], low), high)) for task in weighted}
        # A task at rest keeps its weight: rescaled with the others, that of an adversary at its bound rose to 5.99 of 6.
        resting = sum(math.exp(s) for task, s in self._log_weights.items() if task not in weighted)
        scale = (len(stepped) - resting) / sum(clipped.values())
        self._log_weights |= {task: math.log(w * scale) for task, w in clipped.items()}

    def _adam(self, task: str, gradient: float) -> float:
        """Direction of Adam (beta 0.9, 0.99): of size 1 whatever the size of the norms, which a plain step follows."""
        first, second = self._moments[task]
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        self._moments[task] = first, second
        steps = self._steps - self.config.warm_steps
        root = math.sqrt(second / (1 - 0.99**steps))
        return first / (1 - 0.9**steps) / root if root > 0 else 0.0

    def _targets(self, losses: Mapping[str, float], weighted: Mapping[str, float]) -> dict[str, float]:
        """Target norm of each task with a gradient: its part of all norms times ratio^alpha, or (paper) ratio times the first
        task's norm. `lead` goes to the first task of the run: InfoNCE, and in a row without it the triplet loss."""
        ratios = {t: max(losses[t], 0.0) / max(self._first_losses[t], self.config.floor) for t in weighted}
        mean_ratio = sum(ratios.values()) / len(ratios)
        relative = {t: ratio / mean_ratio if mean_ratio > 0 else 1.0 for t, ratio in ratios.items()}
        if self.config.form == "paper":
            reference = next(iter(weighted.values()))
            return {t: r * reference for t, r in relative.items()}
        leads = {t: self.config.lead if t == next(iter(self._log_weights)) else 1.0 for t in weighted}
        unit = sum(weighted.values()) / sum(leads.values())
        return {t: leads[t] * unit * r**self.config.alpha for t, r in relative.items()}


def backward_tasks(
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    fixed: Mapping[str, Tensor],
    shared: Sequence[Tensor],
    parameters: Sequence[Tensor],
    *,
    measure: bool = True,
    scale: float = 1.0,
) -> dict[str, float]:
    """Adds the gradient of scale * (sum_k w_k L_k + sum of `fixed`) to the .grad of `shared` and `parameters`.

    shared: leaves on which the losses depend, first the layer whose gradients are measured (the visual tokens).
    Returns ||dL_k / d shared[0]|| (L2, unweighted) of each task, 0 where a loss does not depend on it; {} with
    `measure` off, which saves one pass through the heads per task. These passes compute no parameter gradients, so
    each costs about half a backward pass.
    scale: a power of two that keeps float16 gradients from vanishing; the norms are those of the unscaled losses, infinite
    or NaN where a scaled gradient overflows.
    """
    norms: dict[str, float] = {}
    with span("gradnorm norms"):
        for name, loss in losses.items() if measure else ():
            gradient = torch.autograd.grad(scale * loss, shared[0], retain_graph=True, allow_unused=True)[0]
            norms[name] = 0.0 if gradient is None else _norm(gradient) / scale
    terms = [weights[name] * loss for name, loss in losses.items()] + list(fixed.values())
    if terms:
        with span("backward heads"):
            (scale * torch.stack(terms).sum()).backward(inputs=[*shared, *parameters])
    return norms


def _norm(gradient: Tensor) -> float:
    """L2 norm, accumulated in float32 or wider: a sum of squares in float16 overflows at 65504."""
    return float(torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32)))
