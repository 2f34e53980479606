"""Fixtures shared by the tests of training.describe: small data sets and a file of generated texts."""

from pathlib import Path

import pytest

from tests.support.generated_texts import make_rows, write_rows
from tests.support.pedes_dataset import make_pedes

IDS = {"train": 4, "val": 1, "test": 1}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 12 train images that no test may change."""
    return make_pedes(tmp_path_factory.mktemp("data"), IDS)


@pytest.fixture
def descriptions(data: Path, tmp_path: Path) -> Path:
    """Generated texts of `data` for one test."""
    return write_rows(tmp_path / "descriptions.jsonl", make_rows(data))


@pytest.fixture
def pedes(tmp_path: Path) -> Path:
    """A data set of 12 train images for one test, which may change it."""
    return make_pedes(tmp_path / "pedes", IDS)
