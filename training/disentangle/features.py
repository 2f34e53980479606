"""Features of a split: entangled, both branches, both embeddings, the fused one, and two floors that no training has made.

Shapes: N images, C width of the visual encoder, E joint embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from training.data.datasets import Record
from training.data.loader import iterate_images, tokenize
from training.engine.checkpoint import TrainedModel, build_model
from training.models.encoders import VisualEncoder

# Descriptions, in the order of every table. A caption names clothes and most often the sex: the share of the image alone in
# f_final shows with the caption of another person.
FEATURES = {
    "entangled": "mean of the visual encoder's tokens, before BDAM",
    "f_id": "gated identity branch",
    "f_clo": "gated clothing branch",
    "v_id": "identity embedding, which retrieval uses",
    "v_clo": "clothing embedding",
    "f_final": "image fused with its first caption",
    "f_final_other": "image fused with a caption of another person",
    "colours": "floor: mean colours of the image on a grid of 8 x 4 cells",
    "untrained": "floor: entangled, of the encoder that the run started from",
}
# Rows and columns of the grid.
GRID = (8, 4)


@torch.inference_mode()
def collect(
    trained: TrainedModel, records: Sequence[Record], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, np.ndarray]:
    """Each feature of FEATURES, float32 (N, C) or (N, E), colours (N, 96); without a fusion there is no f_final, with a single
    person no f_final_other."""
    model, config, size = trained.decoupling_model, trained.config, trained.config.eval.batch_size
    device = trained.device
    captions = [record.captions[0] for record in records]
    others = _somebody_else([record.id for record in records])
    texts = {"f_final": captions}
    if others is not None:
        texts["f_final_other"] = [captions[i] for i in others]
    untrained = _untrained(trained)
    own = list[dict[str, torch.Tensor]]()
    for images, part in iterate_images(records, config.data, size, trained.ranks.turns):
        images = images.to(device)
        tokens = model.visual(images)
        branches = model.bdam(tokens)
        embedded = model.embed_branches(branches)
        values = {
            "entangled": tokens.mean(1),
            "f_id": branches.f_id_BC,
            "f_clo": branches.f_clo_BC,
            "v_id": embedded.v_id_BE,
            "v_clo": embedded.v_clo_BE,
            "colours": F.adaptive_avg_pool2d(images, GRID).flatten(1),
        }
        if untrained is not None:
            values["untrained"] = untrained.to(device)(images).mean(1)
        for name, chosen in texts.items() if model.fusion is not None else ():
            text = tokenize(trained.tokenizer, chosen[part], config.data.text_length).to(device)
            text_tokens = model.text(text.input_ids_BT, text.attention_mask_BT)
            fused = model.fuse_parts(model.fused_tokens(branches), text_tokens, text.attention_mask_BT)
            values[name] = fused.f_final_BE
        own.append({name: value.float().cpu() for name, value in values.items()})
        progress(part.stop, len(records))
    parts = trained.ranks.in_order(own)
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in FEATURES if name in parts[0]}


def _untrained(trained: TrainedModel) -> VisualEncoder | None:
    """The visual encoder of the run before its first step, in evaluation mode; torch's random state stays. None where its
    pretrained weights are out of reach: the run does not hold them."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds the cards too.
        torch.default_generator.manual_seed(trained.config.seed)
        try:
            model = build_model(trained.config, trained.tokenizer)
        except RuntimeError:
            return None
    return replace(trained, model=model.eval()).decoupling_model.visual


def _somebody_else(ids: Sequence[int]) -> list[int] | None:
    """Index of an image of another person for each image, searched from half the split further on; None for one person."""
    count = len(ids)
    if len(set(ids)) < 2:
        return None
    steps = [range(i + count // 2, i + count // 2 + count) for i in range(count)]
    return [next(k % count for k in steps[i] if ids[k % count] != ids[i]) for i in range(count)]
