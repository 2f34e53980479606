"""Every file of a run after a flipped bit, a cut or a swap: refused by name, or read with the same content."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import contents
from tests.support.files.damage import flipped_bit
from tests.support.tiny_run import same_state
from training.config import to_dict
from training.config.command_line import read_config
from training.data.datasets import read_dataset
from training.data.image_digests import ImageDigests, digest_images, read_digests
from training.engine import checkpoint
from training.evaluate import main as evaluate
from training.evaluation.calibration import Calibration
from training.evaluation.run_evaluation import evaluate as evaluate_run
from training.evaluation.run_folder import Run, _read_arrays
from training.retrieval.gallery_search import open_finder
from training.utils.io import encode, read_json, read_record


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run"))
    evaluate([str(run)])
    open_finder(run, "test").close()
    return run


def arrays(path: Path) -> dict[str, Any]:
    return {name: value.tolist() for name, value in _read_arrays(path).items()}


READERS: dict[str, Callable[[Path], Any]] = {
    "best.pt": checkpoint.load,
    "last.pt": checkpoint.load,
    "config.json": lambda path: to_dict(read_config(path)),
    "eval.json": lambda path: encode(Run(path.parent).evaluation),
    "calls.json": lambda path: Run(path.parent).calls,
    "resources.json": lambda path: Run(path.parent).resources,
    "images.json": lambda path: read_record(path, ImageDigests),
    "diagnosis.json": lambda path: encode(Run(path.parent).diagnosis),
    "calibration.json": lambda path: encode(read_record(path, Calibration)),
    "eval-queries.npz": arrays,
    "metrics.jsonl": lambda path: Run(path.parent).log,
    "tokenizer/tokenizer.json": lambda path: read_vocabulary(path.parents[1]),
    "tokenizer/tokenizer_config.json": lambda path: read_vocabulary(path.parents[1]),
}


def read_vocabulary(run: Path) -> dict[str, int]:
    return checkpoint.load_run(run).tokenizer.get_vocab()


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_found_or_harmless(name: str, evaluated: Path) -> None:
    read, path, moment = READERS[name], evaluated / name, random.Random(name)
    expected, refused = read(path), 0
    for _ in range(12 if "tokenizer" in name else 40):
        with flipped_bit(path, moment) as place:
            try:
                found = read(path)
            except ValueError as error:
                assert path.name in str(error), place
                refused += 1
            else:
                assert same_state(found, expected), place
    assert refused > 5


def test_every_file_of_a_run_is_covered(evaluated: Path) -> None:
    # Galleries are compared with their files by `gallery check`.
    names = {name for name in contents(evaluated) if not name.startswith(("tensorboard/", "galleries/"))}
    assert names <= READERS.keys()


def test_a_run_of_a_flipped_weight_is_not_evaluated(run_dir: Path) -> None:
    path = run_dir / "best.pt"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 64
    path.write_bytes(raw)
    with pytest.raises(
        ValueError, match=r"best\.pt is not a checkpoint.*checksum of its part .* does not match\); restore it"
    ):
        evaluate([str(run_dir)])
    assert not (run_dir / "eval.json").exists()


def test_an_edited_result_is_named_with_its_remedy(evaluated: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(evaluated, tmp_path / "run"))
    text = (run / "eval.json").read_text()
    (run / "eval.json").write_text(text.replace('"R1": ', '"R1": 1', 1))
    with pytest.raises(
        ValueError, match=r"eval\.json is not what was written: it is damaged or was edited; restore it"
    ):
        evaluate_run(run)
    edited = (run / "eval.json").read_text().splitlines()
    (run / "eval.json").write_text("\n".join(line for line in edited if "content_sha256" not in line))
    assert evaluate_run(run)[0].metrics["R1"] == float("1" + str(read_json(evaluated / "eval.json")["metrics"]["R1"]))


@pytest.fixture
def moving(root: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(run, copy of its data, which the run reads)."""
    data = Path(shutil.copytree(root, tmp_path / "data"))

    def read(config: Any) -> Any:
        return read_dataset(replace(config, root=str(data)))

    monkeypatch.setattr("training.evaluation.cached_result.read_dataset", read)
    return run_dir, data


def test_images_that_were_painted_over_are_named(moving: tuple[Path, Path]) -> None:
    run, data = moving
    image = next((data / "imgs" / "test").glob("*.jpg"))
    with Image.open(image) as old:
        Image.new("RGB", old.size, "green").save(image)
    with pytest.raises(
        ValueError, match=rf"the images of {data} have changed .*\(1 of them, such as test/{image.name}\)"
    ):
        evaluate_run(run)
    assert not (run / "eval.json").exists()


def test_a_changed_image_is_found_without_the_list_of_digests(moving: tuple[Path, Path]) -> None:
    run, data = moving
    (run / "images.json").unlink()
    image = next((data / "imgs" / "val").glob("*.jpg"))
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="have changed since the run was trained .their digest differs"):
        evaluate_run(run)


def test_images_that_were_copied_are_the_same(moving: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = moving
    for image in (data / "imgs").rglob("*.jpg"):
        image.touch()
    evaluate_run(run)
    splits = read_dataset(checkpoint.load_run(run).config.data).splits
    again = digest_images(splits.values(), read_digests(run))
    assert again.digest == checkpoint.load_run(run).images
    # Their new times are known now: nothing is read a second time.
    monkeypatch.setattr("training.data.image_digests.file_digest", lambda path: pytest.fail(f"{path} was read"))
    (run / "eval.json").unlink()
    evaluate_run(run)


def test_a_swapped_tokenizer_is_named(run_dir: Path, tmp_path: Path) -> None:
    file = run_dir / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(
        ValueError, match=r"tokenizer\.json is not the file that the model was trained with: words would"
    ):
        open_finder(run_dir, "test")
    file.unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing: words would get other embeddings"):
        evaluate_run(run_dir)


def test_arrays_that_are_cut_are_named(evaluated: Path, tmp_path: Path) -> None:
    path = tmp_path / "eval-queries.npz"
    whole = (evaluated / "eval-queries.npz").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"eval-queries\.npz is damaged \(.*\); restore it from a copy"):
            _read_arrays(path)
    np.savez(path, ap=np.zeros(2))
    assert set(_read_arrays(path)) == {"ap"}


def test_no_flip_in_the_directory_of_stored_queries_hides_one(evaluated: Path, tmp_path: Path) -> None:
    raw, errors = (evaluated / "eval-queries.npz").read_bytes(), []
    expected, path = arrays(evaluated / "eval-queries.npz"), tmp_path / "queries.npz"
    start = raw.index(b"PK\x01\x02")
    for place in range(start, len(raw)):
        for bit in range(8):
            path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :])
            try:
                assert arrays(path) == expected, place
            except ValueError as error:
                errors.append(str(error))
    assert any("its directory does not list every array" in error for error in errors) and len(errors) > 500
