"""Results of decoding an image file, and the cache that keeps them."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from training.data.validation import decode_cache
from training.data.validation.decode_cache import DecodeCache, decode_file, decode_files

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (48, 24, 3), dtype=np.uint8)


def encoded(form: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("BMP", "RGB")]
)
def test_whole_files(tmp_path, form, mode):
    (tmp_path / "a").write_bytes(encoded(form, mode))
    picture = decode_file(tmp_path / "a")
    assert (picture.format, picture.mode, picture.damage, len(picture.sha256)) == (form, mode, "", 64)


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        (b"", "zero bytes"),
        (b"<html>not found</html>", "no image"),
        (encoded("JPEG")[:-40], "truncated"),
        (encoded("JPEG")[:700], "truncated"),
        (encoded("BMP")[:-1], "truncated"),
        (encoded("PNG")[:400], "truncated"),
        (encoded("PNG").replace(b"IDAT", b"IDAX"), "no image"),
        (encoded("PNG")[:300] + bytes(len(encoded("PNG")) - 320) + encoded("PNG")[-20:], "damaged"),
    ],
)
def test_damaged_files(tmp_path, content, damage):
    (tmp_path / "a").write_bytes(content)
    assert decode_file(tmp_path / "a").damage == damage


def test_a_jpeg_at_an_eighth_of_its_size_shows_the_same_damage(tmp_path):
    """Every cut is found, wherever it is."""
    whole = encoded("JPEG")
    for end in range(1, len(whole) - 2, 37):
        (tmp_path / "a").write_bytes(whole[:end])
        damage = decode_file(tmp_path / "a").damage
        with pytest.raises((OSError, SyntaxError)), Image.open(io.BytesIO(whole[:end])) as image:
            image.load()
        assert damage, end


def test_a_file_that_the_disk_does_not_give(tmp_path):
    picture = decode_file(tmp_path)
    assert (picture.sha256, picture.damage) == ("", "not readable") and "directory" in picture.detail


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "imgs").mkdir()
    for i in range(10):
        (tmp_path / "imgs" / f"{i}.bmp").write_bytes(encoded("BMP") + bytes([i]))
    return tmp_path


def looked(folder, monkeypatch, progress=lambda done, total: None, names=None):
    """(results, names of the files that were opened) of a pass over the folder with the cache in it."""
    opened = []

    def count(path, max_pixels):
        opened.append(path.name)
        return decode_file(path, max_pixels)

    monkeypatch.setattr(decode_cache, "decode_file", count)
    cache = DecodeCache(folder / "cache.jsonl")
    try:
        names = names or [f"{i}.bmp" for i in range(10)]
        return decode_files(folder / "imgs", names, cache, 2, progress), sorted(opened)
    finally:
        cache.close()


def test_results_are_kept(folder, monkeypatch):
    first, opened = looked(folder, monkeypatch)
    assert len(first) == len(opened) == 10 and len({p.sha256 for p in first.values()}) == 10
    again, opened = looked(folder, monkeypatch)
    assert again == first and opened == []


def test_changed_files_are_opened_again(folder, monkeypatch):
    first, _ = looked(folder, monkeypatch)
    touched, grown = folder / "imgs" / "3.bmp", folder / "imgs" / "7.bmp"
    stat = touched.stat()
    touched.write_bytes(encoded("BMP") + b"x")
    os.utime(touched, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    stat = grown.stat()
    grown.write_bytes(encoded("BMP") + b"xy")
    os.utime(grown, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again, opened = looked(folder, monkeypatch)
    assert opened == ["3.bmp", "7.bmp"] and all(again[name] != first[name] for name in opened)
    assert looked(folder, monkeypatch) == (again, [])


def test_an_interrupted_pass_goes_on(folder, monkeypatch):
    monkeypatch.setattr(decode_cache, "BATCH", 4)

    def interrupt(done, total):
        assert total == 10
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        looked(folder, monkeypatch, interrupt)
    seen = []
    results, opened = looked(folder, monkeypatch, lambda done, total: seen.append(done))
    assert len(results) == 10 and opened == [f"{i}.bmp" for i in range(4, 10)] and seen == [4, 8, 10]


def test_what_a_kill_or_another_program_left_in_the_cache(folder, monkeypatch):
    first, _ = looked(folder, monkeypatch)
    file = folder / "cache.jsonl"
    lines = file.read_text().splitlines()
    lines[0] = "[]"
    lines[1] = json.dumps({**json.loads(lines[1]), "unknown": 1})
    file.write_text("\n".join(lines)[:-30])
    again, opened = looked(folder, monkeypatch)
    assert again == first and opened == ["0.bmp", "1.bmp", "9.bmp"]
    assert looked(folder, monkeypatch) == (first, [])


def test_files_that_could_not_be_read_are_tried_again(folder, monkeypatch):
    (folder / "imgs" / "x").mkdir()
    results, opened = looked(folder, monkeypatch, names=["x"])
    assert results["x"].damage == "not readable" and opened == ["x"]
    assert looked(folder, monkeypatch, names=["x"])[1] == ["x"]


def test_the_same_name_in_another_folder_is_another_file(tmp_path):
    cache, hashes = DecodeCache(tmp_path / "cache.jsonl"), set()
    for i, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.bmp").write_bytes(encoded("BMP") + bytes([i]))
        os.utime(tmp_path / name / "0.bmp", ns=(1, 1))
        hashes.add(decode_files(tmp_path / name, ["0.bmp"], cache, 1)["0.bmp"].sha256)
    cache.close()
    assert len(hashes) == 2
