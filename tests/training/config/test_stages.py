import dataclasses
import json

import pytest

from training.config import (
    Config,
    DataConfig,
    EncoderConfig,
    EvalConfig,
    FusionConfig,
    GradNormConfig,
    OptimConfig,
    from_dict,
    to_dict,
)


def test_round_trip_through_json():
    config = Config(seed=3, data=DataConfig(image_size=(384, 128)))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: DataConfig(flip=1.5), r"DataConfig.flip must be within \[0, 1\], got 1.5"),
        (
            lambda: DataConfig(image_size=(224, 8)),
            r"DataConfig.image_size must be within \[16, 4096\], got \(224, 8\)",
        ),
        (lambda: DataConfig(workers=1.5), r"DataConfig.workers must be of type int, got 1.5"),
        (lambda: DataConfig(workers=True), r"DataConfig.workers must be of type int, got True"),
        (lambda: FusionConfig(form="token"), r"FusionConfig.form must be one of 'tokens', 'pooled', got 'token'"),
        (lambda: FusionConfig(gate=1), r"FusionConfig.gate must be of type bool, got 1"),
        (
            lambda: FusionConfig(layers_kind="transformer", heads=3),
            r"FusionConfig.width must be a multiple of heads \(3\), got 256",
        ),
        (lambda: EncoderConfig(width=130), r"EncoderConfig.width must be a multiple of heads \(4\), got 130"),
        (lambda: GradNormConfig(clip=(2.0, 1.0)), r"GradNormConfig.clip must be two numbers, the lower one first"),
        (lambda: OptimConfig(epochs=3), r"OptimConfig.warmup_epochs must be less than epochs \(3\), got 5"),
        (lambda: EvalConfig(betas=(0.5,)), r"EvalConfig.betas must be numbers that include 0.0"),
        (lambda: EvalConfig(betas=()), r"EvalConfig.betas must be within"),
    ],
)
def test_bad_values_name_the_field(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_unknown_and_missing_fields_are_errors():
    values = to_dict(Config())
    values["optim"]["momentum"] = 0.9
    with pytest.raises(ValueError, match=r"config.optim: expected the fields .*momentum"):
        from_dict(values)
    del values["optim"]
    with pytest.raises(ValueError, match="config: expected the fields"):
        from_dict(values)


def test_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]
