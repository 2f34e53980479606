"""Images as cameras, scanners and people write them."""

import io
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.pedes_dataset import TEST, TRAIN, VAL, make_pedes
from tests.support.tiny_run import tiny_config
from training.config import DataConfig
from training.data.datasets import read_dataset
from training.data.image_digests import ImageDigests, digest_images
from training.data.images import reading
from training.data.images.readable import require_readable
from training.data.images.reading import read_rgb
from training.data.images.source import open_images
from training.data.images.transforms import decode
from training.data.validation.decode_cache import CACHE, decode_file
from training.describe.llm.providers import load_image
from training.report.thumbnails import thumbnail
from training.train import train

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(read_rgb(content))


def corners() -> Image.Image:
    """4 x 6 pixels with a red one top left and a blue one top right."""
    image = Image.new("RGB", (4, 6), WHITE)
    image.putpixel((0, 0), RED)
    image.putpixel((3, 0), BLUE)
    return image


@pytest.mark.parametrize(
    ("orientation", "turn_back"),
    [(2, 0), (3, 1), (4, 2), (5, 5), (6, 3), (7, 6), (8, 4)],
)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_images_stand_as_their_camera_was_held(orientation: int, turn_back: int, form: str) -> None:
    turns = (
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.TRANSVERSE,
    )
    upright = corners().resize((32, 48), Image.Resampling.NEAREST)
    stored = upright.transpose(turns[turn_back])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    got = pixels(encoded(stored, form, exif=exif, **options))
    assert got.shape == (48, 32, 3)
    assert np.abs(got.astype(int) - np.asarray(upright)).max() <= (40 if form == "JPEG" else 0)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12", b"Exif\0\0" + b"\xff" * 30])
def test_damaged_exif_is_no_damage_of_the_image(exif: bytes) -> None:
    assert pixels(encoded(corners(), "PNG", exif=exif)).shape == (6, 4, 3)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_grey(form: str) -> None:
    values = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    grey = pixels(encoded(Image.fromarray(values), form))
    assert grey[0, :, 0].tolist() == [0, 1, 128, 255] and (grey == grey[..., :1]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([-5.0, 0.0, 1e6], [0, 0, 255]),
    ],
)
def test_floats_are_scaled_by_their_range(values: list[float], expected: list[int]) -> None:
    assert pixels(encoded(Image.fromarray(np.array([values], np.float32)), "TIFF"))[0, :, 0].tolist() == expected


def test_integers_of_32_bits_and_floats_that_are_no_numbers() -> None:
    image = Image.fromarray(np.array([[0, 100, 255]], np.int32))
    assert pixels(encoded(image, "TIFF"))[0, :, 0].tolist() == [0, 100, 255]
    image = Image.fromarray(np.array([[0.0, np.nan]], np.float32))
    with pytest.raises(ValueError, match="its pixels are not finite numbers"):
        read_rgb(encoded(image, "TIFF"))


def test_transparent_parts_are_white_and_not_what_hides_below() -> None:
    hidden = Image.new("RGBA", (2, 1), (*RED, 0))
    hidden.putpixel((1, 0), (*BLUE, 255))
    assert pixels(encoded(hidden, "PNG"))[0].tolist() == [list(WHITE), list(BLUE)]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([*BLUE, *RED])
    palette.putpixel((0, 0), 0)
    assert pixels(encoded(palette, "GIF", transparency=1))[0].tolist() == [list(BLUE), list(WHITE)]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert pixels(encoded(grey, "PNG"))[0, 0].tolist() == list(WHITE)


@pytest.mark.parametrize("values", [[RED, BLUE], [100, 20]])
def test_a_colour_that_stands_for_transparent_is_white(values: list) -> None:
    pixel = np.array([values], np.uint8)
    content = encoded(Image.fromarray(pixel), "PNG", transparency=values[0])
    assert pixels(content)[0].tolist() == [list(WHITE), np.broadcast_to(pixel[0, 1], 3).tolist()]
    wide = Image.fromarray(np.array([[1000, 0]], np.uint16))
    assert pixels(encoded(wide, "PNG", transparency=1000))[0].tolist() == [list(WHITE), [0, 0, 0]]


def test_a_transparent_colour_is_white_wherever_images_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), RED).save(path, transparency=RED)
    assert bool((decode(path, (4, 4)) == 255).all())
    with Image.open(io.BytesIO(load_image(path).data)) as image:
        assert np.asarray(image).min() > 250


def test_animations_give_their_first_frame_and_cmyk_its_colours() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert np.abs(pixels(content)[0, 0].astype(int) - RED).max() < 5
    print_colours = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    for form in ("JPEG", "TIFF"):
        assert np.abs(pixels(encoded(print_colours, form))[0, 0].astype(int) - RED).max() < 5


def bomb(width: int, height: int) -> bytes:
    return encoded(Image.new("1", (width, height)), "PNG")


def test_large_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(bomb(9000, 9000))
    with pytest.raises(ValueError, match=r"huge.png cannot be read: 9000 x 9000 pixels are more than data.max_pixels"):
        decode(path, (8, 8))
    assert decode_file(path).damage == "too many pixels" and thumbnail(path) is None
    with pytest.raises(OSError, match="pixels are more than data.max_pixels"):
        load_image(path)
    path.write_bytes(bomb(100, 100))
    with pytest.raises(ValueError, match=r"more than data.max_pixels \(9,999\)"):
        decode(path, (8, 8), max_pixels=9999)
    assert decode(path, (8, 8), max_pixels=10_000).shape == (3, 8, 8)
    path.write_bytes(bomb(60_000, 60_000)[:100])
    with pytest.raises(ValueError, match="huge.png"):
        decode(path, (8, 8))


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64


def test_heic_without_a_plugin_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "phone.heic"
    path.write_bytes(HEIC)
    monkeypatch.setitem(sys.modules, reading.PLUGIN, None)
    reading._register_plugin.cache_clear()
    assert decode_file(path).damage == "HEIC without a plugin"
    with pytest.raises(ValueError, match="phone.heic cannot be read: a HEIC image, which needs a plugin: pip install"):
        decode(path, (8, 8))
    reading._register_plugin.cache_clear()


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_heic_is_read_by_its_plugin_and_turned_once(orientation: int, tmp_path: Path) -> None:
    plugin = pytest.importorskip(reading.PLUGIN)
    pixels = np.zeros((64, 32, 3), np.uint8)
    pixels[:20, :16], pixels[20:] = (220, 30, 30), (30, 30, 220)
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "phone.png", exif=exif)
    plugin.from_pillow(image).save(tmp_path / "phone.heic", quality=95, exif=exif.tobytes())
    assert decode_file(tmp_path / "phone.heic").damage == ""
    read, right = (
        np.asarray(read_rgb((tmp_path / name).read_bytes())).astype(int) for name in ("phone.heic", "phone.png")
    )
    # HEVC keeps less of the colours than PNG.
    assert read.shape == right.shape and np.abs(read - right).mean() < 2


def test_reports_and_describing_models_see_the_same_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (48, 32), RED).save(path, exif=exif)
    sent = load_image(path)
    with Image.open(io.BytesIO(sent.data)) as image:
        assert sent.media_type == "image/jpeg" and image.size == (32, 48) and not image.getexif().get(0x0112)
    Image.new("RGB", (48, 32), RED).save(path)
    assert load_image(path).data == path.read_bytes()


@pytest.mark.parametrize("name", [TRAIN, VAL, TEST])
def test_every_split_is_checked_before_training(tmp_path: Path, name: str) -> None:
    root = make_pedes(tmp_path / "data")
    (root / "imgs" / name).write_bytes((root / "imgs" / name).read_bytes()[:500])
    config = tiny_config(root)
    with pytest.raises(
        ValueError, match=rf"images of .* cannot be read \(.*{name.split('/')[0]} 1.*\): {name}: (truncated|damaged)"
    ):
        train(replace(config, optim=replace(config.optim, epochs=1, warmup_epochs=0)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_check_opens_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_pedes(tmp_path)
    splits = read_dataset(DataConfig(root=str(root))).splits
    digests = require_readable(root, splits, 10**8)
    assert digests == digest_images(splits.values(), ImageDigests())
    lines = (root / CACHE).read_text().count("\n")
    assert lines == 30
    seen: list[tuple[int, int]] = []
    assert require_readable(root, splits, 10**8, lambda done, total: seen.append((done, total))) == digests
    assert seen == [(30, 30)]
    os.utime(root / "imgs" / VAL, (1, 1))
    require_readable(root, splits, 10**8)
    assert (root / CACHE).read_text().count("\n") == lines + 1
    (root / CACHE).unlink()
    with pytest.raises(ValueError, match="30 in all.*"):
        require_readable(root, splits, 100)
    assert (root / CACHE).read_text() == "", "the limit is none of the files"


def test_a_size_that_is_not_known_yet_is_refused() -> None:
    with pytest.raises(ValueError, match="data.image_size 0 0 has to be replaced by that of the visual encoder first"):
        open_images([], DataConfig())


def test_ordinary_images_keep_their_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 30, 3), dtype=np.uint8)).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB").resize((16, 32), Image.Resampling.BILINEAR))
    assert torch.equal(decode(path, (32, 16)), torch.from_numpy(expected.copy()).permute(2, 0, 1))
