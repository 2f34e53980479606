"""Data between encoders, heads and losses, and the choice of wrong pairs of a batch.

Shapes: B batch, P patches, T text tokens, V text views, C width of an encoder, E joint embedding, M image-text pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from training.models.batch_rows import ALL_ROWS, BatchRows

T = TypeVar("T", bound="PairFeatures")


@dataclass(frozen=True)
class EncoderOutput:
    """Outputs of the encoders, the inputs of the heads."""

    image_tokens_BPC: Tensor
    # All text views of the batch, from one call of the text encoder.
    text_tokens_VBTC: Tensor
    text_mask_VBT: Tensor
    # Of the whole batch, whichever of its rows the tensors above hold.
    ids_B: Tensor
    rows: BatchRows = ALL_ROWS

    def tensors(self) -> list[Tensor]:
        """[visual tokens, text tokens], the boundary between encoders and heads."""
        return [self.image_tokens_BPC, self.text_tokens_VBTC]

    def leaves(self) -> EncoderOutput:
        """The same values detached from the encoders, as leaves that accumulate gradients."""
        image, text = (x.detach().requires_grad_() for x in self.tensors())
        return replace(self, image_tokens_BPC=image, text_tokens_VBTC=text)

    def backward(self, leaves: EncoderOutput, rows: slice = slice(None)) -> None:
        """One backward pass through the encoders with the gradients accumulated in `leaves`.

        rows: position of the samples of this object in the batch of `leaves`.
        """
        image, text = (leaf.grad for leaf in leaves.tensors())
        grads = [None if image is None else image[rows], None if text is None else text[:, rows]]
        pairs = [(x, g) for x, g in zip(self.tensors(), grads, strict=True) if x.requires_grad and g is not None]
        if pairs:
            torch.autograd.backward([x for x, _ in pairs], [grad for _, grad in pairs])


@dataclass(frozen=True)
class PairFeatures:
    """Embeddings (B, E) of images and their captions, L2-normalised: all that a plain dual encoder has."""

    v_id: Tensor
    t_caption: Tensor
    # Scalar tau.
    temperature: Tensor

    def to_float32(self: T) -> T:
        """The features in float32 or wider: the 16 bits of autocast are too coarse for the losses."""
        values = {k: v for k, v in vars(self).items() if v is not None}
        wide = {
            k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in values.items() if v.is_floating_point()
        }
        return replace(self, **wide)


@dataclass(frozen=True)
class Features(PairFeatures):
    """Features of a batch for losses, evaluation and reports. Embeddings (B, E) are L2-normalised."""

    # Pooled branches, gate (None without one) and gated branches of the decoupling module, (B, C).
    f_id_hat: Tensor
    f_clo_hat: Tensor
    gate: Tensor | None
    f_id: Tensor
    f_clo: Tensor
    # Image embeddings beside that of identity: clothing, and the adversary's projection of f_id to the space of clothing
    # texts.
    v_clo: Tensor
    v_id_hat_clo: Tensor
    # Embeddings of the generated texts, in the space of the captions.
    t_identity: Tensor
    t_clothing: Tensor
    # Of another caption of the image, where it is fused; None otherwise.
    t_other: Tensor | None = None
    # What the adversary's critic finds in f_id, for its own training; None without one.
    v_critic: Tensor | None = None
    # Fused embedding of each image with its own text, and the weights (B, 2) of image and text; None without fusion.
    f_final: Tensor | None = None
    fusion_weights: Tensor | None = None
    # Fused embedding of each wrong pair that the matching head is shown, and the position (B,) of its image in the batch; None
    # where there are no such pairs.
    f_final_wrong: Tensor | None = None
    wrong_images: Tensor | None = None
    # Logits (M,) and labels (M,) of the matching head: B matching pairs, then one mismatched pair per image (none in a
    # batch of one identity); None when the head is off.
    matching_logits: Tensor | None = None
    matching_labels: Tensor | None = None


@dataclass(frozen=True)
class ImageEmbedding:
    """Embeddings of gallery images, L2-normalised."""

    v_id_BE: Tensor
    # None without a clothing branch.
    v_clo_BE: Tensor | None
    # None without a gate.
    gate_BC: Tensor | None


def hard_negatives(similarity_BB: Tensor, ids_B: Tensor) -> Tensor | None:
    """For each row the column of largest similarity among those of another id, (B,) int64. None when the whole batch has one
    id."""
    different_BB = ids_B[:, None] != ids_B[None]
    if not bool(different_BB.any()):
        return None
    return similarity_BB.masked_fill(~different_BB, -torch.inf).argmax(1)


def limited_gradient(x: Tensor, share: float) -> Tensor:
    """x, of whose gradient only `share` passes."""
    return x if share == 1.0 else share * x + (1.0 - share) * x.detach()


def negative_indices(ids_B: Tensor) -> Tensor | None:
    """For each sample the index of one with a different id, (B,) int64: the first one, searched cyclically from half a batch
    further on. Deterministic. None when the whole batch has one id."""
    count = ids_B.shape[0]
    steps = torch.arange(count, device=ids_B.device)
    order_BB = (steps[:, None] + count // 2 + steps[None]) % count
    different_BB = ids_B[:, None] != ids_B[order_BB]
    # With two ids in the batch every row has a different one.
    if not bool(different_BB.any()):
        return None
    return order_BB[steps, different_BB.to(torch.uint8).argmax(1)]
