"""Values of fields that the configuration of a plain dual encoder must have."""

from typing import Any

# What a plain dual encoder has no part for, and InfoNCE of captions, all that it learns from.
DUAL_ENCODER: dict[str, Any] = {
    **{f"model.{name}": "" for name in ("visual.pretrained", "text.pretrained")},
    **{f"model.{name}.enabled": False for name in ("bdam", "fusion")},
    **dict.fromkeys(("loss.triplet", "loss.clothing_matching", "loss.adversarial", "loss.decoupling"), False),
    **dict.fromkeys(("loss.gate_regularisation", "loss.both_captions"), False),
    **dict.fromkeys(("loss.final_triplet", "loss.final_info_nce", "loss.final_matching", "optim.checkpointing"), False),
    "loss.info_nce": True,
    "loss.info_nce_texts": "caption",
    "eval.betas": (0.0,),
}
