"""The whole model: encoders, decoupling, joint embedding, fusion. Its forward pass returns features, not losses.

Shapes: B batch, P patches, T text tokens, V text views (the first of VIEWS, in this order), C width of an encoder, E joint
embedding, M image-text pairs shown to the matching head.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdam_fast.profiling import span
from training.config import LossConfig, ModelConfig
from training.models.batch_rows import Pick
from training.models.bdam import Bdam, BdamOutput
from training.models.clothing_head import ClothingHead
from training.models.encoders import TextEncoder, VisualEncoder
from training.models.fusion import Fusion, FusionOutput, LinearMatchingHead, MatchingHead, masked_mean, projection
from training.models.model_outputs import (
    EncoderOutput,
    Features,
    ImageEmbedding,
    hard_negatives,
    limited_gradient,
    negative_indices,
)
from training.models.retrieval_model import RetrievalModel

if TYPE_CHECKING:
    from training.data.loader import Batch, TextBatch

VIEWS = ("caption", "identity", "clothing", "other")
# Texts of a step are encoded in this many parts by length, of this many texts at least: 256 captions and descriptions of
# 15 to 48 words are 12,288 tokens in one part, 8,400 in four.
TEXT_PARTS, LEAST_PART = 4, 32


class Model(RetrievalModel):
    """Model of the paper's figure 2, in the readings of the configurations.

    The fused text is of the kind of the text of InfoNCE: the identity text if `info_nce_texts` is "identity" (paper 3.4),
    otherwise a caption, because queries are captions.

    towers: descriptions of pretrained encoders, as `towers` returns them, to build these without their weights. Raises
    RuntimeError or ValueError as the encoders, the decoupling module and the fusion do, and ValueError for a pooling that the
    text encoder cannot have.
    """

    def __init__(
        self,
        config: ModelConfig,
        loss: LossConfig,
        image_size: tuple[int, int],
        vocab_size: int,
        pad_id: int,
        text_length: int,
        towers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(loss)
        self.config, towers = config, towers or {}
        self.visual: VisualEncoder = VisualEncoder(config.visual, image_size, towers.get("visual", ""))
        text = (vocab_size, pad_id, text_length, config.text_adapter_layers, towers.get("text", ""))
        self.text: TextEncoder = TextEncoder(config.text, *text)
        if self.text.is_causal and config.text_pooling == "cls":
            raise ValueError(
                f"model.text_pooling must be 'mean' for {config.text.pretrained!r}: the first token of a CLIP text encoder has "
                "read nothing of the text"
            )
        image_width, text_width, out = self.visual.width, self.text.width, config.embedding
        self.bdam = Bdam(image_width, config.bdam)
        self.identity_projection = nn.Sequential(
            nn.Linear(image_width, out), nn.GELU(), projection(out, out, config.batch_norm)
        )
        self.clothing_head = ClothingHead(image_width, out, loss.adversarial_mode)
        self.text_projection = projection(text_width, out, config.batch_norm)
        self.fusion = self.matching_head = None
        if config.fusion.enabled:
            self.fusion = Fusion(image_width, text_width, config.fusion, out, config.backend, config.batch_norm)
            head = MatchingHead if loss.matching_form == "dot" else LinearMatchingHead
            self.matching_head = head(out) if loss.final_matching else None
        self.fused_view = VIEWS.index("identity" if loss.info_nce_texts == "identity" else loss.final_text)
        # The other caption is encoded only where it is fused.
        self.views = VIEWS if config.fusion.enabled and self.fused_view == 3 else VIEWS[:3]

    def encode(self, batch: Batch) -> EncoderOutput:
        """Runs both encoders on the images and the text views of a step."""
        views = [batch.captions, batch.identity, batch.clothing, batch.other][: len(self.views)]
        input_ids = torch.cat([view.input_ids_BT for view in views])
        mask = torch.cat([view.attention_mask_BT for view in views])
        # In this order the backward pass comes to the word vectors, which are large, early: their sum over ranks is hidden.
        with span("visual encoder"):
            image = self.visual(batch.images_BCHW)
        with span("text encoder"):
            tokens = self._encode_texts(input_ids, mask)
        split = (len(views), batch.images_BCHW.shape[0])
        return EncoderOutput(image, tokens.unflatten(0, split), mask.unflatten(0, split), batch.ids_B)

    def heads(self, encoded: EncoderOutput) -> Features:
        """Runs everything after the encoders."""
        with span("bdam"):
            image = self.bdam(encoded.image_tokens_BPC)
        v_clo, v_id_hat_clo, v_critic = self.clothing_head(image.f_id_BC, image.f_clo_hat_BC)
        pooled_VBC = self._pool(encoded.text_tokens_VBTC.flatten(0, 1), encoded.text_mask_VBT.flatten(0, 1))
        pooled_VBC = pooled_VBC.unflatten(0, encoded.text_mask_VBT.shape[:2])
        t_VBE = self._embed_text(pooled_VBC.flatten(0, 1)).unflatten(0, pooled_VBC.shape[:2])
        t_caption, t_identity, t_clothing = t_VBE[:3].unbind(0)
        features = Features(
            f_id_hat=image.f_id_hat_BC,
            f_clo_hat=image.f_clo_hat_BC,
            gate=image.gate_BC,
            f_id=image.f_id_BC,
            f_clo=image.f_clo_BC,
            v_id=self._embed_identity(image),
            v_clo=v_clo,
            v_id_hat_clo=v_id_hat_clo,
            v_critic=v_critic,
            t_other=t_VBE[3] if len(t_VBE) > 3 else None,
            t_caption=t_caption,
            t_identity=t_identity,
            t_clothing=t_clothing,
            temperature=self.temperature(),
        )
        with span("fusion"):
            return self._add_fusion(features, image, encoded, pooled_VBC, t_VBE)

    def embed_images(self, images_BCHW: Tensor) -> ImageEmbedding:
        """Gallery side: both embeddings and the gate of float images (B, 3, H, W)."""
        return self.embed_branches(self.bdam(self.visual(images_BCHW)))

    def embed_branches(self, image: BdamOutput) -> ImageEmbedding:
        """`embed_images` from the output of the decoupling module on."""
        v_clo_BE = self.clothing_head(image.f_id_BC, image.f_clo_hat_BC)[0]
        return ImageEmbedding(self._embed_identity(image), v_clo_BE, image.gate_BC)

    def embed_texts(self, texts: TextBatch) -> Tensor:
        """Query side: L2-normalised text embeddings (B, E)."""
        tokens_BTC = self.text(texts.input_ids_BT, texts.attention_mask_BT)
        return self.embed_tokens(tokens_BTC, texts.attention_mask_BT)

    def embed_tokens(self, tokens_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """`embed_texts` from the output of the text encoder on."""
        return self._embed_text(self._pool(tokens_BTC, mask_BT))

    def fuse(self, images_BCHW: Tensor, texts: TextBatch) -> FusionOutput:
        """f_final and modality weights of B image-text pairs. Raises ValueError when the model has no fusion."""
        if self.fusion is None:
            return super().fuse(images_BCHW, texts)
        tokens_BTC = self.text(texts.input_ids_BT, texts.attention_mask_BT)
        image = self.bdam(self.visual(images_BCHW))
        return self.fuse_parts(self.fused_tokens(image), tokens_BTC, texts.attention_mask_BT)

    def fused_tokens(self, image: BdamOutput) -> Tensor:
        """Image tokens (B, P or 2 P, C) that the fusion reads: of the identity branch, or of both branches."""
        if self.config.fusion.branches == "identity":
            return image.id_tokens_BPC
        return torch.cat([image.id_tokens_BPC, image.clo_tokens_BPC], dim=1)

    def fuse_parts(self, image_tokens_BPC: Tensor, tokens_BTC: Tensor, mask_BT: Tensor) -> FusionOutput:
        """`fuse` from `fused_tokens` and the output of the text encoder on, for a model with a fusion."""
        assert self.fusion is not None
        return self.fusion(image_tokens_BPC, tokens_BTC, mask_BT, self._pool(tokens_BTC, mask_BT))

    def towers(self) -> dict[str, str]:
        """Descriptions of the pretrained encoders, from which a model is built without their weights."""
        found = {"visual": self.visual.description, "text": self.text.description}
        return {name: description for name, description in found.items() if description}

    def backbone_scales(self) -> dict[str, tuple[nn.Module, float]]:
        """The backbones of both encoders with their `lr_scale`, and the adversary's critic if there is one."""
        config, probe = self.config, self.clothing_head.probe
        return {
            "visual": (self.visual.backbone, config.visual.lr_scale),
            "text": (self.text.backbone, config.text.lr_scale),
            **({} if probe is None else {"critic": (probe, self.loss.critic_lr_scale)}),
        }

    def _encode_texts(self, input_ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Tokens (N, T, C), zero in padding; texts of similar length are encoded together, the shorter ones with less padding."""
        parts = min(TEXT_PARTS, len(mask_NT) // LEAST_PART)
        if parts < 2:
            return self.text(input_ids_NT, mask_NT)
        lengths_N = mask_NT.sum(1)
        order_N = lengths_N.argsort(stable=True)
        tokens = []
        for rows in order_N.chunk(parts):
            # Not rows[-1], which would be read from the device as well.
            longest = int(lengths_N[rows[-1:]])
            encoded = self.text(input_ids_NT[rows, :longest], mask_NT[rows, :longest])
            tokens.append(F.pad(encoded, (0, 0, 0, mask_NT.shape[1] - longest)))
        return torch.cat(tokens).index_select(0, order_N.argsort())

    def _pool(self, tokens_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        return tokens_BTC[:, 0] if self.config.text_pooling == "cls" else masked_mean(tokens_BTC, mask_BT)

    def _embed_text(self, pooled_NC: Tensor) -> Tensor:
        return F.normalize(self.text_projection(pooled_NC), dim=-1)

    def _embed_identity(self, image: BdamOutput) -> Tensor:
        return F.normalize(self.identity_projection(image.f_id_BC), dim=-1)

    def _add_fusion(
        self, features: Features, image: BdamOutput, encoded: EncoderOutput, pooled_VBC: Tensor, t_VBE: Tensor
    ) -> Features:
        """Fuses right pairs and, for the matching head, one wrong pair for each, all in one pass."""
        if self.fusion is None:
            return features
        count, share, view = len(encoded.image_tokens_BPC), self.loss.final_gradient, self.fused_view
        image_tokens = limited_gradient(self.fused_tokens(image), share)
        text_parts = [limited_gradient(encoded.text_tokens_VBTC[view], share), encoded.text_mask_VBT[view]]
        text_parts.append(limited_gradient(pooled_VBC[view], share))
        labels_M, t_ME = torch.ones(count, device=encoded.ids_B.device), t_VBE[view]
        wrong = self._wrong_pairs(features, t_VBE[view], encoded) if self.matching_head is not None else None
        if wrong is not None:
            images, texts = wrong
            # Concatenated, not indexed: the gradient of indexing costs 8 of 258 ms of a step of the synthetic recipe.
            image_tokens = torch.cat([image_tokens, images(image_tokens)])
            text_parts = [torch.cat([part, texts(part)]) for part in text_parts]
            labels_M, t_ME = torch.cat([labels_M, torch.zeros_like(labels_M)]), torch.cat([t_ME, texts(t_ME)])
        fused = self.fusion(image_tokens, *text_parts)
        f_final, f_wrong = F.normalize(fused.f_final_BE, dim=-1).tensor_split([count])
        features = replace(features, f_final=f_final, fusion_weights=fused.weights_B2[:count])
        if self.matching_head is None:
            return features
        if wrong is not None:
            own = encoded.rows.own(torch.arange(len(encoded.ids_B), device=f_wrong.device))
            shown = own if images.index_O is None else images.index_O
            features = replace(features, f_final_wrong=f_wrong, wrong_images=shown)
        logits_M = self.matching_head(fused.f_final_BE, limited_gradient(t_ME, share))
        return replace(features, matching_logits=logits_M, matching_labels=labels_M.to(logits_M.dtype))

    @torch.no_grad()
    def _wrong_pairs(self, features: Features, t_fused_BE: Tensor, encoded: EncoderOutput) -> tuple[Pick, Pick] | None:
        """Images and texts of the wrong pairs, chosen in the whole batch; None when there are no wrong pairs."""
        ids_B, rows = encoded.ids_B, encoded.rows
        if self.loss.final_negatives == "next":
            others = negative_indices(ids_B)
            return None if others is None else (rows.pick(None), rows.pick(rows.own(others)))
        similarity_BB = rows.gather(features.v_id + features.v_clo) @ rows.gather(t_fused_BE).T
        texts, images = hard_negatives(similarity_BB, ids_B), hard_negatives(similarity_BB.T, ids_B)
        if texts is None or images is None:
            return None
        own = torch.arange(len(ids_B), device=ids_B.device)
        wrong_text = own % 2 == 0
        chosen = torch.where(wrong_text, own, images), torch.where(wrong_text, texts, own)
        return rows.pick(rows.own(chosen[0])), rows.pick(rows.own(chosen[1]))
