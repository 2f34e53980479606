"""Decoding, normalisation and augmentation of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.images.transforms import DRAWS, augment, decode, decode_into, normalise

SHAPE = (8, 3, 32, 16)


def draws(images: torch.Tensor, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((len(images), DRAWS))


def random_images(shape=SHAPE) -> torch.Tensor:
    # 255 / 2 is no uint8, so no normalised pixel is 0: zeros mark what was padded or erased.
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def save(path, pixels_HWC: np.ndarray, **options):
    Image.fromarray(pixels_HWC).save(path, **options)
    return path


def test_decode_keeps_pixels_of_the_right_size(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 10, 3), dtype=np.uint8)
    image = decode(save(tmp_path / "a.bmp", pixels), (20, 10))
    assert image.dtype == torch.uint8 and image.is_contiguous()
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


def test_decode_resizes_to_height_and_width_with_antialiasing(tmp_path):
    stripes = np.zeros((64, 32, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    image = decode(save(tmp_path / "a.png", stripes), (16, 8))
    assert image.shape == (3, 16, 8)
    # Without the antialiasing filter, stripes of one pixel would give 0 or 200.
    assert ((image > 80) & (image < 120)).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_decode_makes_rgb_of_every_mode(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (8, 16), (255, 255, 255)).convert(mode).save(path)
    assert torch.equal(decode(path, (16, 8)), torch.full((3, 16, 8), 255, dtype=torch.uint8))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_truncated_image(tmp_path, suffix, share):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    path = save(tmp_path / f"cut.{suffix}", pixels)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"cut.{suffix} is truncated or not a readable image: "):
        decode(path, (64, 32))


def test_image_that_has_gone(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no image .*gone.jpg"):
        decode(tmp_path / "gone.jpg", (16, 8))


def test_folder_in_place_of_an_image(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    for path in (tmp_path / "folder.jpg", str(tmp_path / "folder.jpg")):
        with pytest.raises(ValueError, match=r"folder.jpg is truncated or not a readable image: .*Is a directory"):
            decode(path, (16, 8))


def test_normalise_maps_bytes_to_plus_minus_one():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = torch.tensor([-1.0, -0.6, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(normalise(images), expected)
    assert images.flatten().tolist() == [0, 51, 255]


def test_augmentation_switched_off_only_normalises():
    images = random_images()
    assert torch.equal(augment(images, draws(images), 0, 0.0, 0.0), normalise(images))


def test_flip_mirrors_the_width():
    images = random_images()
    assert torch.equal(augment(images, draws(images), 0, 1.0, 0.0), normalise(images).flip(-1))
    images = random_images((64, 3, 8, 8))
    half, plain = augment(images, draws(images), 0, 0.5, 0.0), normalise(images)
    same = sum(torch.equal(a, b) for a, b in zip(half, plain, strict=True))
    mirrored = sum(torch.equal(a, b.flip(-1)) for a, b in zip(half, plain, strict=True))
    assert same + mirrored == 64 and 16 < same < 48


def test_pad_and_crop_is_a_crop_of_the_padded_image():
    images, pad = random_images((64, *SHAPE[1:])), 3
    padded = torch.nn.functional.pad(normalise(images), (pad, pad, pad, pad))
    result = augment(images, draws(images), pad, 0.0, 0.0)
    offsets = set()
    for i, image in enumerate(result):
        crops = {(y, x): padded[i, :, y : y + 32, x : x + 16] for y in range(7) for x in range(7)}
        (found,) = [offset for offset, crop in crops.items() if torch.equal(crop, image)]
        offsets.add(found)
    assert {y for y, _ in offsets} == {x for _, x in offsets} == set(range(7))


def test_padding_larger_than_the_image_leaves_half_of_each_side():
    images = random_images((64, *SHAPE[1:]))
    result = augment(images, draws(images), 500, 0.0, 0.0)
    assert ((result != 0).sum(dim=(1, 2, 3)) >= 3 * 16 * 8).all()


def test_erase_zeroes_one_rectangle():
    images = random_images((200, 3, 40, 20))
    result = augment(images, draws(images), 0, 0.0, 1.0)
    areas = []
    for image, plain in zip(result, normalise(images), strict=True):
        rows, columns = (image[0] == 0).any(1).nonzero().flatten(), (image[0] == 0).any(0).nonzero().flatten()
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        plain[:, top:bottom, left:right] = 0
        assert torch.equal(image, plain)
        areas.append((bottom - top) * (right - left) / 800)
    # 2 % to 40 % of the image, whole pixels; a side cut to the image makes the rectangle smaller.
    assert min(areas) > 0.01 and max(areas) < 0.42 and 0.12 < np.mean(areas) < 0.25


def test_erase_probability():
    images = random_images((400, 3, 16, 16))
    result = augment(images, draws(images), 0, 0.0, 0.25)
    erased = sum(bool((image == 0).any()) for image in result)
    assert 70 < erased < 130


def test_draws_decide_about_each_image_whatever_is_beside_it():
    images, numbers = random_images(), draws(random_images(), 1)
    full = augment(images, numbers, 4, 0.5, 0.5)
    assert torch.equal(full, augment(images, numbers, 4, 0.5, 0.5))
    assert not torch.equal(full, augment(images, draws(images, 2), 4, 0.5, 0.5))
    order = [5, 0, 3]
    assert torch.equal(full[order], augment(images[order], numbers[order], 4, 0.5, 0.5))


def test_each_number_has_its_use():
    images, numbers = random_images((64, *SHAPE[1:])), draws(random_images((64, *SHAPE[1:])))
    kept = augment(images, numbers, 4, 0.0, 0.5) != 0
    # What is padded and erased does not change when flipping is switched on.
    assert torch.equal(kept, augment(images, numbers, 4, 1.0, 0.5) != 0)


def test_decode_into_rows_and_from_bytes_is_decode(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 20, 3), dtype=np.uint8)
    paths = [save(tmp_path / f"{i}.jpg", image) for i, image in enumerate(pixels)]
    out = torch.full((5, 3, 32, 16), 7, dtype=torch.uint8)
    decode_into(out, [4, 0, 2], paths)
    decoded = [decode(path, (32, 16)) for path in paths]
    assert all(torch.equal(out[row], image) for row, image in zip([4, 0, 2], decoded, strict=True))
    assert (out[[1, 3]] == 7).all()
    content = paths[1].read_bytes()
    paths[1].unlink()
    assert torch.equal(decode(paths[1], (32, 16), content), decoded[1])


def test_every_bad_image_of_a_batch_is_named(tmp_path):
    paths = [save(tmp_path / f"{i}.png", np.zeros((16, 8, 3), np.uint8)) for i in range(4)]
    out = torch.empty(4, 3, 16, 8, dtype=torch.uint8)
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match="^there is no image .*1.png$"):
        decode_into(out, range(4), paths)
    paths[3].write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"^2 of the 4 images of a batch cannot be read: there is .*1.png; .*3.png is tru"
    ):
        decode_into(out, range(4), paths)
    paths[3].unlink()
    with pytest.raises(FileNotFoundError, match=r"^2 of the 4 images of a batch"):
        decode_into(out, range(4), paths)
