"""Real data sets come with captions only: they can be trained, evaluated and searched before any text is generated."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.pedes_dataset import ALLOW_COUNTS, as_layout, make_pedes
from tests.support.tiny_run import read_lines, tiny_config
from training import evaluate, search, train
from training.config import Config, DataConfig
from training.config.recipes import captions_only, get_recipe
from training.data.datasets import read_dataset
from training.data.validation.validate import validate_dataset
from training.utils import cli

FILES = {"cuhk-pedes": "reid_raw.json", "icfg-pedes": "ICFG-PEDES.json", "rstpreid": "data_captions.json"}


def tiny(root: Path, name: str) -> Config:
    config = tiny_config(root)
    config = replace(
        config, data=replace(config.data, dataset=name), optim=replace(config.optim, epochs=1, warmup_epochs=0)
    )
    return captions_only(config)


@pytest.mark.parametrize("name", FILES)
def test_captions_alone_train_evaluate_and_search(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_pedes(tmp_path / "data", {"train": 20, "val": 2, "test": 3})
    if name != "cuhk-pedes":
        as_layout(root, name, FILES[name])
    (root / "descriptions.jsonl").unlink()
    config, run = tiny(root, name), str(tmp_path / "run")
    train.train(config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "captions only, without generated texts" in out
    assert "off: clothing_matching, adversarial, decoupling" in out
    losses = {key for line in read_lines(tmp_path / "run") if line["kind"] == "step" for key in line["losses"]}
    assert losses == {"info_nce", "triplet", "gate", *(() if name == "icfg-pedes" else ("matching",))}
    assert cli.run(evaluate.main, [run]) == 0
    assert cli.run(search.main, [run, "a person in a red shirt", "--k", "2"]) == 0
    assert cli.run(evaluate.main, [run, "--protocol", "gallery-text"]) == 2


def test_texts_that_exist_are_not_read(tmp_path: Path) -> None:
    root = make_pedes(tmp_path)
    (root / "descriptions.jsonl").write_text("not even JSON")
    dataset = read_dataset(tiny(root, "cuhk-pedes").data)
    assert all(record.identity == record.clothing == "" for record in dataset.splits["train"])
    before = dataset.fingerprint
    (root / "descriptions.jsonl").unlink()
    assert read_dataset(tiny(root, "cuhk-pedes").data).fingerprint == before


@pytest.mark.parametrize(
    "name", ["cuhk-pedes-captions", "icfg-pedes-captions", "rstpreid-captions", "synthetic-captions"]
)
def test_the_recipes_need_no_texts(name: str) -> None:
    config = get_recipe(name)
    assert config.data.captions_only and config.recipe == name
    assert config.data.root == get_recipe(name.removesuffix("-captions")).data.root
    assert config.model.fusion.enabled == (name != "icfg-pedes-captions")


@pytest.mark.parametrize("field", ["clothing_matching", "adversarial"])
def test_losses_that_need_texts_are_refused(field: str) -> None:
    config = get_recipe("cuhk-pedes-captions")
    with pytest.raises(ValueError, match=f"loss.{field} must be False with data.captions_only, got True"):
        replace(config, loss=replace(config.loss, **{field: True}))
    with pytest.raises(ValueError, match="loss.info_nce_texts must be 'caption' with data.captions_only"):
        replace(Config(), data=DataConfig(captions_only=True))


def recipes(root: Path) -> tuple[str, str]:
    found = [f for f in validate_dataset("cuhk-pedes", root, ALLOW_COUNTS).findings if f.check == "recipes"]
    assert len(found) == 1
    return found[0].level, found[0].text


def test_validate_and_train_say_what_can_be_trained(tmp_path: Path) -> None:
    root = make_pedes(tmp_path)
    level, text = recipes(root)
    assert level == "ok" and f"`train cuhk-pedes --data.root {root}`" in text and "cuhk-pedes-captions" in text
    lines = (root / "descriptions.jsonl").read_text().splitlines()
    (root / "descriptions.jsonl").write_text("\n".join(lines[1:]))
    assert recipes(root)[0] == "note" and "has no texts of train/0001_0.jpg (1 in all)" in recipes(root)[1]
    (root / "descriptions.jsonl").write_text("{")
    assert recipes(root)[0] == "warning" and "line 1 is not valid JSON" in recipes(root)[1]
    (root / "descriptions.jsonl").unlink()
    level, text = recipes(root)
    assert level == "note" and "trains on the captions alone; there is no descriptions.jsonl" in text
    assert f"python -m training.describe generate cuhk-pedes {root} --out OUT" in text
    with pytest.raises(FileNotFoundError, match="describe generate cuhk-pedes .*; a recipe NAME-captions trains on"):
        read_dataset(DataConfig(root=str(root)))
