"""The packed cache in use: the same batches and runs as without one, and several or killed processes that fill it."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import Interrupting, read_lines, tiny_config
from training.config import DataConfig, EncoderConfig
from training.data.datasets import read_dataset
from training.data.images import transforms
from training.data.images.cache import CacheFiles, PackedImages
from training.data.images.pack import PackCounts, pack_images
from training.data.loader import Batch, TrainLoader, iterate_images
from training.data.tokenizer import build_tokenizer
from training.retrieval.gallery_search import open_finder
from training.train import train

SIZE = (32, 16)
fork = multiprocessing.get_context("fork")


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    root = make_pedes(tmp_path / "pedes", images_per_id=5)
    return DataConfig(root=str(root), image_size=SIZE, ids_per_batch=3, images_per_id=2, cache=str(tmp_path / "cache"))


def loader_of(config: DataConfig) -> TrainLoader:
    dataset = read_dataset(config)
    return TrainLoader(dataset, build_tokenizer(EncoderConfig(), dataset.train_texts()), config, 0)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("an image is decoded")

    monkeypatch.setattr(transforms, "decode", refuse)
    monkeypatch.setattr(transforms, "decode_into", refuse)


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        a.paths == b.paths
        and torch.equal(a.images_BCHW, b.images_BCHW)
        and torch.equal(a.captions.input_ids_BT, b.captions.input_ids_BT)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_same_batches_with_and_without_a_cache(
    config: DataConfig, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loader_of(replace(config, cache=""))
    plain.set_epoch(2)
    whole = list(plain)
    packed = loader_of(replace(config, workers=workers))
    forbid_decoding(monkeypatch)
    # Made anew: the start of the next run decodes nothing.
    for loader in (packed, loader_of(replace(config, workers=workers))):
        for start in (0, 3):
            loader.set_epoch(2, start)
            assert same(list(loader), whole[start:])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_the_cache(config: DataConfig, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    records, config = read_dataset(config).splits["test"], replace(config, workers=workers)
    plain = [images for images, _ in iterate_images(records, replace(config, cache=""), 4)]
    for _ in range(2):
        assert all(map(torch.equal, (images for images, _ in iterate_images(records, config, 4)), plain))
        forbid_decoding(monkeypatch)


def test_bad_images_are_found_before_the_first_step(config: DataConfig) -> None:
    splits = read_dataset(config).splits
    for split in ("train", "val", "test"):
        splits[split][1].path.write_bytes(b"no image")
    # That of the test split waits for the evaluation.
    with pytest.raises(ValueError, match=r"^2 of 40 images cannot be read: .*train/0001_1.jpg is .*val/0007_1.jpg is "):
        loader_of(config)
    with pytest.raises(ValueError, match=r"^1 of 10 images cannot be read: .*test/0009_1.jpg is "):
        list(iterate_images(splits["test"], config, 4))


def test_a_run_ends_with_the_same_numbers_with_a_cache_and_workers_though_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(make_pedes(tmp_path / "pedes"))
    config = replace(config, optim=replace(config.optim, save_every_steps=1))
    train(config, tmp_path / "plain")
    config = replace(config, data=replace(config.data, cache=str(tmp_path / "cache"), workers=2))
    with monkeypatch.context() as patch:
        patch.setattr("training.engine.train_run.TrainLoader", lambda *a: Interrupting(TrainLoader(*a), 6))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert read_lines(tmp_path / "run") == read_lines(tmp_path / "plain")
    # The train and val images; a search keeps embeddings, not pixels.
    assert files_in(tmp_path / "cache") == 24
    open_finder(tmp_path / "run", "test")
    make_pedes(tmp_path / "others")
    open_finder(tmp_path / "run", str(tmp_path / "others" / "imgs" / "train"))
    assert files_in(tmp_path / "cache") == 24


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng, made = np.random.default_rng(0), []
    for i in range(120):
        made.append(tmp_path / f"{i:03}.png")
        Image.fromarray(rng.integers(0, 256, (24, 12, 3), dtype=np.uint8)).save(made[-1])
    return made


def check_rows(paths: list[Path], folder: Path) -> None:
    out = torch.empty(len(paths), 3, *SIZE, dtype=torch.uint8)
    PackedImages(paths, folder, SIZE).fill(range(len(paths)), out)
    assert torch.equal(out, torch.stack([transforms.decode(path, SIZE) for path in paths]))


def files_in(folder: Path) -> int:
    """In the index."""
    index = CacheFiles(folder, SIZE).read_index()
    return len(index.files) if index else 0


def test_two_processes_at_once_do_the_work_once(paths: list[Path], tmp_path: Path) -> None:
    results = fork.SimpleQueue()

    def work() -> None:
        results.put(pack_images(paths, tmp_path / "cache", SIZE))

    processes = [fork.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    counts = sorted(results.get() for _ in processes)
    for process in processes:
        process.join()
    assert counts == [PackCounts(0, 0, 120), PackCounts(120, 0, 0), PackCounts(120, 0, 0)]
    check_rows(paths, tmp_path / "cache")


def test_a_process_that_waits_says_so(paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / "32x16.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        release = threading.Timer(0.2, fcntl.flock, (held, fcntl.LOCK_UN))
        release.start()
        assert pack_images(paths[:3], tmp_path, SIZE) == PackCounts(0, 0, 3)
        release.join()
    assert "waiting for the process that is packing images (it holds" in capsys.readouterr().err


def test_killed_at_random_moments(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.images.pack.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("training.data.images.pack.CHUNK", 3)
    moments, done = random.Random(0), []
    decode = transforms.decode

    def slow(*arguments: object) -> torch.Tensor:
        time.sleep(0.001)
        return decode(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(transforms, "decode", slow)
        for target in range(8, 88, 10):
            process = fork.Process(target=pack_images, args=(paths, tmp_path / "cache", SIZE))
            process.start()
            while files_in(tmp_path / "cache") < target:
                time.sleep(0.001)
            time.sleep(moments.uniform(0.0, 0.01))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            done.append(files_in(tmp_path / "cache"))
    # Each went on where the one before had been.
    assert done == sorted(done) and len(set(done)) > 2
    (tmp_path / "cache" / ".32x16.json.x.tmp").write_text("half")
    counts = pack_images(paths, tmp_path / "cache", SIZE)
    assert counts == PackCounts(done[-1], 0, 120 - done[-1])
    check_rows(paths, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(".*"))
