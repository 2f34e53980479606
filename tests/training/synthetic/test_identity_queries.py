"""Queries of the protocol identity: written from the true factors of held-out people, and read by nothing else."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import contents
from training import prepare
from training.config import DataConfig
from training.data.datasets import read_dataset
from training.synthetic.dataset import generate
from training.synthetic.query_texts import write_identity_queries
from training.utils import cli

CLOTHING = "shirt|coat|jacket|hoodie|sweater|dress|trousers|jeans|shorts|skirt|leggings|sneakers|shoes|boots|sandals"
CLOTHING += "|heels|backpack|bag|handbag|cap|hat|beanie|scarf|striped|checked|dotted|wear|wears|wearing|worn|clothes"


def load(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    generate(out, ids=12, seed=3, val_ids=4, test_ids=5, height=160, width=64)
    return out


@pytest.fixture(scope="module")
def records(synthetic_root: Path) -> list[dict[str, Any]]:
    return json.loads((synthetic_root / "reid_raw.json").read_text())


def test_identity_queries_are_of_the_held_out_people_and_of_the_person_alone(synthetic_root, records, tmp_path, capsys):
    rows = load(synthetic_root, "identity_queries.jsonl")
    assert [row["file_path"] for row in rows] == [r["file_path"] for r in records if r["split"] != "train"]
    truth = {row["file_path"]: row for row in load(synthetic_root, "factors.jsonl")}
    for row in rows:
        words = re.findall("[a-z]+", row["identity"].lower())
        person, facing = truth[row["file_path"]]["identity"], truth[row["file_path"]]["pose"]["facing"]
        assert not re.search(rf"\b({CLOTHING})\b", " ".join(words))
        assert person["skin"] in words and ("beard" in words) == (person["beard"] and facing != "back")
        assert person["hair"] == "bald" or person["hair_colour"] in words
    texts = {row["file_path"]: row["identity"] for row in load(synthetic_root, "descriptions.jsonl")}
    assert sum(texts[row["file_path"]] != row["identity"] for row in rows) > len(rows) / 2, "in words of their own"
    # A set without the file gets the same one, and nothing else.
    older = shutil.copytree(synthetic_root, tmp_path / "older", ignore=shutil.ignore_patterns("imgs"))
    (older / "identity_queries.jsonl").unlink()
    assert cli.run(prepare.main, ["identity-queries", str(older)]) == 0
    assert capsys.readouterr().out.strip() == str(older / "identity_queries.jsonl")
    (older / "imgs").mkdir()
    shutil.copytree(synthetic_root / "imgs", older / "imgs", dirs_exist_ok=True)
    assert contents(older) == contents(synthetic_root)
    (older / "factors.jsonl").unlink()
    with pytest.raises(
        FileNotFoundError, match="holds no rendered set: expected reid_raw.json and factors.jsonl in it"
    ):
        write_identity_queries(older)


def test_training_does_not_read_identity_queries(synthetic_root, tmp_path):
    shutil.copytree(synthetic_root, tmp_path / "set")
    before = read_dataset(DataConfig(root=str(tmp_path / "set")))
    (tmp_path / "set" / "identity_queries.jsonl").write_text("no JSON")
    after = read_dataset(DataConfig(root=str(tmp_path / "set")))
    assert after == before and after.fingerprint == before.fingerprint
