"""Real data sets come with captions only: they can be trained, evaluated and searched before any text is generated."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.commands import run_here
from tests.support.pedes_dataset import ALLOW_COUNTS, as_layout, edit_records, finding_texts, make_pedes
from tests.support.tiny_run import read_lines, tiny_config, tiny_options
from training import evaluate, search, train
from training.config import Config, DataConfig
from training.config.ablations import Row
from training.config.recipes import captions_only, get_recipe
from training.data.datasets import read_dataset
from training.data.suitability import require_other_texts
from training.data.validation.validate import validate_dataset
from training.experiment.jobs import missing_jobs
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


def one_caption(root: Path, images: int = 30) -> Path:
    """Own data in which so many images have one caption, some of them twice, and no generated texts."""

    def change(records: list[dict]) -> None:
        for number, record in enumerate(records[:images]):
            record["captions"] = record["captions"][:1] * (1 + number % 2)

    edit_records(make_pedes(root), change)
    (root / "descriptions.jsonl").unlink()
    return as_layout(root, "own", "records.jsonl")


def test_a_caption_is_not_fused_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the data are called, validate recommends a command that works, and the one without its option is refused."""
    root = one_caption(tmp_path / "data")
    (_, text), *_ = finding_texts(validate_dataset("own", root, ALLOW_COUNTS), "recipes")
    start = f"train cuhk-pedes-captions --data.dataset own --model.fusion.no-enabled --data.root {root}"
    assert f"`{start}`" in text
    tiny_encoders = [f"--model.{encoder}.pretrained=" for encoder in ("visual", "text")]
    words = [
        *start.split()[1:],
        *tiny_options(root),
        *tiny_encoders,
        "--optim.epochs",
        "1",
        "--optim.warmup-epochs",
        "0",
        "--out",
    ]
    refused = [word for word in words if word != "--model.fusion.no-enabled"]
    assert cli.run(train.main, [*refused, str(tmp_path / "refused")]) == 2
    assert (
        "got one caption of each of 18 and no identity text: f_final would be asked for the caption that it is fused with; "
        "train with --model.fusion.no-enabled, or with --loss.no-final-info-nce, or generate texts"
    ) in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "refused").exists()
    assert cli.run(train.main, [*words, str(tmp_path / "run")]) == 0
    assert cli.run(train.main, [*refused[:-1], "--loss.no-final-info-nce", "--out", str(tmp_path / "matching")]) == 0


def test_an_experiment_refuses_it_before_it_writes(tmp_path: Path) -> None:
    root = one_caption(tmp_path / "data")
    rows = [Row("recipe", "full", "own", tiny(root, "own"))]
    with pytest.raises(ValueError, match="loss.final_info_nce needs a second text of the training images of"):
        missing_jobs(rows, [0], tmp_path / "out", Console(quiet=True), run_here)
    assert not (tmp_path / "out").exists()


def test_some_images_of_one_caption_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = one_caption(tmp_path / "data", images=7)
    assert "no-enabled" not in finding_texts(validate_dataset("own", root, ALLOW_COUNTS), "recipes")[0][1]
    train.train(tiny(root, "own"), tmp_path / "run")
    assert "7 of 18 training images have one text only" in " ".join(capsys.readouterr().out.split())


def test_an_identity_text_is_a_second_text(tmp_path: Path) -> None:
    root = make_pedes(tmp_path)
    edit_records(root, lambda records: [record.update(captions=record["captions"][:1]) for record in records])
    config = tiny_config(root)
    require_other_texts(config, read_dataset(config.data))
    with pytest.raises(ValueError, match="needs a second text"):
        require_other_texts(captions_only(config), read_dataset(captions_only(config).data))


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
