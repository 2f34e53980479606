"""Synthetic pedestrians: the layout on disk, determinism, what the texts say, and what the pictures show."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import ROOT
from training.config import DataConfig
from training.data.datasets import read_dataset
from training.synthetic import attributes
from training.synthetic.dataset import SPLITS, generate
from training.synthetic.render.camera import render_image
from training.synthetic.rng import KeyedRng, cosine, sine
from training.synthetic.text.captions import MAX_WORDS, MIN_WORDS, STYLES, tokenize_caption, write_captions
from training.synthetic.text.descriptions import write_descriptions
from training.synthetic.text.vocabulary import COLOUR_WORDS

CLOTHING = "shirt|coat|jacket|hoodie|sweater|dress|trousers|jeans|shorts|skirt|leggings|sneakers|shoes|boots|sandals"
CLOTHING += "|heels|backpack|bag|handbag|cap|hat|beanie|scarf|striped|checked|dotted|wear|wears|wearing|worn|clothes"
IDENTITY = "man|woman|boy|girl|he|she|his|her|hair|skin|beard|glasses|bald|slim|heavy|build|tall|short|young|elderly"


def load(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / name).read_text().splitlines()]


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sample(number: int) -> tuple[attributes.Identity, attributes.Outfit, attributes.Pose]:
    rng = KeyedRng("test", number)
    identity = attributes.sample_identity(rng)
    outfit = attributes.sample_outfit(rng, identity)
    return identity, outfit, attributes.sample_pose(rng, outfit)


@pytest.fixture(scope="module")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "nested" / "set"
    generate(out, ids=40, seed=3)
    return out


@pytest.fixture(scope="module")
def records(synthetic_root: Path) -> list[dict[str, Any]]:
    return json.loads((synthetic_root / "reid_raw.json").read_text())


def test_layout_is_that_of_cuhk_pedes(synthetic_root, records):
    expected = {
        "reid_raw.json",
        "imgs",
        "descriptions.jsonl",
        "factors.jsonl",
        "identity_queries.jsonl",
        "synthetic.json",
    }
    assert {path.name for path in synthetic_root.iterdir()} == expected
    assert [path.name for path in synthetic_root.parent.iterdir()] == ["set"]  # nothing unfinished is left beside it
    for record in records:
        assert list(record) == ["split", "captions", "file_path", "processed_tokens", "id"]
        assert re.fullmatch(r"cam_[a-f]/\d{5}_\d\d\.jpg", record["file_path"])
        assert record["processed_tokens"] == [tokenize_caption(caption) for caption in record["captions"]]
        assert all(re.fullmatch(r"[a-z0-9]+", word) for words in record["processed_tokens"] for word in words)
    on_disk = {str(path.relative_to(synthetic_root / "imgs")) for path in (synthetic_root / "imgs").rglob("*.jpg")}
    assert on_disk == {record["file_path"] for record in records}
    with Image.open(synthetic_root / "imgs" / records[0]["file_path"]) as image:
        assert (image.size, image.mode, image.format) == ((96, 192), "RGB", "JPEG")


def test_the_reader_of_cuhk_pedes_reads_it(synthetic_root, records):
    dataset = read_dataset(DataConfig(root=str(synthetic_root)))
    assert {split: len(rows) for split, rows in dataset.splits.items()} == Counter(r["split"] for r in records)
    assert all(record.identity and record.clothing for record in dataset.splits["train"])


def test_splits_share_no_identity_and_the_summary_counts_them(synthetic_root, records):
    splits = {split: {r["id"] for r in records if r["split"] == split} for split in SPLITS}
    assert [len(ids) for ids in splits.values()] == [30, 4, 6]
    assert set.union(*splits.values()) == set(range(1, 41))
    summary = json.loads((synthetic_root / "synthetic.json").read_text())
    assert {split: counts["ids"] for split, counts in summary["counts"].items()} == {"train": 30, "val": 4, "test": 6}
    assert sum(counts["images"] for counts in summary["counts"].values()) == len(records)
    assert sum(counts["captions"] for counts in summary["counts"].values()) == 2 * len(records)
    assert summary["parameters"]["seed"] == 3


def test_identities_stay_and_clothes_change(synthetic_root):
    by_id: dict[int, list[dict[str, Any]]] = {}
    for row in load(synthetic_root, "factors.jsonl"):
        by_id.setdefault(row["id"], []).append(row)
    for rows in by_id.values():
        assert 4 <= len(rows) <= 8
        assert all(row["identity"] == rows[0]["identity"] for row in rows)
        outfits = {row["outfit_number"]: row["outfit"] for row in rows}
        assert 2 <= len(outfits) <= 3
        assert all(row["outfit"] == outfits[row["outfit_number"]] for row in rows)
        assert any(a != b for a in outfits.values() for b in outfits.values())
        assert len({row["shot"]["camera"] for row in rows}) >= 4
    assert 5.4 < sum(map(len, by_id.values())) / len(by_id) < 6.6


def test_ground_truth_stays_out_of_what_models_read(synthetic_root, records):
    read = (synthetic_root / "reid_raw.json").read_text() + (synthetic_root / "descriptions.jsonl").read_text()
    assert not re.search(r'"(outfit|pose|shot|outfit_number|yaw|upper_colour|noise_seed|annotator)"', read)
    assert not any(re.search(r"\d", caption) for record in records for caption in record["captions"])
    assert {row["file_path"] for row in load(synthetic_root, "factors.jsonl")} == {
        record["file_path"] for record in records
    }


def test_two_captions_in_two_styles_of_usual_length(synthetic_root, records):
    styles: Counter[int] = Counter()
    for record, row in zip(records, load(synthetic_root, "factors.jsonl"), strict=True):
        assert len(record["captions"]) == 2 == len({caption["style"] for caption in row["captions"]})
        styles.update(caption["style"] for caption in row["captions"])
        for caption in record["captions"]:
            assert MIN_WORDS <= len(caption.split()) <= MAX_WORDS and caption == caption.strip()
            assert "None" not in caption and "none" not in caption and "  " not in caption and "{" not in caption
    assert set(styles) == set(range(len(STYLES))) and len(STYLES) >= 6
    lengths = [len(caption.split()) for record in records for caption in record["captions"]]
    assert sum(15 <= n <= 45 for n in lengths) > 0.85 * len(lengths)


def test_captions_agree_with_the_garments_in_most_cases():
    named, wrong, slips, total = 0, 0, 0, 0
    for number in range(600):
        identity, outfit, pose = sample(number)
        for caption in write_captions(KeyedRng("captions", number), identity, outfit, pose):
            total += 1
            named += any(word in caption.text.lower() for word in COLOUR_WORDS[outfit.upper_colour])
            wrong += "colour:upper" in caption.errors
            slips += any(error.startswith(("typo", "misspelling")) for error in caption.errors)
    assert 0.85 * total < named < total  # people omit and err, but rarely
    assert 0.02 * total < wrong < 0.06 * total
    assert 0.02 * total < slips < 0.12 * total


def test_captions_tell_only_what_the_view_shows():
    told = Counter()
    for number in range(600):
        identity, outfit, pose = sample(number)
        identity = replace(identity, glasses=True, beard=True)
        outfit = replace(outfit, pattern="logo", pattern_colour="white", upper="T-shirt")
        texts = [caption.text for caption in write_captions(KeyedRng("view", number), identity, outfit, pose)]
        texts += [
            str(write_descriptions(KeyedRng("view", number), identity, outfit, pose)[key])
            for key in ("identity", "clothing")
        ]
        seen = " ".join(texts)
        told[pose.facing, "face"] += "glasses" in seen or "beard" in seen
        told[pose.facing, "logo"] += "on the front" in seen
    assert told["back", "face"] == told["back", "logo"] == 0
    assert told["front", "face"] > 100 and told["front", "logo"] > 100


def test_generated_texts_keep_identity_and_clothing_apart(synthetic_root, records):
    rows = load(synthetic_root, "descriptions.jsonl")
    assert [row["file_path"] for row in rows] == [record["file_path"] for record in records]
    for row, truth in zip(rows, load(synthetic_root, "factors.jsonl"), strict=True):
        fields = ["file_path", "identity", "clothing", "style", "model", "prompt_hash", "params", "status"]
        assert list(row) == fields and (row["model"], row["status"]) == ("template", "ok")
        assert not re.search(rf"\b({CLOTHING})\b", row["identity"].lower())
        assert not re.search(rf"\b({IDENTITY})\b", row["clothing"].lower())
        assert truth["outfit"]["upper_colour"] in row["clothing"].lower()
        assert truth["outfit"]["upper"].lower() in row["clothing"].lower()
    assert {row["style"] for row in rows} == {0, 1, 2, 3} and len({row["prompt_hash"] for row in rows}) == 4


def test_same_bytes_in_every_run_and_with_two_processes(tmp_path, synthetic_root):
    first = generate(tmp_path / "a", ids=6, seed=5, images_per_id=3, height=160, width=64)
    script = "import sys, pathlib\nfrom training.synthetic.dataset import generate\nif __name__ == '__main__':\n"
    script += "    generate(pathlib.Path(sys.argv[1]), 6, 5, 3, height=160, width=64, workers=2)\n"
    (tmp_path / "two.py").write_text(script)
    command = [sys.executable, str(tmp_path / "two.py"), str(tmp_path / "b")]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}, timeout=120)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    generate(tmp_path / "c", ids=6, seed=6, images_per_id=3, height=160, width=64)
    assert digest(tmp_path / "a")["reid_raw.json"] != digest(tmp_path / "c")["reid_raw.json"]
    assert first["parameters"]["height"] == 160


def test_factors_and_texts_are_those_of_every_other_machine(tmp_path):
    generate(tmp_path / "set", ids=5, seed=0, images_per_id=2)
    found = digest(tmp_path / "set")
    assert found["reid_raw.json"][:16] == "cb515415c5f185c0"
    assert found["descriptions.jsonl"][:16] == "58e054e40c3c0275"
    assert found["factors.jsonl"][:16] == "6f92040807426e07"


def test_pictures_show_the_colours_of_the_garments():
    """The median over the chest is nearest to the named colour, whatever the camera's cast."""
    right = 0
    names = ("red", "green", "blue", "yellow", "white", "black")
    for number in range(90):
        identity, outfit, _ = sample(number)
        name = names[number % len(names)]
        outfit = replace(outfit, upper="T-shirt", pattern="plain", bag="none", scarf_colour="none", inner_colour="none")
        outfit = replace(outfit, rgb=outfit.rgb | {"upper": attributes.sample_shade(KeyedRng("shade", number), name)})
        pose = attributes.Pose("back", 180.0, "standing", 0.0, {"left": "down", "right": "down"}, "none")
        identity = replace(identity, hair="short", age="adult")
        shot = attributes.sample_shot(KeyedRng("shot", number), attributes.CAMERAS[number % 6 - number // 6 % 6])
        shot = replace(shot, offset_x=0.0, offset_y=0.0)
        chest = render_image(identity, outfit, pose, shot, 192, 96)[66:84, 42:54].reshape(-1, 3)
        median = np.median(chest, axis=0)
        right += min(names, key=lambda n: float(np.abs(median - attributes.COLOURS[n]).sum())) == name  # noqa: B023
    assert right >= 86


def test_cameras_keep_their_look_and_differ():
    identity, outfit, pose = sample(1)
    corners = {}
    for camera in attributes.CAMERAS:
        shots = [replace(attributes.sample_shot(KeyedRng(camera, k), camera), light=1.0) for k in range(6)]
        skies = [render_image(identity, outfit, pose, shot, 160, 64)[:20, :12].mean((0, 1)) for shot in shots]
        corners[camera] = np.mean(skies, axis=0)
    distances = [np.abs(corners[a] - corners[b]).sum() for a in corners for b in corners if a < b]
    assert min(distances) > 8


def test_sine_is_a_sine():
    degrees = np.arange(-720.0, 720.0, 0.7)
    assert np.allclose([sine(d) for d in degrees], np.sin(np.radians(degrees)), atol=4e-6)
    assert np.allclose([cosine(d) for d in degrees], np.cos(np.radians(degrees)), atol=4e-6)


def test_dice_draw_what_they_are_asked_for():
    rng = KeyedRng("dice")
    assert Counter(rng.weighted_choice({"a": 3, "b": 1, "never": 0}) for _ in range(4000))["a"] == pytest.approx(
        3000, abs=120
    )
    assert {rng.integer(2, 4) for _ in range(100)} == {2, 3, 4}
    assert sorted(rng.permutation(range(9))) == list(range(9))
    assert (
        [KeyedRng(1, 2).uniform(0, 1) for _ in range(2)]
        == [KeyedRng(1, 2).uniform(0, 1)] * 2
        != [KeyedRng(12).uniform(0, 1)] * 2
    )
