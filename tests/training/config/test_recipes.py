from __future__ import annotations

from dataclasses import replace

import pytest

from training.config import Config, from_dict, to_dict
from training.config.recipes import RECIPES, get_recipe, paper_readings


def changed(a: Config, b: Config) -> set[str]:
    """Dotted names of the fields in which two configurations differ."""

    def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
        result: dict[str, object] = {}
        for key, value in values.items():
            result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return result

    left, right = flat(to_dict(a)), flat(to_dict(b))
    return {key for key in left if left[key] != right[key]}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_knows_its_name_and_survives_storage(name: str) -> None:
    config = get_recipe(name)
    assert config.recipe == name
    assert from_dict(to_dict(config)) == config


def test_default_is_the_recommended_reading() -> None:
    assert changed(get_recipe("cuhk-pedes"), Config()) == {"recipe"}
    synthetic = get_recipe("synthetic")
    assert (
        synthetic.loss == Config().loss
        and replace(synthetic.gradnorm, every=1, lr=0.025, warm_steps=20) == Config().gradnorm
    )


@pytest.mark.parametrize(("name", "root"), [("icfg-pedes", "data/ICFG-PEDES"), ("rstpreid", "data/RSTPReid")])
def test_the_other_real_sets_differ_in_the_data_only(name: str, root: str) -> None:
    config = get_recipe(name)
    assert changed(get_recipe("cuhk-pedes"), config) == {"recipe", "data.dataset", "data.root"}
    assert (config.data.dataset, config.data.root) == (name, root)


def test_paper_readings_change_what_the_table_names() -> None:
    assert changed(get_recipe("cuhk-pedes"), get_recipe("cuhk-pedes-paper")) == {
        "recipe",
        "data.image_size",
        "data.images_per_id",
        "data.erase",
        "model.text.trainable",
        "model.text_adapter_layers",
        "model.batch_norm",
        "model.bdam.heads",
        "model.bdam.pre_norm",
        "model.fusion.form",
        "model.fusion.branches",
        "model.fusion.pre_norm",
        "loss.info_nce_texts",
        "loss.info_nce_symmetric",
        "loss.temperature",
        "loss.learn_temperature",
        "loss.captions_to_identity",
        "loss.both_captions",
        "loss.clothing_matching",
        "loss.adversarial_mode",
        "loss.decoupling_measure",
        "loss.hsic_normalise",
        "loss.final_info_nce",
        "loss.final_matching",
        "loss.final_wrong_pairs",
        "loss.final_triplet",
        "loss.triplet_smoothing",
        "loss.final_gradient",
        "gradnorm.form",
        "gradnorm.alpha",
        "gradnorm.lead",
        "gradnorm.optimizer",
        "optim.optimizer",
        "optim.epochs",
        "optim.warmup_epochs",
        "eval.betas",
    }


def test_paper_readings_do_not_depend_on_where_they_start() -> None:
    start = get_recipe("cuhk-pedes")
    moved = replace(
        start,
        loss=replace(start.loss, margin=1.0, gate_weight=1.0, hsic_kernel="rbf", final_triplet=True),
        optim=replace(start.optim, lr=1.0, weight_decay=1.0),
        data=replace(start.data, image_size=(384, 128), batch_size=8),
        model=replace(start.model, text_pooling="cls", bdam=replace(start.model.bdam, self_layers=1, cross_layers=1)),
    )
    assert paper_readings(moved) == paper_readings(start)


def test_synthetic_paper_keeps_the_size_of_synthetic() -> None:
    ours, paper = get_recipe("synthetic"), get_recipe("synthetic-paper")
    assert paper.data.image_size == ours.data.image_size and paper.data.root == ours.data.root
    assert paper.model.text == ours.model.text and paper.model.visual == ours.model.visual
    assert (paper.optim.lr, paper.optim.epochs) == (ours.optim.lr, ours.optim.epochs)
    assert paper.loss == get_recipe("cuhk-pedes-paper").loss


def test_unknown_recipe_names_the_known_ones_and_the_closest() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'sintetic', expected one of synthetic, .*mean synthetic?"):
        get_recipe("sintetic")
    with pytest.raises(ValueError, match="cuhk-pedes-paper, icfg-pedes, rstpreid, synthetic-captions, .*-captions$"):
        get_recipe("xyz")
