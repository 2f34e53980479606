"""Every loss as a pure function of features and ids (paper 3.2 and 3.5, readings 1 to 9 and 15); those of clothing are in
`adversary`.

Shapes: B batch, N texts, E joint embedding, C width, M image-text pairs. Losses are scalar fp32 tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import bdam_fast
from training.config import Backend, LossConfig
from training.engine.adversary import (
    clothing_adversarial,
    clothing_matching,
    readable_variance,
    scaled_products,
)
from training.models.model_outputs import Features, PairFeatures, limited_gradient


def _soft_cross_entropy(logits_BN: Tensor, positive_BN: Tensor) -> Tensor:
    """Cross-entropy against the uniform distribution over each row's positives, mean over rows."""
    positive = positive_BN.to(logits_BN.dtype)
    return -((logits_BN.log_softmax(1) * positive).sum(1) / positive.sum(1)).mean()


def info_nce(
    image_BE: Tensor,
    text_BE: Tensor,
    ids_B: Tensor,
    temperature: Tensor | float,
    *,
    symmetric: bool,
    positives: Literal["own", "identity"] = "identity",
) -> Tensor:
    """InfoNCE of embeddings (eq. 3; text i belongs to image i): texts L2-normalised, images too or sums of L2-normalised ones.

    symmetric: image to text and text to image, averaged. positives: "identity", every pair of one id, each row's target
    uniform over its positives; "own", pair (i, i), the other pairs of its id left out of both sums. Not symmetric: image to
    text with only pair (i, i) as positive and all others as negatives, as printed.
    """
    logits_BB = scaled_products(image_BE, text_BE, temperature)
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    if not symmetric:
        return F.cross_entropy(logits_BB, own_B)
    positive_BB = ids_B[:, None] == ids_B[None]
    if positives == "own":
        logits_BB = logits_BB.masked_fill(positive_BB & (own_B[:, None] != own_B), -torch.inf)
        return (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2
    return (_soft_cross_entropy(logits_BB, positive_BB) + _soft_cross_entropy(logits_BB.T, positive_BB)) / 2


def triplet(embedding_BE: Tensor, ids_B: Tensor, margin: float, smoothing: float = 0.0) -> Tensor:
    """Triplet loss on squared L2 distances d (eq. 4); mean over the anchors with a sample of their id and one of another, 0 when
    there are none.

    smoothing 0: batch-hard, the farthest sample of the id and the nearest of another. s > 0: a smooth maximum over all
    others, s log(1 + sum_n exp((d_p - d_n + margin) / s)), averaged over the samples p of the id.
    """
    if smoothing > 0:
        return _smooth_triplet(embedding_BE, ids_B, margin, smoothing)
    with torch.no_grad():
        distance_BB = torch.cdist(embedding_BE, embedding_BE, compute_mode="donot_use_mm_for_euclid_dist")
        same_BB = ids_B[:, None] == ids_B[None]
        positive_BB = same_BB & ~torch.eye(len(ids_B), dtype=torch.bool, device=ids_B.device)
        valid_B = positive_BB.any(1) & ~same_BB.all(1)
        farthest_B = distance_BB.masked_fill(~positive_BB, -1).argmax(1)[valid_B]
        nearest_B = distance_BB.masked_fill(same_BB, torch.inf).argmin(1)[valid_B]
    if not bool(valid_B.any()):
        return embedding_BE.sum() * 0
    anchor = embedding_BE[valid_B]
    to_positive = (anchor - embedding_BE[farthest_B]).square().sum(1)
    to_negative = (anchor - embedding_BE[nearest_B]).square().sum(1)
    return (to_positive - to_negative + margin).clamp_min(0).mean()


def _smooth_triplet(embedding_BE: Tensor, ids_B: Tensor, margin: float, smoothing: float) -> Tensor:
    same_BB = ids_B[:, None] == ids_B[None]
    positive_BB = same_BB & ~torch.eye(len(ids_B), dtype=torch.bool, device=ids_B.device)
    valid_BB = positive_BB & ~same_BB.all(1, keepdim=True)
    if not bool(valid_BB.any()):
        return embedding_BE.sum() * 0
    square_B = embedding_BE.square().sum(1)
    distance_BB = square_B[:, None] + square_B[None] - 2 * embedding_BE @ embedding_BE.T
    nearest_B = torch.logsumexp((-distance_BB / smoothing).masked_fill(same_BB, -torch.inf), dim=1, keepdim=True)
    loss_BB = smoothing * F.softplus((distance_BB + margin) / smoothing + nearest_B)
    weight_BB = valid_BB / valid_BB.sum(1, keepdim=True).clamp_min(1)
    return torch.where(valid_BB, loss_BB, 0).mul(weight_BB).sum() / valid_BB.any(1).sum()


def hsic_decoupling(
    f_id_BC: Tensor,
    f_clo_BC: Tensor,
    *,
    measure: Literal["hsic", "cka"],
    normalise: bool,
    kernel: Literal["linear", "rbf"],
    backend: Backend,
) -> Tensor:
    """HSIC of the gated features (eq. 2), L2-normalised first if `normalise` (reading 8).

    "cka": unbiased HSIC over the geometric mean of the HSIC of each feature with itself, 0 where negative (Nguyen et al., Do Wide
    and Deep Networks Learn the Same Things?, ICLR 2021). HSIC alone falls with the variance of the features, dependent
    or not: training with it leaves CKA unchanged.
    """
    if normalise:
        f_id_BC, f_clo_BC = F.normalize(f_id_BC, dim=1), F.normalize(f_clo_BC, dim=1)
    if measure == "hsic":
        return bdam_fast.hsic(f_id_BC, f_clo_BC, kernel=kernel, backend=backend)
    return bdam_fast.cka(f_id_BC, f_clo_BC, kernel=kernel, backend=backend).clamp_min(0)


def gate_regularisation(gate_BC: Tensor) -> Tensor:
    """Mean of (g - 0.5)^2 (reading 9)."""
    return (gate_BC - 0.5).square().mean()


def matching(logits_M: Tensor, labels_M: Tensor) -> Tensor:
    """Binary cross-entropy of the image-text-matching head (reading 15); matching and mismatched pairs have the same weight."""
    matched = labels_M > 0.5
    value = F.binary_cross_entropy_with_logits(logits_M, labels_M, reduction="none")
    parts = [value[mask].mean() for mask in (matched, ~matched) if bool(mask.any())]
    return torch.stack(parts).mean()


def task_names(config: LossConfig, fusion: bool) -> list[str]:
    """Names of the losses that GradNorm balances, in the order of eq. (6); `fusion`: the model has a fusion module."""
    switches = {
        "info_nce": config.info_nce,
        "triplet": config.triplet,
        "clothing": config.clothing_matching,
        "adversarial": config.adversarial,
        "decoupling": config.decoupling,
        "matching": config.final_matching and fusion,
    }
    return [name for name, on in switches.items() if on]


def task_losses(
    features: PairFeatures,
    ids_B: Tensor,
    clothing_group_B: Tensor,
    config: LossConfig,
    backend: Backend,
    has_other_B: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses that GradNorm balances, with the names of `task_names`. "info_nce" averages over the texts of reading 1;
    for "info_nce" and "triplet" the same loss on f_final is added where reading 15 requires it. PairFeatures have InfoNCE of the
    captions alone. has_other_B: as in `Batch`."""
    if not isinstance(features, Features):
        images, captions, symmetric = features.v_id, features.t_caption, config.info_nce_symmetric
        options: dict[str, Any] = {"symmetric": symmetric, "positives": config.caption_positives}
        return {"info_nce": info_nce(images, captions, ids_B, features.temperature, **options)}
    return _decoupling_losses(features, ids_B, clothing_group_B, config, backend, has_other_B)


def _info_nce_of_texts(features: Features, ids_B: Tensor, config: LossConfig, has_other_B: Tensor | None) -> Tensor:
    """InfoNCE over the texts of reading 1, with that of f_final where reading 15 requires it."""
    f, tau, symmetric = features, features.temperature, config.info_nce_symmetric

    def own(image: Tensor) -> Tensor:
        """InfoNCE of images and their captions, the other ones too if the field says so."""

        def loss(image: Tensor, text: Tensor, ids: Tensor) -> Tensor:
            return info_nce(image, text, ids, tau, symmetric=symmetric, positives=config.caption_positives)

        first = loss(image, f.t_caption, ids_B)
        if not config.both_captions or f.t_other is None:
            return first
        if has_other_B is None:
            return torch.stack([first, loss(image, f.t_other, ids_B)]).mean()
        # What is fused in place of a second caption is no caption: of such an image the first one counts alone.
        rows = has_other_B.nonzero()[:, 0]
        if not len(rows):
            return first
        share = len(rows) / len(ids_B)
        return (first + share * loss(image[rows], f.t_other[rows], ids_B[rows])) / (1.0 + share)

    # The identity is shared by all images of a person, a caption is not.
    def identity() -> Tensor:
        return info_nce(f.v_id, f.t_identity, ids_B, tau, symmetric=symmetric)

    scored = limited_gradient(f.v_id, config.captions_to_identity) + f.v_clo
    kinds: dict[str, list[Callable[[], Tensor]]] = {
        "identity": [identity],
        "caption": [lambda: own(f.v_id)],
        "both": [lambda: own(f.v_id), identity],
        "scored": [lambda: own(scored), identity],
    }
    # Each kind of text weighs the same, whatever the number of its texts.
    total = torch.stack([kind() for kind in kinds[config.info_nce_texts]]).mean()
    if features.f_final is not None and config.final_info_nce:
        total = total + _info_nce_of_fusion(features, ids_B, config)
    return total


def _info_nce_of_fusion(features: Features, ids_B: Tensor, config: LossConfig) -> Tensor:
    """InfoNCE of f_final against the caption of its image that was not fused, for the wrong pairs too if the field says so."""
    f = features
    options: dict[str, Any] = {"symmetric": config.info_nce_symmetric, "positives": config.caption_positives}
    assert f.f_final is not None
    value = info_nce(f.f_final, f.t_caption, ids_B, f.temperature, **options)
    if not config.final_wrong_pairs or f.f_final_wrong is None:
        return value
    captions, ids = f.t_caption[f.wrong_images], ids_B[f.wrong_images]
    return (value + info_nce(f.f_final_wrong, captions, ids, f.temperature, **options)) / 2


def _decoupling_losses(
    features: Features,
    ids_B: Tensor,
    clothing_group_B: Tensor,
    config: LossConfig,
    backend: Backend,
    has_other_B: Tensor | None,
) -> dict[str, Tensor]:
    """The losses of `task_names` for a model with both branches."""

    def distances() -> Tensor:
        total = triplet(features.v_id, ids_B, config.margin, config.triplet_smoothing)
        if features.f_final is not None and config.final_triplet:
            total = total + triplet(features.f_final, ids_B, config.margin, config.triplet_smoothing)
        return total

    def clothing() -> Tensor:
        return clothing_matching(features.v_clo, features.t_clothing, clothing_group_B, features.temperature)

    def adversary() -> Tensor:
        f, mode = features, config.adversarial_mode
        if mode == "ridge":
            return readable_variance(f.f_id, f.t_clothing.detach(), ids_B)
        views = (f.v_clo, f.v_id_hat_clo, f.t_clothing)
        return clothing_adversarial(*views, clothing_group_B, f.temperature, mode, f.v_critic)

    def decouple() -> Tensor:
        f, measure, normalise = features, config.decoupling_measure, config.hsic_normalise
        options: dict[str, Any] = {"kernel": config.hsic_kernel, "backend": backend}
        return hsic_decoupling(f.f_id, f.f_clo, measure=measure, normalise=normalise, **options)

    def match() -> Tensor:
        assert features.matching_logits is not None and features.matching_labels is not None
        return matching(features.matching_logits, features.matching_labels)

    functions: dict[str, Callable[[], Tensor]] = {
        "info_nce": lambda: _info_nce_of_texts(features, ids_B, config, has_other_B),
        "triplet": distances,
        "clothing": clothing,
        "adversarial": adversary,
        "decoupling": decouple,
        "matching": match,
    }
    return {name: functions[name]() for name in task_names(config, features.f_final is not None)}


def fixed_losses(features: PairFeatures, config: LossConfig) -> dict[str, Tensor]:
    """Losses with a fixed weight, weight included: {"gate": ...}, or {} without a gate or when it is off."""
    if not config.gate_regularisation or not isinstance(features, Features) or features.gate is None:
        return {}
    return {"gate": config.gate_weight * gate_regularisation(features.gate)}
