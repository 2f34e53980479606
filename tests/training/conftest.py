"""Fixtures shared by the tests of the pipeline: a miniature data set, a run trained on it, and a private copy of that run."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import contents
from tests.support.pedes_dataset import make_pedes
from training.config import DataConfig
from training.data.datasets import read_dataset
from training.data.images.readable import require_readable


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A miniature data set that no test may change: three images of each of 6 train, 2 val and 8 test identities."""
    folder = make_pedes(tmp_path_factory.mktemp("pedes"), {"train": 6, "val": 2, "test": 8})
    # Training keeps there which images can be read.
    config = DataConfig(root=str(folder))
    require_readable(folder, read_dataset(config).splits, config.max_pixels)
    before = contents(folder)
    yield folder
    assert contents(folder) == before, "a test has changed the shared data set"


@pytest.fixture(scope="session")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of `tiny_config(root)` that no test may change."""
    # Here: most tests need no model.
    from tests.support.tiny_run import tiny_config
    from training.train import train

    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    train(tiny_config(root), run_dir)
    before = contents(run_dir)
    yield run_dir
    assert contents(run_dir) == before, "a test has changed the shared run"


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` for one test, which may change it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
