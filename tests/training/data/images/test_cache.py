"""The packed cache: same pixels as the files, rebuilt when stale or damaged, and only what changed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.pedes_dataset import make_pedes
from training import prepare
from training.data.images import cache, transforms
from training.data.images.cache import PackedImages
from training.data.images.pack import PackCounts, pack_images
from training.utils import cli

SIZE = (32, 16)
IMAGES = 70


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """So many that a worker gets more than one chunk; no two alike."""
    rng, made = np.random.default_rng(0), []
    (tmp_path / "imgs").mkdir()
    for i in range(IMAGES):
        made.append(tmp_path / "imgs" / f"{i:02}.{'png' if i % 3 else 'jpg'}")
        Image.fromarray(rng.integers(0, 256, (20 + i, 15, 3), dtype=np.uint8)).save(made[-1])
    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that have been decoded."""
    names: list[str] = []
    decode = transforms.decode

    def record(path: Path | str, *arguments: object) -> torch.Tensor:
        names.append(Path(path).name)
        return decode(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(transforms, "decode", record)
    return names


def pixels(paths: list[Path], folder: Path, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """From the cache."""
    out = torch.empty(len(paths), 3, *size, dtype=torch.uint8)
    PackedImages(paths, folder, size).fill(range(len(paths)), out)
    return out


def expected(paths: list[Path], size: tuple[int, int] = SIZE) -> torch.Tensor:
    """As `transforms.decode`, which is under watch."""
    out = torch.empty(len(paths), 3, *size, dtype=torch.uint8)
    transforms.decode_into(out, range(len(paths)), paths)
    return out


def rewrite(path: Path, value: int) -> None:
    """Another picture under the same name, with another time of change."""
    Image.fromarray(np.full((24, 12, 3), value, np.uint8)).save(path)
    os.utime(path, ns=(1, 10**9 + value))


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_what_decoding_makes_of_the_files(paths: list[Path], tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "made" / "cache"
    assert pack_images(paths, folder, SIZE, workers) == PackCounts(current=0, renamed=0, decoded=IMAGES)
    assert torch.equal(pixels(paths, folder), expected(paths))
    some = [paths[i] for i in (9, 3, 3, 60)]
    assert torch.equal(pixels(some, folder), expected(some))
    assert (folder / "32x16.u8").stat().st_size == IMAGES * 3 * 32 * 16


def test_a_second_call_decodes_nothing_and_writes_nothing(
    paths: list[Path], tmp_path: Path, decoded: list[str]
) -> None:
    pack_images(paths, tmp_path, SIZE)
    (tmp_path / "32x16.lock").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    decoded.clear()
    assert pack_images(paths[5:], tmp_path, SIZE) == PackCounts(IMAGES - 5, 0, 0)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before and not decoded


def test_each_image_size_has_its_own_file(paths: list[Path], tmp_path: Path) -> None:
    for size in (SIZE, (16, 16)):
        pack_images(paths[:3], tmp_path, size)
    for size in (SIZE, (16, 16)):
        assert torch.equal(pixels(paths[:3], tmp_path, size), expected(paths[:3], size))


def test_only_what_changed_is_decoded(paths: list[Path], tmp_path: Path, decoded: list[str]) -> None:
    pack_images(paths[:-1], tmp_path, SIZE)
    reader = PackedImages(paths[:-1], tmp_path, SIZE)
    old = expected(paths[:-1])
    decoded.clear()
    rewrite(paths[4], 90)
    # Another time of change and the same content.
    os.utime(paths[7], ns=(1, 1))
    assert pack_images(paths, tmp_path, SIZE) == PackCounts(current=IMAGES - 3, renamed=1, decoded=2)
    assert decoded == [paths[4].name, paths[-1].name]
    assert torch.equal(pixels(paths, tmp_path), expected(paths))
    # Whoever has opened it before goes on seeing what was there.
    out = torch.empty(IMAGES - 1, 3, *SIZE, dtype=torch.uint8)
    reader.fill(range(IMAGES - 1), out)
    assert torch.equal(out, old)


def test_a_moved_data_set_and_a_copy_are_known_by_their_content(
    paths: list[Path], tmp_path: Path, decoded: list[str]
) -> None:
    pack_images(paths, tmp_path, SIZE)
    shutil.copytree(tmp_path / "imgs", tmp_path / "copy")
    moved = [tmp_path / "copy" / path.name for path in paths]
    decoded.clear()
    assert pack_images(moved, tmp_path, SIZE, workers=0) == PackCounts(0, IMAGES, 0)
    assert not decoded and torch.equal(pixels(moved, tmp_path), expected(paths))
    assert (tmp_path / "32x16.u8").stat().st_size == IMAGES * 3 * 32 * 16


def test_equal_files_share_a_row(paths: list[Path], tmp_path: Path) -> None:
    shutil.copy(paths[0], paths[1])
    assert pack_images(paths, tmp_path, SIZE) == PackCounts(0, 1, IMAGES - 1)
    assert torch.equal(pixels(paths, tmp_path), expected(paths))


def garbage(folder: Path) -> None:
    (folder / "32x16.json").write_bytes(b'{"made_by')


def other_form(folder: Path) -> None:
    (folder / "32x16.json").write_text(json.dumps({"made_by": cache.MADE_BY, "rows": [], "files": {"a": [1, 2]}}))


def other_row(folder: Path) -> None:
    index = json.loads((folder / "32x16.json").read_text())
    (folder / "32x16.json").write_text(json.dumps(index | {"rows": index["rows"][:5]}))


def other_version(folder: Path) -> None:
    index = json.loads((folder / "32x16.json").read_text())
    (folder / "32x16.json").write_text(json.dumps(index | {"made_by": "another version"}))


def no_pixels(folder: Path) -> None:
    (folder / "32x16.u8").unlink()


@pytest.mark.parametrize("damage", [garbage, other_form, other_row, other_version, no_pixels])
def test_a_cache_that_cannot_be_used_is_made_anew(
    paths: list[Path], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    pack_images(paths, tmp_path, SIZE)
    reader = PackedImages(paths[:20], tmp_path, SIZE)
    damage(tmp_path)
    others = paths[20:] + paths[:20]
    assert pack_images(others, tmp_path, SIZE) == PackCounts(0, 0, IMAGES)
    assert torch.equal(pixels(others, tmp_path), expected(others))
    # Rows have changed their places; a process that trains meanwhile still has the old file.
    out = torch.empty(20, 3, *SIZE, dtype=torch.uint8)
    reader.fill(range(20), out)
    assert torch.equal(out, expected(paths[:20]))


def test_rows_that_the_file_has_lost_are_redone(paths: list[Path], tmp_path: Path, decoded: list[str]) -> None:
    pack_images(paths, tmp_path, SIZE)
    os.truncate(tmp_path / "32x16.u8", (IMAGES - 6) * 3 * 32 * 16 - 1)
    with pytest.raises(ValueError, match=r"the cache .*32x16.u8 lacks 7 of 70 images, such as .*63.jpg; `python -m"):
        PackedImages(paths, tmp_path, SIZE)
    decoded.clear()
    assert pack_images(paths, tmp_path, SIZE) == PackCounts(IMAGES - 7, 0, 7)
    assert len(decoded) == 7 and torch.equal(pixels(paths, tmp_path), expected(paths))


def test_a_damaged_row_is_an_error_when_read_and_redone_by_a_check(
    paths: list[Path], tmp_path: Path, decoded: list[str]
) -> None:
    pack_images(paths, tmp_path, SIZE)
    with open(tmp_path / "32x16.u8", "r+b") as file:
        for row in (2, 40):
            file.seek(row * 3 * 32 * 16 + 100)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
    with pytest.raises(
        ValueError, match=r"32x16.u8 is damaged at the rows of .*/02.png, .*/40.png; .* with --check repairs"
    ):
        pixels(paths, tmp_path)
    decoded.clear()
    assert pack_images(paths, tmp_path, SIZE, check=True) == PackCounts(IMAGES - 2, 0, 2)
    assert decoded == ["02.png", "40.png"] and torch.equal(pixels(paths, tmp_path), expected(paths))
    assert (tmp_path / "32x16.u8").stat().st_size == IMAGES * 3 * 32 * 16


def test_a_check_finds_a_file_that_changed_in_secret(paths: list[Path], tmp_path: Path) -> None:
    bitmap = tmp_path / "imgs" / "last.bmp"
    Image.fromarray(np.full((24, 12, 3), 10, np.uint8)).save(bitmap)
    pack_images([*paths, bitmap], tmp_path, SIZE)
    stamp = bitmap.stat().st_mtime_ns
    Image.fromarray(np.full((24, 12, 3), 200, np.uint8)).save(bitmap)
    os.utime(bitmap, ns=(stamp, stamp))
    assert pack_images([bitmap], tmp_path, SIZE) == PackCounts(1, 0, 0)
    assert pack_images([*paths, bitmap], tmp_path, SIZE, check=True) == PackCounts(IMAGES, 0, 1)
    assert (pixels([bitmap], tmp_path) == 200).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_all_unreadable_images_are_listed(paths: list[Path], tmp_path: Path, workers: int) -> None:
    kept = {i: paths[i].read_bytes() for i in (1, 8, 30, 31, 32, 33, 66)}
    for i in kept:
        paths[i].write_bytes(kept[i][: len(kept[i]) // 2])
    paths[8].unlink()
    with pytest.raises(ValueError, match=r"^7 of 70 images cannot be read: .*01.png is trunc") as error:
        pack_images(paths, tmp_path, SIZE, workers)
    listed = (tmp_path / "32x16.unreadable.txt").read_text().splitlines()
    assert [next(i for i, path in enumerate(paths) if str(path) in line) for line in listed] == sorted(kept)
    assert all(("there is no image" in line) == ("08.png" in line) for line in listed)
    assert "32.png" in str(error.value) and "33.jpg" not in str(error.value)
    assert str(error.value).endswith(f"; ...; all of them are listed in {tmp_path / '32x16.unreadable.txt'}")
    good = [path for i, path in enumerate(paths) if i not in kept]
    assert torch.equal(pixels(good, tmp_path), expected(good))
    for i, content in kept.items():
        paths[i].write_bytes(content)
    assert pack_images(paths, tmp_path, SIZE, workers) == PackCounts(IMAGES - 7, 0, 7)
    assert not (tmp_path / "32x16.unreadable.txt").exists()


def test_a_cache_that_cannot_be_written(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="^data.cache=.*/file: cannot create this folder: "):
        pack_images(paths, tmp_path / "file", SIZE)
    pack_images(paths[:10], tmp_path, SIZE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 60 * 3 * 32 * 16 - 1))
    with pytest.raises(OSError, match="^data.cache=.*: 0.00 GB are needed for images of 32x16, 0.00 GB are free$"):
        pack_images(paths, tmp_path, SIZE)
    pack_images(paths[:-1], tmp_path, SIZE)


def test_what_workers_get_of_an_open_cache_is_small(paths: list[Path], tmp_path: Path) -> None:
    pack_images(paths, tmp_path, SIZE)
    packed = PackedImages(paths, tmp_path, SIZE)
    assert isinstance(packed.pixels, np.memmap) and packed.pixels.mode == "r"
    sent = pickle.dumps(packed)
    assert len(sent) < IMAGES * 200 < packed.pixels.nbytes
    out = torch.empty(IMAGES, 3, *SIZE, dtype=torch.uint8)
    pickle.loads(sent).fill(range(IMAGES), out)
    assert torch.equal(out, expected(paths))


def test_no_images_need_no_cache(tmp_path: Path) -> None:
    assert pack_images([], tmp_path, SIZE) == PackCounts(0, 0, 0)
    PackedImages([], tmp_path, SIZE).fill([], torch.empty(0, 3, *SIZE, dtype=torch.uint8))


def test_interrupted_packing_goes_on(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    monkeypatch.setattr("training.data.images.pack.CHUNK", 8)
    decode = transforms.decode

    def interrupt(path: Path | str, *arguments: object) -> torch.Tensor:
        if Path(path).name == "20.png":
            raise KeyboardInterrupt
        return decode(path, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(transforms, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pack_images(paths, tmp_path, SIZE)
    decoded.clear()
    # Two whole chunks were done.
    assert pack_images(paths, tmp_path, SIZE) == PackCounts(16, 0, IMAGES - 16)
    assert len(decoded) == IMAGES - 16 and torch.equal(pixels(paths, tmp_path), expected(paths))


def test_prepare_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str], decoded: list[str]) -> None:
    root = make_pedes(tmp_path / "pedes")
    command = ["pack", "cuhk-pedes", str(root), str(tmp_path / "cache"), "--image-size", "32", "16"]
    for expected_text in ("0 current, 0 known by content, 30 decoded", "30 current, 0 known by content, 0 decoded"):
        assert cli.run(prepare.main, command) == 0
        assert expected_text in " ".join(capsys.readouterr().err.split())
    assert len(decoded) == 30
    (root / "imgs" / "train" / "0001_0.jpg").write_bytes(b"no image")
    assert cli.run(prepare.main, [*command, "--check"]) == 2
    assert "error: 1 of 30 images cannot be read: " in capsys.readouterr().err
