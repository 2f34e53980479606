import dataclasses
import functools
import json

import pytest

from training.config import (
    Config,
    DataConfig,
    EncoderConfig,
    EvalConfig,
    FusionConfig,
    GradNormConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    from_dict,
    to_dict,
)
from training.config.storage import BEFORE


def test_round_trip_through_json():
    config = Config(seed=3, data=DataConfig(image_size=(384, 128)))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: DataConfig(flip=1.5), r"DataConfig.flip must be within \[0, 1\], got 1.5"),
        (
            lambda: DataConfig(image_size=(224, 8)),
            r"DataConfig.image_size must be within \[16, 4096\], or 0 0, got \(224, 8\)",
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
        (
            lambda: EvalConfig(betas=(0.0, float("inf"))),
            r"EvalConfig.betas must be finite numbers, got \(0.0, inf\)",
        ),
        (
            lambda: GradNormConfig(clip=(1.0, float("inf"))),
            r"GradNormConfig.clip must be finite numbers, got \(1.0, inf\)",
        ),
        (
            lambda: Config(loss=LossConfig(info_nce=False, triplet=False, final_triplet=True)),
            "Config.loss.final_triplet must be False, like loss.final_info_nce, where loss.triplet and loss.info_nce, of "
            "which they are parts, are off, got True",
        ),
        (lambda: EvalConfig(betas=()), r"EvalConfig.betas must be within"),
    ],
)
def test_bad_values_name_the_field(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_losses_of_the_fusion_may_go_with_those_they_are_parts_of():
    for off in ("info_nce", "triplet"):
        assert Config(loss=LossConfig(final_triplet=True, **{off: False})).loss.final_info_nce
    neither = LossConfig(info_nce=False, triplet=False, final_info_nce=False)
    assert Config(loss=neither).loss.final_matching
    both = dataclasses.replace(neither, final_info_nce=True, final_triplet=True)
    assert not Config(loss=both, model=ModelConfig(fusion=FusionConfig(enabled=False))).model.fusion.enabled


def test_unknown_and_missing_fields_are_errors():
    values = to_dict(Config())
    values["optim"]["momentum"] = 0.9
    with pytest.raises(ValueError, match="config.optim: unknown fields: momentum"):
        from_dict(values)
    del values["optim"]
    with pytest.raises(ValueError, match="config: missing fields: optim"):
        from_dict(values)


@pytest.mark.parametrize(
    ("stage", "field", "value", "text"),
    [
        (None, "seed", "3", "config: Config.seed must be of type int, got '3'"),
        ("optim", "epochs", "3", "config.optim: OptimConfig.epochs must be of type int, got '3'"),
        ("optim", "precision", 16, "config.optim: OptimConfig.precision must be one of 'auto', 'fp32', "),
        ("data", "image_size", 64, "config.data.image_size must be a list of 2 ints, got 64"),
        ("data", "image_size", [64], r"config.data.image_size must be a list of 2 ints, got \[64\]"),
        ("data", "image_size", [64, "32"], "config.data.image_size must be a list of 2 ints, got"),
        ("eval", "betas", [True], "config.eval.betas must be a list of any number of floats, got"),
        ("model", "bdam", [], r"config.model.bdam must be an object with the fields of BdamConfig, got \[\]"),
    ],
)
def test_wrong_values_of_a_stored_configuration_are_named(stage, field, value, text):
    values = to_dict(Config())
    (values[stage] if stage else values)[field] = value
    with pytest.raises(ValueError, match=text):
        from_dict(values)


def test_a_configuration_of_an_earlier_version_means_what_it_meant():
    """Fields that it lacks take the value of that time, which is not always today's default."""
    values = json.loads(json.dumps(to_dict(Config())))
    for path in BEFORE:
        *stages, name = path.split(".")
        functools.reduce(lambda stage, key: stage[key], stages, values).pop(name)
    del values["loss"]["clothing_matching"]
    config = from_dict(values)
    assert config.loss.caption_positives == "identity" and config.loss.final_text == "caption"
    assert (
        config.loss.captions_to_identity == 1.0 and not config.loss.both_captions and config.loss.final_gradient == 1.0
    )
    assert (config.gradnorm.optimizer, config.gradnorm.lead) == ("plain", 1.0)
    assert (config.model.visual.stem, config.model.text.feed_forward) == ("plain", 4)
    # The adversary's switch was that of the matching too, of which eq. (1) has none.
    for mode, on, matching in (("intent", True, True), ("intent", False, False), ("paper", True, False)):
        values["loss"] |= {"adversarial_mode": mode, "adversarial": on}
        assert from_dict(values).loss.clothing_matching == matching
    assert "clothing_matching" not in values["loss"]
    for broken in (None, {"loss": None}, {"model": {"visual": 3}}):
        with pytest.raises(ValueError, match="^config"):
            from_dict(broken)


def test_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]
