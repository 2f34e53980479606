"""Matching of the clothing branch with the clothing text, and the adversary of the identity branch (eq. 1, readings 6 and 7).

Shapes: B batch, N texts, E joint embedding, C width of a feature. Losses are scalar fp32 tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import AdversarialMode
from training.engine.device import full_precision

# Penalty of the reader of the mode "ridge", relative to the mean square of a standardised feature.
RIDGE = 1.0
# Lower bound of the variance of the texts that it is judged by.
MIN_VARIANCE = 1e-12


def scaled_products(left_BE: Tensor, right_NE: Tensor, temperature: Tensor | float) -> Tensor:
    """Scaled dot products (B, N) in fp32 or fp64, even under autocast: 16 bits cannot represent 1 - P."""
    with full_precision(left_BE.device):
        wide = torch.promote_types(left_BE.dtype, torch.float32)
        return left_BE.to(wide) @ right_NE.to(wide).T / temperature


def log_match(image_BE: Tensor, text_BE: Tensor, group_B: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    """log P and log(1 - P), each (B,): P is the softmax over the batch's texts of s / tau, summed over the texts of the
    group of the image (reading 7).

    log(1 - P) is the log-sum over the *other* texts minus the log-sum over all: exact where P rounds to 1. In a batch
    of one group P is 1 for all features; both are 0 then, without a gradient.
    """
    logits_BB = scaled_products(image_BE, text_BE, temperature)
    positive_BB = group_B[:, None] == group_B[None]
    total_B = logits_BB.logsumexp(1)
    # The log of an empty sum would be -inf with gradient NaN.
    excluded_BB = positive_BB & ~positive_BB.all()
    log_p_B = logits_BB.masked_fill(~positive_BB, -torch.inf).logsumexp(1) - total_B
    return log_p_B, logits_BB.masked_fill(excluded_BB, -torch.inf).logsumexp(1) - total_B


def clothing_matching(v_clo_BE: Tensor, t_clothing_BE: Tensor, group_B: Tensor, temperature: Tensor | float) -> Tensor:
    """-log P(f^_clo) of the own clothing text (reading 6): trains the clothing branch, its projection and the text, not the
    temperature. `group_B` is equal where clothing texts are."""
    return -log_match(v_clo_BE, t_clothing_BE, group_B, _constant(temperature))[0].mean()


def clothing_adversarial(
    v_clo_BE: Tensor,
    v_id_hat_clo_BE: Tensor,
    t_clothing_BE: Tensor,
    group_B: Tensor,
    temperature: Tensor | float,
    mode: AdversarialMode,
    v_critic_BE: Tensor | None = None,
) -> Tensor:
    """Clothing adversarial loss (eq. 1 and reading 6); `group_B` is equal for equal clothing texts.

    paper: -log(1 - P(f^_clo)), trains everything that it depends on. The other modes act on f_id and never train texts or
    temperature, which could lower the loss without a change of the identity feature.
    intent: -log(1 - P(f_id)). Where P is 1/B its gradient is 1/(B - 1) of that of -log P.
    odds: log P(f_id) - log(1 - P(f_id)), no lower than at chance: below it f_id would name the clothes by avoiding them.
    critic: the same by the constant weights of a probe, which -log P of `v_critic_BE` trains.
    minimax: -log P(f_id) trains the probe, and with reversed sign f_id.
    """
    if mode == "paper":
        return -log_match(v_clo_BE, t_clothing_BE, group_B, _constant(temperature))[1].mean()
    log_p_B, log_not_p_B = log_match(v_id_hat_clo_BE, t_clothing_BE.detach(), group_B, _constant(temperature))
    if mode == "minimax":
        return -log_p_B.mean()
    if mode == "intent":
        return -log_not_p_B.mean()
    chance_B = (group_B[:, None] == group_B[None]).to(log_p_B.dtype).mean(1)
    # In a batch of one group the odds of chance are infinite, and nothing can be above them.
    odds = (log_p_B - log_not_p_B - chance_B.logit()).mean().clamp_min(0)
    if v_critic_BE is None:
        return odds
    return odds - log_match(v_critic_BE, t_clothing_BE.detach(), group_B, _constant(temperature))[0].mean()


def readable_variance(f_BC: Tensor, text_BE: Tensor, ids_B: Tensor, ridge: float = RIDGE) -> Tensor:
    """Share of the variance of the texts' embeddings that ridge regression reads from a feature, 0 where it is negative.

    The regression is solved on one half of the people and judged on the other, both ways: a reader that knew the judged people
    could answer by identity. Channels are standardised, as for the linear probes of the evaluation. 0 for a single person.
    """
    people = ids_B.unique()
    first_B = torch.isin(ids_B, people[: len(people) // 2])
    if len(people) < 2:
        return f_BC.sum() * 0
    with full_precision(f_BC.device):
        x_BC = F.batch_norm(f_BC.to(torch.promote_types(f_BC.dtype, torch.float32)), None, None, training=True)
        text_BE = text_BE.to(x_BC.dtype)
        shares = [_explained(x_BC, text_BE, fitted_B, ridge) for fitted_B in (first_B, ~first_B)]
    return torch.stack(shares).mean().clamp_min(0)


def _explained(x_BC: Tensor, y_BE: Tensor, fitted_B: Tensor, ridge: float) -> Tensor:
    """R^2 on the rows outside `fitted_B` of the ridge regression of y on x that is solved on the rows in it."""
    y_BE = y_BE - y_BE[fitted_B].mean(0)
    x, y, x_new, y_new = x_BC[fitted_B], y_BE[fitted_B], x_BC[~fitted_B], y_BE[~fitted_B]
    mean_C = x.mean(0)
    x, x_new = x - mean_C, x_new - mean_C
    # The kernel form: fewer rows than channels.
    kernel_NN = x @ x.T / x.shape[1] + ridge * torch.eye(len(x), dtype=x.dtype, device=x.device)
    predicted = x_new @ x.T / x.shape[1] @ torch.linalg.solve(kernel_NN, y)
    return 1 - (y_new - predicted).square().sum() / y_new.square().sum().clamp_min(MIN_VARIANCE)


def _constant(temperature: Tensor | float) -> Tensor | float:
    return temperature.detach() if isinstance(temperature, Tensor) else temperature
