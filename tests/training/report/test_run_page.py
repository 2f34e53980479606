"""The page of a run, from a folder of made-up numbers in the format that training and evaluation write."""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.fake_run import CHANCE, TASKS, make_run
from tests.support.html import Page
from tests.support.pedes_dataset import make_pedes
from training import train as train_command
from training.config import command_line, to_dict
from training.config.recipes import get_recipe
from training.evaluation.run_folder import read_run
from training.report import config_rows, plots
from training.report.__main__ import main
from training.report.run_page import build_page, write_page
from training.utils import cli


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return make_run(folder / "run", make_pedes(folder / "data", {"train": 1, "val": 1, "test": 6}))


@pytest.fixture(scope="module")
def html(made):
    return build_page(read_run(made))


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


def edit(run: Path, **values) -> Path:
    """Changes entries of eval.json; None removes one."""
    path = run / "eval.json"
    evaluation = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in evaluation.items() if value is not None}))
    return run


def page_of(run: Path) -> Page:
    return Page(build_page(read_run(run)))


def test_page_is_well_formed_self_contained_and_small(html):
    page = Page(html)
    assert page.open == []
    assert len(html) < 1_500_000
    links = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "xlink:href")]
    assert links and all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    assert not re.search(r"url\((?!#)|@import|#0[123]0[123]0[0-9]", html)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = {link[1:] for link in links if link.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used and used <= set(ids)


def test_page_shows_the_numbers_of_the_run(html):
    text = Page(html).words()
    assert "β = 0.5 chosen on validation 37.50 65.25 79.00 31.50 12.25" in text
    assert "β = 0 identity embedding only 22.50 44.00 61.00 20.00 7.50" in text
    assert "chance exact, random order 2.50 12.00 23.00 4.20 0.00" in text
    assert "times chance β = 0.5 15.0× 5.4× 3.4× 7.5× –" in text
    assert "each of the 36 captions of the split is a query" in text and "all 18 images (6 people)" in text
    assert "Some scores tie" in text
    assert "selective_scan cpu 12,345 12,345" in text and "selective_scan reference 7 0" in text
    assert "ab" * 32 in text and "301.25 s" in text and "1,234 MB" in text and "checkpoint" in text
    assert "data.image_size" in text and "480 steps; each point is the mean of about 3 steps" in text


def test_untied_run_with_beta_zero(run):
    text = page_of(edit(run, ties=False, beta=0.0)).words()
    assert "No scores tie." in text and "β = 0 chosen on validation 37.50" in text


def test_right_images_are_marked_and_counted(made, html):
    page, evaluation = Page(html), json.loads((made / "eval.json").read_text())
    shown = [result for example in evaluation["examples"][:10] for result in example["results"]]
    right = sum(result["correct"] for result in shown)
    images = [a for tag, a in page.tags if tag == "img"]
    assert 0 < right < len(shown) == len(images) == 100
    assert sum(a["alt"].endswith("right person") for a in images) == right
    assert [a.get("class") for tag, a in page.tags if tag == "li"].count("right") == right
    assert page.text.count("✓") == right + 1
    described = sum(r["file_path"] == e["file_path"] for e in evaluation["examples"][:10] for r in e["results"])
    assert page.text.count("described") == described + len(re.findall("“described”|described image", page.words()))


def test_every_plot_is_there_and_named(html):
    names = [a["aria-label"] for tag, a in Page(html).tags if tag == "svg"]
    losses = ["total (weighted) loss", *(f"{name} loss" for name in (*TASKS, "gate"))]
    gates = ["Identity gate g", "Clothing gate 1 − g", "Fusion weight of the image", "Fusion weight of the text"]
    assert names == [*losses, "task weights", "gradient norms", "validation metrics", *gates]


def test_best_validation_is_named(made, html):
    best = max(read_run(made).log.validations, key=lambda line: line["R1"])
    assert f"Highest R-1: {best['R1']:.2f} at epoch {best['epoch']}" in Page(html).words()
    assert "averaged" not in Page(html).words()


@pytest.mark.parametrize(
    ("averaged", "words"),
    [
        ({3: 99.5}, "Highest R-1: 99.50 of the averaged weights at epoch 3"),
        ({2: 0.5}, "Highest R-1: {value:.2f} of the weights themselves at epoch {epoch}"),
    ],
)
def test_the_best_weights_may_be_the_averaged_ones(run, averaged, words):
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "validation":
            line["ema_R1"] = averaged.get(line["epoch"], 0.25)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    best = max(read_run(run).log.validations, key=lambda line: line["R1"])
    page = page_of(run)
    assert words.format(value=best["R1"], epoch=best["epoch"]) in page.words()
    assert "R-1, averaged weights" in page.words()


def test_page_is_reproducible_and_replaced_whole(run, html, monkeypatch):
    path = write_page(read_run(run))
    first = path.read_bytes()
    assert path == run / "report.html" and first.decode() == html
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_page(read_run(edit(run, beta=0.25)))
    assert path.read_bytes() == first
    assert sorted(p.name for p in run.iterdir()) == ["eval.json", "metrics.jsonl", "report.html"]


def test_text_of_captions_is_escaped(run):
    evaluation = json.loads((run / "eval.json").read_text())
    evaluation["examples"][0]["caption"] = "<script>alert(1)</script> & more"
    page = page_of(edit(run, examples=evaluation["examples"]))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "“<script>alert(1)</script> & more”" in page.words()


def test_missing_parts_are_said(run):
    (run / "metrics.jsonl").unlink()
    histograms = json.loads((run / "eval.json").read_text())["histograms"] | {"fusion_text": None}
    keys = ("examples", "calls", "data", "versions", "seconds", "memory_mb", "checkpoint", "ties")
    text = page_of(edit(run, histograms=histograms, **dict.fromkeys(keys))).words()
    assert "No training steps were recorded" in text and "No validation was recorded" in text
    assert "No examples were recorded" in text and "No operator calls were recorded" in text
    assert "Not recorded in eval.json (fusion_text)" in text and "(fusion_image)" not in text
    assert text.count("Not recorded in eval.json.") == 3 and "Whether scores tie was not recorded" in text


def test_steps_without_weights_or_norms(run):
    line = {"kind": "step", "step": 1, "loss": 1.0, "losses": {"triplet": 1.0}, "weights": {}, "norms": {}}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    text = page_of(run).words()
    assert "No task weights were recorded" in text and "No gradient norms were recorded" in text


def test_lost_and_damaged_images_are_counted_and_the_data_can_move(run, tmp_path):
    evaluation = json.loads((run / "eval.json").read_text())
    shown = [r["file_path"] for e in evaluation["examples"][:10] for r in e["results"]]
    moved = make_pedes(tmp_path / "moved", {"train": 1, "val": 1, "test": 6})
    assert "could not be read" not in build_page(read_run(run), moved)
    (moved / "imgs" / shown[0]).write_bytes(b"\xff\xd8 no image")
    (moved / "imgs" / shown[1]).unlink()
    lost = shown.count(shown[0]) + shown.count(shown[1])
    assert f"{lost} of these images could not be read" in build_page(read_run(run), moved)


def test_a_step_that_was_run_again_counts_once(run):
    path = run / "metrics.jsonl"
    again = json.loads(path.read_text().splitlines()[5]) | {"loss": 99.0}
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    steps = read_run(run).log.steps
    assert [line.step for line in steps] == list(range(1, 481)) and steps[5].loss == 99.0


def test_thinning_keeps_the_mean():
    values = np.random.default_rng(0).normal(size=1600)
    x, y = plots.thin(range(1600), values, points=100)
    assert len(x) == 100 and np.allclose(y, values.reshape(100, 16).mean(1)) and x[0] == 7.5
    assert plots.thin([3, 4], [5.0, 6.0])[1].tolist() == [5.0, 6.0]


def test_command_repeats_the_configuration_exactly():
    config = get_recipe("synthetic")
    model = replace(config.model, backend="reference", bdam=replace(config.model.bdam, gate=False))
    data = replace(config.data, root="a folder/data", image_size=(96, 48))
    changed = replace(config, seed=7, model=model, data=data, eval=replace(config.eval, betas=(0.0, 0.3)))
    stored = json.loads(json.dumps(to_dict(changed)))
    train, evaluate = config_rows.repeat_command(stored, "runs/again").splitlines()
    words = shlex.split(train)
    assert evaluate == "python -m training.evaluate runs/again"
    assert words[:6] == ["python", "-m", "training.train", "synthetic", "--out", "runs/again"]
    assert command_line.parse(train_command.Arguments, words[3:], "", "", lambda a: get_recipe(a.recipe))[1] == changed
    assert config_rows.repeat_command(stored | {"recipe": "mine"}, "x") is None


def test_unknown_recipe_is_said(run):
    config = json.loads((run / "eval.json").read_text())["config"] | {"recipe": "mine"}
    assert "There is no recipe named mine" in page_of(edit(run, config=config)).words()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"metrics": {"R1": 1.0}}, r"eval\.json: metrics lacks the fields R5, R10, mAP, mINP"),
        ({"chance": CHANCE | {"mAP": math.nan}}, r"eval\.json: chance\.mAP must be a finite number, got nan"),
        ({"beta": "high"}, r"eval\.json: beta must be a finite number, got 'high'"),
        ({"counts": {"queries": 3}}, r"eval\.json: counts lacks the fields gallery, ids"),
        ({"config": {"seed": 0}}, r"eval\.json: config lacks the fields recipe, data"),
        ({"examples": [{"caption": "a man"}]}, r"eval\.json: examples\[0\] lacks the fields file_path, id, results"),
        (
            {"examples": [{"caption": "a man", "file_path": "a.jpg", "id": 1, "results": [3]}]},
            r"eval\.json: examples\[0\]\.results\[0\] must be an object, got 3",
        ),
        ({"examples": {}}, r"eval\.json: examples must be a list, got {}"),
        (
            {"counts": {"queries": 3.5, "gallery": 1, "ids": 1}},
            r"eval\.json: counts\.queries must be an integer, got 3\.5",
        ),
        ({"ties": "no"}, r"eval\.json: ties must be true or false, got 'no'"),
        ({"versions": {"torch": 2}}, r"eval\.json: versions\.torch must be a string, got 2"),
        (
            {"histograms": {"gate_id": {"mean": 0.5}}},
            r"eval\.json: histograms\.gate_id lacks the fields edges, counts, std",
        ),
    ],
)
def test_eval_json_that_lacks_something(run, values, match):
    with pytest.raises(ValueError, match=match):
        read_run(edit(run, **values))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"kind": "step"', "metrics.jsonl line 1 is not valid JSON"),
        ("[1]", r"metrics\.jsonl line 1 must be an object, got \[1\]"),
        ('{"kind": "epoch"}', "'kind' must be step or validation, got 'epoch'"),
        ('{"kind": "validation", "epoch": 1, "R1": 2.0}', r"metrics\.jsonl line 1 lacks the fields R5, R10, mAP, mINP"),
    ],
)
def test_metrics_that_are_broken(run, text, match):
    (run / "metrics.jsonl").write_text(text + "\n")
    with pytest.raises(ValueError, match=match):
        read_run(run)


def test_command_line(run, tmp_path, capsys):
    assert cli.run(main, [str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    for folder, expected in (
        (tmp_path / "none", "no such run folder"),
        (tmp_path, "eval.json is missing: run"),
    ):
        assert cli.run(main, [str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error and error.count("\n") == 1
    (run / "eval.json").write_text("{")
    assert cli.run(main, [str(run)]) == 2
    assert "eval.json is not valid JSON" in capsys.readouterr().err


def test_the_whole_page_is_made_without_torch(run):
    code = (
        "import sys; from pathlib import Path; from training.report.__main__ import main; main([sys.argv[1]]);"
        "assert 'torch' not in sys.modules and 'bdam_fast' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], cwd=ROOT, check=True, capture_output=True)
