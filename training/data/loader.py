"""Batches of tensors: augmented for training, plain for evaluation.

Shapes: B images, C = 3 channels, H, W pixels, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from training.config import DataConfig
from training.data import transforms
from training.data.datasets import Dataset, Record
from training.data.sampler import PKSampler, Sampler, ShuffledSampler, random_numbers

# Decoded images are kept in memory up to this many bytes: 43,690 images of 128x64.
CACHE_BYTES = 2**30
# Texts per call of the tokenizer; bounds the memory of its intermediate lists.
TOKENIZE_CHUNK = 4096

T = TypeVar("T")


@dataclass(frozen=True)
class TextBatch:
    """Token ids and attention mask (1 token, 0 padding), both int64 (B, T), padded on the right."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor

    def to(self, device: torch.device | str) -> TextBatch:
        """The same on a device."""
        return TextBatch(self.input_ids_BT.to(device), self.attention_mask_BT.to(device))

    def part(self, rows: slice) -> TextBatch:
        """Some of the texts, padded as before."""
        return TextBatch(self.input_ids_BT[rows], self.attention_mask_BT[rows])


@dataclass(frozen=True)
class Batch:
    """One train batch; the three texts of an image stand in the same row and are padded to the same T."""

    # float32 (B, 3, H, W), augmented and normalised.
    images_BCHW: Tensor
    # One human caption of each image, its identity text and its clothing text.
    captions: TextBatch
    identity: TextBatch
    clothing: TextBatch
    # Person ids, int64 (B).
    ids_B: Tensor
    # int64 (B); equal where the clothing texts are equal.
    clothing_group_B: Tensor
    # file_path of each image.
    paths: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if name != "paths"}
        return dataclasses.replace(self, **moved)

    def part(self, rows: slice) -> Batch:
        """Some of the rows."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        some: dict[str, Any] = {k: v.part(rows) if isinstance(v, TextBatch) else v[rows] for k, v in values.items()}
        return dataclasses.replace(self, **some)


def tokenize(tokenizer: Any, texts: Sequence[str], text_length: int) -> TextBatch:
    """Texts as int64 (B, T): at most `text_length` tokens with [CLS] and [SEP], padded to the longest of them."""
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=text_length,
        padding="longest",
        padding_side="right",
        return_token_type_ids=False,
        return_tensors="pt",
    )
    return TextBatch(encoded["input_ids"], encoded["attention_mask"])


class _TextTable:
    """Distinct texts, tokenized once: tokenizing 192 texts a step costs more than the rest of the batch."""

    def __init__(self, tokenizer: Any, texts: Iterable[str], text_length: int) -> None:
        self.row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        distinct = list(self.row)
        starts = range(0, len(distinct), TOKENIZE_CHUNK)
        parts = [tokenize(tokenizer, distinct[i : i + TOKENIZE_CHUNK], text_length) for i in starts]
        self.lengths = torch.cat([part.attention_mask_BT.sum(1) for part in parts])
        self.tokens = torch.full((len(distinct), int(self.lengths.max())), tokenizer.pad_token_id, dtype=torch.int32)
        for i, part in zip(starts, parts, strict=True):
            self.tokens[i : i + len(part.input_ids_BT), : part.input_ids_BT.shape[1]] = part.input_ids_BT

    def batch(self, rows: list[int]) -> TextBatch:
        """The texts of these rows, padded to the longest of them."""
        lengths_B = self.lengths[rows]
        longest = int(lengths_B.max())
        mask_BT = torch.arange(longest) < lengths_B[:, None]
        return TextBatch(self.tokens[rows, :longest].long(), mask_BT.long())


class _Images:
    """Decoded and resized images, kept after the first visit if all of them fit into CACHE_BYTES."""

    def __init__(self, paths: list[Path], image_size: tuple[int, int], keep: bool) -> None:
        self.paths, self.image_size = paths, image_size
        shape = (len(paths), 3, *image_size)
        fits = keep and int(np.prod(shape, dtype=np.int64)) <= CACHE_BYTES
        # Untouched pages of torch.empty cost no memory.
        self.pixels = torch.empty(shape, dtype=torch.uint8) if fits else None
        self.known = [False] * len(paths)

    def part(self, part: slice) -> Tensor:
        """uint8 (B, 3, H, W) of a slice with both ends given."""
        return self.get(range(part.start, part.stop))

    def get(self, indices: Sequence[int]) -> Tensor:
        """uint8 (B, 3, H, W)"""
        if self.pixels is None:
            return torch.stack([transforms.decode(self.paths[i], self.image_size) for i in indices])
        for i in indices:
            if not self.known[i]:
                self.pixels[i] = transforms.decode(self.paths[i], self.image_size)
                self.known[i] = True
        return self.pixels[list(indices)]


class _Guarded:
    """Map-style data set that returns an error instead of raising it: DataLoader would wrap its text in a traceback."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.make(key)
        except (OSError, ValueError) as error:
            return error


def _identity(value: T) -> T:
    return value


def _stream(make: Callable[[Any], T], keys: list[Any], workers: int) -> Iterator[T]:
    """make(key) for each key in order, computed in this process or ahead of time in `workers` others."""
    if workers == 0:
        yield from map(make, keys)
        return
    # A generator of its own, so that the number of workers does not shift torch's global random numbers.
    source: Any = DataLoader(
        _Guarded(make),  # type: ignore[arg-type]
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_identity,
        generator=torch.Generator().manual_seed(0),
    )
    for value in source:
        if isinstance(value, Exception):
            raise value
        yield value


class TrainLoader:
    """Train batches of a data set; the batches of an epoch depend on (seed, epoch) only, not on config.workers.

    With workers == 0 decoded images are cached (see CACHE_BYTES); each worker process starts anew every epoch and
    caches nothing.

    Raises ValueError from the sampler (too few identities) and, while iterating, for an image that cannot be decoded.
    """

    def __init__(self, dataset: Dataset, tokenizer: Any, config: DataConfig, seed: int) -> None:
        self.config, self.seed, self.epoch, self.start = config, seed, 0, 0
        self.records = dataset.splits["train"]
        ids = [record.id for record in self.records]
        self.sampler: Sampler = (
            PKSampler(ids, config.ids_per_batch, config.images_per_id, seed)
            if config.images_per_id
            else ShuffledSampler(len(ids), config.batch_size, seed)
        )
        texts = (text for r in self.records for text in (*r.captions, r.identity, r.clothing))
        self.table = _TextTable(tokenizer, texts, config.text_length)
        self.images = _Images([record.path for record in self.records], config.image_size, keep=config.workers == 0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The next iteration yields the batches of this epoch, the first `start` of them left out."""
        self.epoch, self.start = epoch, start
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        keys = [(self.epoch, position, indices) for position, indices in enumerate(self.sampler)]
        return _stream(self._batch, keys[self.start :], self.config.workers)

    def _batch(self, key: tuple[int, int, list[int]]) -> Batch:
        epoch, position, indices = key
        records = [self.records[i] for i in indices]
        rng = random_numbers(self.seed, "batch", epoch, position)
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        drawn = rng.random(len(records)).tolist()
        captions = [r.captions[int(u * len(r.captions))] for r, u in zip(records, drawn, strict=True)]
        config, row = self.config, self.table.row
        images = transforms.augment(self.images.get(indices), config.pad, config.flip, config.erase, generator)
        clothing = [row[r.clothing] for r in records]
        texts = self.table.batch([*(row[text] for text in captions), *(row[r.identity] for r in records), *clothing])
        parts = zip(texts.input_ids_BT.chunk(3), texts.attention_mask_BT.chunk(3), strict=True)
        caption, identity, garments = (TextBatch(tokens, mask) for tokens, mask in parts)
        return Batch(
            images_BCHW=images,
            captions=caption,
            identity=identity,
            clothing=garments,
            ids_B=torch.tensor([r.id for r in records]),
            clothing_group_B=torch.tensor(clothing),
            paths=tuple(r.file_path for r in records),
        )


def iterate_images(records: Sequence[Record], config: DataConfig, batch_size: int) -> Iterator[tuple[Tensor, slice]]:
    """(images_BCHW, slice of `records` that they are) in order: float32 (B, 3, H, W), normalised, not augmented.

    Raises ValueError for an image that cannot be decoded, FileNotFoundError for one that has gone.
    """
    images = _Images([record.path for record in records], config.image_size, keep=False)
    starts = range(0, len(records), batch_size)
    slices = [slice(start, min(start + batch_size, len(records))) for start in starts]
    decoded = _stream(images.part, slices, config.workers)
    for pixels, part in zip(decoded, slices, strict=True):
        yield transforms.normalise(pixels), part
