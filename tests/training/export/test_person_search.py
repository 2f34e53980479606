"""A run as a folder for others: the same bits, no path of the run's machine, damage and wrong folders named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support import contents
from tests.support.pretrained.folders import save_visual
from tests.support.tiny_run import tiny_config
from training.data.datasets import read_dataset
from training.data.loader import iterate_images, tokenize
from training.engine.checkpoint import load_run
from training.export.__main__ import main
from training.export.person_search import PersonSearch
from training.train import train
from training.utils import cli


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    assert cli.run(main, [str(trained), str(out), "--form", "weights"]) == 0
    return out


def test_scores_have_the_bits_of_the_run(exported: Path, trained: Path) -> None:
    run, ours = load_run(trained), PersonSearch.from_pretrained(exported)
    for name, value in run.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value), name
    records = read_dataset(run.config.data).splits["test"][:5]
    texts = [record.captions[0] for record in records]
    with torch.inference_mode():
        expected_QE = run.model.embed_texts(tokenize(run.tokenizer, texts, run.config.data.text_length))
        ((images_BCHW, _),) = iterate_images(records, run.config.data, 8)
        image = run.model.embed_images(images_BCHW)
        assert image.v_clo_BE is not None
        expected_GE = image.v_id_BE + run.beta * image.v_clo_BE
    assert torch.equal(ours.embed_texts(texts), expected_QE)
    assert torch.equal(ours.embed_images([record.path for record in records], batch_size=8), expected_GE)


def test_saved_again_it_is_the_same_folder(exported: Path, tmp_path: Path) -> None:
    PersonSearch.from_pretrained(exported).save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == {k: v for k, v in contents(exported).items() if k != "README.md"}


def test_files_and_card(exported: Path, trained: Path) -> None:
    names = {"model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json", "README.md"}
    assert names <= contents(exported).keys()
    config = load_run(trained).config
    private = config.data.root.encode()
    assert not any(private in content for content in contents(exported).values())
    preprocessing = json.loads((exported / "preprocessor_config.json").read_text())
    assert preprocessing["size"] == {"height": 32, "width": 16} and preprocessing["image_mean"] == [0.5] * 3
    card = (exported / "README.md").read_text()
    for words in ("## Intended use", "## Limits and risks", "Not evaluated.", "from_pretrained", "cuhk-pedes"):
        assert words in card


def test_the_card_of_an_evaluated_run_has_its_numbers(run_dir: Path, tmp_path: Path) -> None:
    from training.evaluation.run_evaluation import evaluate

    evaluation = evaluate(run_dir)[0]
    assert cli.run(main, [str(run_dir), str(tmp_path / "model"), "--form", "weights"]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"| {evaluation.metrics['R1']:.2f} |" in card and "48 captions as queries, 24 images of 8 people" in card


def test_damage_is_named(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    for name in ("model.safetensors", "tokenizer.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-9] + bytes([whole[-9] ^ 2]) + whole[-8:])
        with pytest.raises(ValueError, match=f"{name} is not the file that was exported; copy the whole folder again"):
            PersonSearch.from_pretrained(folder)
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{name} is missing; copy the whole folder again"):
            PersonSearch.from_pretrained(folder)
        (folder / name).write_bytes(whole)
    values = json.loads((folder / "config.json").read_text())
    values["config"]["model"]["embedding"] = 4
    del values["content_sha256"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold the weights of its config\.json: "):
        PersonSearch.from_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"config\.json is not the configuration of a bdam-person-search model"):
        PersonSearch.from_pretrained(folder)


def test_a_folder_in_use_is_left_alone(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").touch()
    assert cli.run(main, [str(trained), str(tmp_path), "--form", "weights"]) == 2
    assert "already exists and is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_pretrained_encoders_travel_without_their_folders(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    visual = replace(config.model.visual, pretrained=save_visual("dinov2", tmp_path / "private" / "dino"))
    config = replace(config, model=replace(config.model, visual=visual))
    config = replace(config, optim=replace(config.optim, epochs=1, warmup_epochs=0))
    # The dry step goes through a pretrained tower too.
    train(config, tmp_path / "run", check_memory=True)
    shutil.rmtree(tmp_path / "private")
    PersonSearch.of_run(load_run(tmp_path / "run")).save_pretrained(tmp_path / "model")
    assert b"private" not in (tmp_path / "model" / "config.json").read_bytes()
    shutil.rmtree(tmp_path / "run")
    ours = PersonSearch.from_pretrained(tmp_path / "model")
    images = [record.path for record in read_dataset(config.data).splits["test"][:2]]
    assert ours.embed_images(images).shape == (2, 8) and ours.config.model.visual.pretrained == "dino"
