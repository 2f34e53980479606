"""The configuration of a run: typed fields, recipes, rows of the paper's tables."""

from training.config.model_stages import Backend, BdamConfig, EncoderConfig, FusionConfig, ModelConfig
from training.config.stages import (
    MAX_PIXELS,
    STYLE_METHODS,
    AdversarialMode,
    Config,
    DataConfig,
    EvalConfig,
    GradNormConfig,
    LossConfig,
    OptimConfig,
    StyleMethod,
)
from training.config.storage import complete, from_dict, to_dict, without_places

__all__ = [
    "AdversarialMode",
    "Backend",
    "BdamConfig",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "EvalConfig",
    "FusionConfig",
    "GradNormConfig",
    "LossConfig",
    "MAX_PIXELS",
    "ModelConfig",
    "OptimConfig",
    "STYLE_METHODS",
    "StyleMethod",
    "complete",
    "from_dict",
    "to_dict",
    "without_places",
]
