"""The command that puts captions into styles: its files, its table, its page, and the truth that it never fits to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from tests.support import contents
from tests.support.pedes_dataset import write_people
from training.config import STYLE_METHODS
from training.describe import style_page
from training.describe.__main__ import main
from training.describe.inputs import read_styles
from training.describe.styles.caption_styles import read_captions
from training.utils import cli


@pytest.fixture(scope="module", autouse=True)
def small_map() -> Iterator[None]:
    """t-SNE of few captions, which takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style_page, "MAP_CAPTIONS", 60)
        yield


@pytest.fixture(scope="module")
def caption_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("data"), ids=120)


def run(caption_root: Path, out: Path, *words: str) -> dict[str, Any]:
    main(["styles", "cuhk-pedes", str(caption_root), "--out", str(out), *words])
    return json.loads((out / "styles.json").read_text()) if (out / "styles.json").exists() else {}


@pytest.fixture(scope="module")
def made(caption_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("styles")
    return out, run(caption_root, out)


def test_dbscan_finds_the_writers_without_being_told(made: tuple[Path, dict[str, Any]], caption_root: Path) -> None:
    out, table = made
    assert table["ari"] >= 0.8 and 7 <= len(table["styles"]) <= 9
    lines = [json.loads(line) for line in (out / "styles.jsonl").read_text().splitlines()]
    train = [
        record for record in json.loads((caption_root / "reid_raw.json").read_text()) if record["split"] == "train"
    ]
    assert [(line["file_path"], line["caption"]) for line in lines] == [
        (record["file_path"], index) for record in train for index in range(2)
    ]
    given = [line["style"] for line in lines]
    rows = [json.loads(line) for line in (caption_root / "factors.jsonl").read_text().splitlines()]
    truth = [caption["style"] for row in rows[: len(train)] for caption in row["captions"]]
    assert table["ari"] == pytest.approx(adjusted_rand_score(truth, given), abs=1e-6)
    assert [style["size"] for style in table["styles"]] == np.bincount(given).tolist() and min(given) == 0


def test_what_others_read(made: tuple[Path, dict[str, Any]], caption_root: Path) -> None:
    out, table = made
    assert (
        table["method"] == "dbscan"
        and table["encoder"] == "stylometric"
        and re.fullmatch("[0-9a-f]{64}", table["source"])
    )
    assert table["params"]["min_samples"] == 20 and 0 <= table["noise_share"] < 0.2 and table["found"]["eps"] > 0
    captions = {c for record in json.loads((caption_root / "reid_raw.json").read_text()) for c in record["captions"]}
    for number, style in enumerate(table["styles"]):
        assert style["style"] == number and 1 <= len(style["examples"]) <= 10 and style["markers"]
        assert set(style["examples"]) <= captions
    read = read_styles(out, 3)
    assert read.sizes == {style["style"]: style["size"] for style in table["styles"]} and len(read.of_image) == 360


def test_same_captions_same_files_and_the_truth_changes_only_its_own_number(
    made: tuple[Path, dict[str, Any]], caption_root: Path, tmp_path: Path
) -> None:
    out, table = made
    blind = write_people(tmp_path / "data", ids=120)
    (blind / "factors.jsonl").unlink()
    again = run(blind, tmp_path / "again")
    assert again["ari"] is None
    same = {name: value for name, value in again.items() if name not in ("ari", "seconds")}
    assert same == {name: value for name, value in table.items() if name not in ("ari", "seconds")}
    assert contents(tmp_path / "again")["styles.jsonl"] == contents(out)["styles.jsonl"]


def test_all_methods_in_a_table(caption_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(caption_root, tmp_path, "--method", "all", "--clusters", "8")
    text = capsys.readouterr().out
    found = {name: json.loads((tmp_path / name / "styles.json").read_text()) for name in STYLE_METHODS}
    for name, table in found.items():
        assert re.search(rf"{name} +│ {len(table['styles'])} +│.*│ +{table['ari']:.3f} ", text)
        assert (tmp_path / name / "styles.html").is_file()
    assert found["none"]["ari"] == 0 and abs(found["random"]["ari"]) < 0.02 and len(found["none"]["styles"]) == 1
    assert all(found[name]["ari"] > 0.6 for name in ("kmeans", "gmm", "agglomerative", "dbscan"))


def test_the_page_stands_alone(made: tuple[Path, dict[str, Any]], caption_root: Path, tmp_path: Path) -> None:
    out, table = made
    page = (out / "styles.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)(?!#)", page) and "<svg" in page and "data:image/png;base64," in page
    assert page.count("<h3>Style ") == len(table["styles"]) and f"{table['ari']:.3f}" in page
    assert f"{table['found']['eps']:.3f}" in page
    run(caption_root, tmp_path, "--method", "none")
    assert "<svg" not in (tmp_path / "styles.html").read_text()


def test_bad_requests_are_named_before_anything_is_written(
    caption_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.run(main, ["styles", "cuhk-pedes", str(caption_root), "--out", str(out), "--min-samples", "9999"]) == 2
    assert (
        "min_samples must be at most the number of different features" in capsys.readouterr().err and not out.exists()
    )
    assert cli.run(main, ["styles", "cuhk-pedes", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert cli.run(main, ["styles", "pedes", str(caption_root), "--out", str(out)]) == 2
    assert "DataConfig.dataset must be one of" in capsys.readouterr().err and not out.exists()
    broken = write_people(tmp_path / "data", ids=3)
    rows = (broken / "factors.jsonl").read_text().splitlines()
    (broken / "factors.jsonl").write_text("\n".join(rows[1:]))
    with pytest.raises(ValueError, match=r"factors.jsonl has no factors of cam_a/0001_0.jpg \(1 in all\)"):
        read_captions("cuhk-pedes", broken)
    nameless = json.dumps({name: value for name, value in json.loads(rows[0]).items() if name != "captions"})
    (broken / "factors.jsonl").write_text("\n".join([nameless, *rows[1:]]))
    with pytest.raises(ValueError, match=r"does not name the writer of every caption of cam_a/0001_0.jpg \(1 in all\)"):
        read_captions("cuhk-pedes", broken)
