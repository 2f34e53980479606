"""Images: decoding, normalisation and the train augmentation (reading 22).

Shapes: B images, C = 3 channels (RGB), H, W pixels. No colour jitter: captions name colours.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Mean and standard deviation of google/vit-base-patch16-224, the same for the three channels, in units of 255.
MEAN = STD = 0.5
# Erased area relative to the image, and the height to width ratio: Zhong et al., Random Erasing Data Augmentation
# (AAAI 2020), section 4.2.
ERASE_AREA = (0.02, 0.4)
ERASE_RATIO = (0.3, 1 / 0.3)
# Uniform numbers that `augment` takes per image.
DRAWS = 8


def decode(path: Path | str, image_size: tuple[int, int]) -> Tensor:
    """One image as uint8 (3, H, W), RGB, resized with an antialiased bilinear filter.

    Raises FileNotFoundError if there is no file, ValueError if it is truncated or no image.
    """
    height, width = image_size
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no image {path}") from error
    # What Pillow's decoders raise on damaged bytes; UnidentifiedImageError is an OSError.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is truncated or no readable image: {error}") from error
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def normalise(images_BCHW: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 of the same shape, (x / 255 - MEAN) / STD."""
    return _centred(images_BCHW.float())


def _centred(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.sub_(255 * MEAN).div_(255 * STD)


def augment(images_BCHW: Tensor, pad: int, flip: float, erase: float, generator: torch.Generator) -> Tensor:
    """Normalised train images: flipped, padded by `pad` pixels and cropped back, one rectangle erased.

    `images_BCHW` is uint8 (B, 3, H, W), the result float32 of the same shape; `flip` and `erase` are probabilities.
    Padding and erased pixels get 0, the mean after normalisation. Takes B * DRAWS numbers from `generator`, whatever
    the settings, so that image i is treated the same when another option is switched off.
    """
    batch, _, height, width = images_BCHW.shape
    draws = torch.rand(batch, DRAWS, generator=generator, dtype=torch.float64).numpy()
    shift = np.floor(draws[:, 1:3] * (2 * pad + 1)).astype(int) - pad
    # An image smaller than the padding could be cropped away whole: at least half of it stays.
    limit = np.array([height // 2, width // 2])
    shift = np.clip(shift, -limit, limit)
    boxes = _erased_boxes(draws[:, 4:], height, width)
    # Bytes are cropped straight into the float buffer: 1.9 ms for 64 images of 128x64, cropping floats takes 5.
    result = torch.full(images_BCHW.shape, 255 * MEAN)
    for i, (dy, dx) in enumerate(shift.tolist()):
        source = images_BCHW[i].flip(-1) if draws[i, 0] < flip else images_BCHW[i]
        rows, columns = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
        result[i, :, rows, columns] = source[:, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
        if draws[i, 3] < erase:
            top, left, bottom, right = boxes[i]
            result[i, :, top:bottom, left:right] = 255 * MEAN
    return _centred(result)


def _erased_boxes(draws: np.ndarray, height: int, width: int) -> list[list[int]]:
    """Top, left, bottom, right of the rectangle of each image from `draws` (B, 4), uniform in [0, 1).

    A side longer than the image is cut to it; the paper draws again instead, an unbounded number of times.
    """
    area = height * width * (ERASE_AREA[0] + draws[:, 0] * (ERASE_AREA[1] - ERASE_AREA[0]))
    ratio = np.exp(np.log(ERASE_RATIO[0]) + draws[:, 1] * np.log(ERASE_RATIO[1] / ERASE_RATIO[0]))
    rows = np.clip(np.rint(np.sqrt(area * ratio)), 1, height)
    columns = np.clip(np.rint(np.sqrt(area / ratio)), 1, width)
    top = np.floor(draws[:, 2] * (height - rows + 1))
    left = np.floor(draws[:, 3] * (width - columns + 1))
    return np.stack([top, left, top + rows, left + columns], axis=1).astype(int).tolist()
