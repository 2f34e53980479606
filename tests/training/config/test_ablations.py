"""The rows of the tables: what each changes, and which of them are one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.config.test_recipes import changed
from training.config import STYLE_METHODS
from training.config.ablations import ABLATIONS, FOLDERS, FULL, PLAIN, PRINTED, TITLES, alongside, run_key, table_rows
from training.config.recipes import ROWS, get_recipe, with_row

CHANGES = {
    "no-bdam": {"model.bdam.enabled"},
    "no-cross-attention": {"model.bdam.cross_attention"},
    "no-gate": {"model.bdam.gate"},
    "shallow": {"model.bdam.self_layers"},
    "no-fusion": {"model.fusion.enabled"},
    "no-mamba": {"model.fusion.layers_kind"},
    "no-fusion-gate": {"model.fusion.gate"},
    "no-alignment": {"model.fusion.alignment"},
    "no-info-nce": {"loss.info_nce"},
    "no-triplet": {"loss.triplet"},
    "no-clothing-matching": {"loss.clothing_matching"},
    "no-adversarial": {"loss.adversarial"},
    "no-decoupling": {"loss.decoupling"},
    "no-gate-regularisation": {"loss.gate_regularisation"},
    "transformer": {"model.fusion.layers_kind", "model.fusion.layers"},
    "adversary-paper": {"loss.adversarial_mode", "loss.clothing_matching"},
    "adversary-intent": {"loss.adversarial_mode"},
    "adversary-odds": {"loss.adversarial_mode"},
    "adversary-minimax": {"loss.adversarial_mode"},
    "captions-of-everybody": {"loss.caption_positives"},
    "decoupling-hsic": {"loss.decoupling_measure"},
    "captions-of-identity": {"loss.info_nce_texts"},
    **{f"style-{method}": {"data.descriptions"} for method in STYLE_METHODS},
}
# What the recipe of the paper has already.
PAPER = {"adversary-paper", "decoupling-hsic", "no-clothing-matching"}


@pytest.mark.parametrize("base", ["synthetic-tables", "cuhk-pedes", "cuhk-pedes-paper"])
@pytest.mark.parametrize("row", ROWS)
def test_a_row_changes_one_thing(base: str, row: str) -> None:
    full, config = get_recipe(base), get_recipe(f"{base}/{row}")
    there = base == "cuhk-pedes-paper" and row in PAPER
    assert changed(full, config) == (set() if there else CHANGES[row]) | {"recipe"}
    assert config.recipe == f"{base}/{row}" and (run_key(config) == run_key(full)) == there


def test_shallow_is_the_paper_s_three_of_six_layers() -> None:
    assert get_recipe("cuhk-pedes").model.bdam.self_layers == 6
    assert get_recipe("cuhk-pedes/shallow").model.bdam.self_layers == 3
    with pytest.raises(ValueError, match=r"row shallow: the recipe must have at least 2 layers .*, got 1"):
        get_recipe("synthetic/shallow")


def test_every_row_is_in_a_table_and_the_full_model_is_one_run() -> None:
    rows = table_rows(list(ABLATIONS), get_recipe("synthetic-tables"))
    assert {row.name for row in rows} == {FULL, PRINTED, PLAIN, *ROWS}
    assert len({row.key for row in rows if row.name == FULL}) == 1
    assert len({row.key for row in rows}) == 3 + len(ROWS) == 32
    assert len({row.key for row in rows if row.name == "no-mamba"}) == 1
    assert set(ABLATIONS) | {"table5"} == set(TITLES)


@pytest.mark.parametrize(
    ("name", "recipe", "tables"),
    [
        (PRINTED, "synthetic-paper", ["table1", "table2", "table3"]),
        (PLAIN, "synthetic-baseline", ["table1", "table2", "table3", "readings"]),
    ],
)
def test_other_recipes_are_rows_of_tables(name: str, recipe: str, tables: list[str]) -> None:
    base = get_recipe("synthetic-tables")
    base = replace(base, data=replace(base.data, root="here"), optim=replace(base.optim, epochs=9))
    rows = [row for row in table_rows(list(ABLATIONS), base) if row.name == name]
    assert [row.table for row in rows] == tables and len({row.key for row in rows}) == 1
    config = rows[0].config
    assert config.recipe == recipe and changed(get_recipe(recipe), config) == {"data.root", "optim.epochs"}
    assert (config.data.root, config.optim.epochs) == ("here", 9)
    assert name not in {row.name for row in table_rows(list(ABLATIONS), get_recipe("cuhk-pedes"))}


def test_a_recipe_beside_one_of_a_single_epoch_has_no_warm_up() -> None:
    base = get_recipe("synthetic-tables")
    short = replace(base, optim=replace(base.optim, epochs=1, warmup_epochs=0))
    assert alongside(short, "synthetic-baseline").optim.warmup_epochs == 0


def test_a_run_s_key_ignores_name_seed_and_places_only() -> None:
    config = get_recipe("synthetic-tables")
    assert run_key(replace(config, recipe="other", seed=7)) == run_key(config)
    assert run_key(replace(config, optim=replace(config.optim, lr=1e-5))) != run_key(config)
    moved = replace(config.data, root="elsewhere", cache="cache")
    assert run_key(replace(config, data=moved)) == run_key(config)
    texts = [replace(config.data, root=root, descriptions=f"{root}/texts.jsonl") for root in ("a", "elsewhere/b")]
    keys = {run_key(replace(config, data=data)) for data in texts}
    assert len(keys) == 1 and run_key(config) not in keys
    assert run_key(replace(config, data=replace(texts[0], root="c"))) not in keys, "texts outside the data folder stay"


def test_the_three_data_sets_are_the_rows_of_table_5() -> None:
    rows = table_rows(["table5"], get_recipe("cuhk-pedes"))
    assert [(row.name, row.label) for row in rows] == list(FOLDERS.items()) and len(rows) == 3
    assert [row.config.data.dataset for row in rows] == list(FOLDERS)
    assert [row.config.data.root for row in rows] == ["data/CUHK-PEDES", "data/ICFG-PEDES", "data/RSTPReid"]
    # The run of a row is that of the recipe of its name.
    assert [row.key for row in rows] == [run_key(get_recipe(row.name)) for row in rows]
    moved = table_rows(["table5"], get_recipe("cuhk-pedes"), Path("/sets"))
    assert moved[0].config.data.root == "/sets/CUHK-PEDES"


def test_unknown_rows_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown row 'no-mambo', expected one of no-bdam, .*; did you mean no-mamba?"):
        get_recipe("synthetic/no-mambo")
    with pytest.raises(ValueError, match="unknown row ''"):
        with_row(get_recipe("synthetic"), "")
