"""Image transforms: decoding, normalisation and the augmentation of training images (reading 22).

Shapes: B images, C = 3 channels (RGB), H, W pixels. No colour jitter: captions name colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.config import MAX_PIXELS
from training.data.images.reading import DAMAGED, NoPluginError, TooManyPixelsError, read_rgb

# Mean and standard deviation of google/vit-base-patch16-224, the same for the three channels, in units of 255.
MEAN = STD = 0.5
# Erased area relative to the image, and the height to width ratio: Zhong et al., Random Erasing Data Augmentation
# (AAAI 2020), section 4.2.
ERASE_AREA = (0.02, 0.4)
ERASE_RATIO = (0.3, 1 / 0.3)
# Uniform numbers per image for `augment` (D).
DRAWS = 8


def decode(
    path: Path | str, image_size: tuple[int, int], content: bytes | None = None, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """One image as uint8 (3, H, W), RGB as `reading` makes it, resized with an antialiased bilinear filter.

    content: the bytes of the file, if already read. Raises FileNotFoundError if there is no file, ValueError if it is
    truncated, not an image, larger than `max_pixels` or a folder.
    """
    pixels = torch.empty(3, *image_size, dtype=torch.uint8)
    _decode(path, pixels.numpy(), content, max_pixels)
    return pixels


def decode_into(out_BCHW: Tensor, rows: Sequence[int], paths: Sequence[Path], max_pixels: int = MAX_PIXELS) -> None:
    """`decode` of each path into its row of a uint8 (B, 3, H, W) tensor.

    All paths are tried before an error that names every bad one: FileNotFoundError if all of those are missing, else
    ValueError. The rows of bad images keep their contents.
    """
    # Directly into the row: a tensor per image and a stack would copy 147 kB twice more.
    out = out_BCHW.numpy()
    errors: list[Exception] = []
    for row, path in zip(rows, paths, strict=True):
        try:
            _decode(path, out[row], None, max_pixels)
        except (FileNotFoundError, ValueError) as error:
            errors.append(error)
    if errors:
        kind = FileNotFoundError if all(isinstance(error, FileNotFoundError) for error in errors) else ValueError
        number = f"{len(errors)} of the {len(paths)} images of a batch cannot be read: " if len(errors) > 1 else ""
        raise kind(number + "; ".join(map(str, errors)))


def _decode(path: Path | str, out_CHW: np.ndarray, content: bytes | None, max_pixels: int) -> None:
    height, width = out_CHW.shape[1:]
    try:
        if content is None:
            # In one unbuffered read: Pillow reads a path in several, and `_decode` takes 2 % longer for a JPEG of 192x96 (no
            # difference at 600x250). A buffered read, as in Path.read_bytes, gains nothing.
            with open(path, "rb", buffering=0) as file:
                content = file.read()
        image = read_rgb(content, max_pixels).resize((width, height), Image.Resampling.BILINEAR)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no image {path}") from error
    except (TooManyPixelsError, NoPluginError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except DAMAGED as error:
        raise ValueError(f"{path} is truncated or not a readable image: {error}") from error
    # Channel by channel: 0.03 ms for 384x128, all channels at once and a transposition take 0.08.
    for plane_HW, channel in zip(out_CHW, "RGB", strict=True):
        plane_HW[:] = np.frombuffer(image.tobytes("raw", channel), np.uint8).reshape(height, width)


def normalise(images_BCHW: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 of the same shape, (x / 255 - MEAN) / STD."""
    source, result = images_BCHW.numpy(), _empty_float32(images_BCHW.shape)
    for pixels, out in zip(source, result, strict=True):
        _normalise_into(pixels, out)
    return torch.from_numpy(result)


def augment(images_BCHW: Tensor, draws_BD: np.ndarray, pad: int, flip: float, erase: float) -> Tensor:
    """Augments and normalises training images: flip, padding by `pad` pixels and crop, one rectangle erased.

    `images_BCHW` is uint8 (B, 3, H, W), the result float32 of the same shape; `flip` and `erase` are probabilities.
    Padding and erased pixels get 0, the mean after normalisation. Row i of `draws_BD` (B, DRAWS), uniform in [0, 1),
    determines the augmentation of image i; each number has one use, so that an image gets the same crop when another
    option is switched off.
    """
    height, width = images_BCHW.shape[2:]
    shift = np.floor(draws_BD[:, 1:3] * (2 * pad + 1)).astype(int) - pad
    # An image smaller than the padding could be cropped away: at least half of it stays.
    limit = np.array([height // 2, width // 2])
    shift = np.clip(shift, -limit, limit).tolist()
    boxes = _erase_boxes(draws_BD[:, 4:], height, width)
    result, crop = _empty_float32(images_BCHW.shape), np.zeros(images_BCHW.shape[1:], np.uint8)
    for i, (dy, dx) in enumerate(shift):
        # torch flips bytes eight times as fast as numpy.
        image, out = (images_BCHW[i].flip(-1) if draws_BD[i, 0] < flip else images_BCHW[i]).numpy(), result[i]
        top, bottom, left, right = max(dy, 0), height + min(dy, 0), max(dx, 0), width + min(dx, 0)
        # Bytes are copied, then the whole image is normalised: arithmetic on a part of each line takes twice as long.
        crop[:, top:bottom, left:right] = image[:, top - dy : bottom - dy, left - dx : right - dx]
        _normalise_into(crop, out)
        out[:, :top], out[:, bottom:], out[:, :, :left], out[:, :, right:] = 0, 0, 0, 0
        if draws_BD[i, 3] < erase:
            top, left, bottom, right = boxes[i]
            out[:, top:bottom, left:right] = 0
    return torch.from_numpy(result)


def _empty_float32(shape: Sequence[int]) -> np.ndarray:
    """Uninitialised float32. numpy requests huge pages: 64 images of 384x128 take 5 ms, with torch 15."""
    return np.empty(tuple(shape), np.float32)


def _normalise_into(pixels: np.ndarray, out: np.ndarray) -> None:
    """(x / 255 - MEAN) / STD in float32, per image, so that the second pass finds the result of the first in the CPU cache."""
    np.subtract(pixels, np.float32(255 * MEAN), out=out)
    np.divide(out, np.float32(255 * STD), out=out)


def _erase_boxes(draws: np.ndarray, height: int, width: int) -> list[list[int]]:
    """Top, left, bottom, right of the rectangle of each image from `draws` (B, 4), uniform in [0, 1).

    A side longer than the image is clipped; the paper draws again instead, an unbounded number of times.
    """
    area = height * width * (ERASE_AREA[0] + draws[:, 0] * (ERASE_AREA[1] - ERASE_AREA[0]))
    ratio = np.exp(np.log(ERASE_RATIO[0]) + draws[:, 1] * np.log(ERASE_RATIO[1] / ERASE_RATIO[0]))
    rows = np.clip(np.rint(np.sqrt(area * ratio)), 1, height)
    columns = np.clip(np.rint(np.sqrt(area / ratio)), 1, width)
    top = np.floor(draws[:, 2] * (height - rows + 1))
    left = np.floor(draws[:, 3] * (width - columns + 1))
    return np.stack([top, left, top + rows, left + columns], axis=1).astype(int).tolist()
