"""Batches of tensors: augmented for training, plain for evaluation.

Shapes: B images, C = 3 channels, H, W pixels, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.config import DataConfig
from training.data.datasets import Dataset, Record
from training.data.images import transforms
from training.data.images.source import open_images, read_batches, update_cache
from training.data.pretrained_files import quiet
from training.data.sampler import PKSampler, Sampler, ShuffledSampler, random_numbers

# Texts per call of the tokenizer; bounds the memory of its intermediate lists.
TOKENIZE_CHUNK = 4096
# Column of the uniform numbers of an image that chooses the caption; the columns before it are for the augmentation.
CAPTION_DRAW = transforms.DRAWS


@dataclass(frozen=True)
class TextBatch:
    """Token ids and attention mask (1 token, 0 padding), both int64 (B, T), padded on the right."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor

    def to(self, device: torch.device | str) -> TextBatch:
        """A copy on a device."""
        return self.each(lambda x: x.to(device, non_blocking=True))

    def each(self, change: Callable[[Tensor], Tensor]) -> TextBatch:
        """The results of `change` in place of the tensors."""
        return TextBatch(change(self.input_ids_BT), change(self.attention_mask_BT))

    def part(self, rows: slice | list[int]) -> TextBatch:
        """The texts of these rows, with unchanged padding."""
        return TextBatch(self.input_ids_BT[rows], self.attention_mask_BT[rows])


@dataclass(frozen=True)
class Labels:
    """Facts of the images of a batch that the losses and the log need: ids and groups int64 (B), and names."""

    ids_B: Tensor
    clothing_group_B: Tensor
    paths: tuple[str, ...]
    # As in Batch.
    has_other_B: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Labels:
        """The results of `change` in place of the tensors."""
        has_other_B = None if self.has_other_B is None else change(self.has_other_B)
        return Labels(change(self.ids_B), change(self.clothing_group_B), self.paths, has_other_B)


@dataclass(frozen=True)
class Batch:
    """One training batch; the texts of an image are in the same row and padded to the same T."""

    # float32 (B, 3, H, W), augmented and normalised.
    images_BCHW: Tensor
    # For each image one human caption, its identity text, its clothing text, and another of its captions (its identity text
    # if it has one caption only).
    captions: TextBatch
    identity: TextBatch
    clothing: TextBatch
    other: TextBatch
    # Person ids, int64 (B).
    ids_B: Tensor
    # int64 (B); equal for equal clothing texts.
    clothing_group_B: Tensor
    # file_path of each image.
    paths: tuple[str, ...]
    # bool (B): `other` is another caption; None where it is for all images.
    has_other_B: Tensor | None = None
    # Of the batch of which these are the rows of one process; None where these are all.
    whole: Labels | None = None

    @property
    def labels(self) -> Labels:
        """Ids, groups and names of the whole batch."""
        return self.whole or Labels(self.ids_B, self.clothing_group_B, self.paths, self.has_other_B)

    def to(self, device: torch.device | str) -> Batch:
        """A copy on a device; the copy from page-locked memory is asynchronous."""
        return self.each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory."""
        return self.each(torch.Tensor.pin_memory)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The results of `change` in place of the tensors."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "paths"]
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        changed: dict[str, Any] = {k: change(v) if isinstance(v, Tensor) else v.each(change) for k, v in values.items()}
        return dataclasses.replace(self, **changed)

    def part(self, rows: slice) -> Batch:
        """The batch of these rows."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "whole"}
        values = {k: v for k, v in values.items() if v is not None}
        some: dict[str, Any] = {k: v.part(rows) if isinstance(v, TextBatch) else v[rows] for k, v in values.items()}
        return dataclasses.replace(self, **some)


# Number of images of a batch -> positions of those that a process trains on.
OwnRows = Callable[[int], list[int]]


def tokenize(tokenizer: Any, texts: Sequence[str], text_length: int) -> TextBatch:
    """Token ids and mask, int64 (B, T): at most `text_length` tokens with [CLS] and [SEP], padded to the longest text."""
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


def _count_longer(tokenizer: Any, texts: Sequence[str], text_length: int) -> int:
    """Number of texts of more than `text_length` tokens."""
    if not texts:
        return 0
    with quiet():
        return sum(len(ids) > text_length for ids in tokenizer(list(texts))["input_ids"])


class _TokenTable:
    """Distinct texts, tokenized once: tokenizing 192 texts a step costs more than the rest of the batch. `cut`: number of those
    that are longer than `text_length` tokens.
    """

    def __init__(self, tokenizer: Any, texts: Iterable[str], text_length: int) -> None:
        self.row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        distinct = list(self.row)
        starts = range(0, len(distinct), TOKENIZE_CHUNK)
        parts = [tokenize(tokenizer, distinct[i : i + TOKENIZE_CHUNK], text_length) for i in starts]
        self.cut = 0
        for i, part in zip(starts, parts, strict=True):
            full = part.attention_mask_BT.sum(1) == text_length
            self.cut += _count_longer(tokenizer, [distinct[i + k] for k in full.nonzero()[:, 0].tolist()], text_length)
        self.lengths = torch.cat([part.attention_mask_BT.sum(1) for part in parts])
        self.tokens = torch.full((len(distinct), int(self.lengths.max())), tokenizer.pad_token_id, dtype=torch.int32)
        for i, part in zip(starts, parts, strict=True):
            self.tokens[i : i + len(part.input_ids_BT), : part.input_ids_BT.shape[1]] = part.input_ids_BT

    def batch(self, rows: list[int]) -> TextBatch:
        """The texts of these rows, padded to the longest one."""
        lengths_B = self.lengths[rows]
        longest = int(lengths_B.max())
        mask_BT = torch.arange(longest) < lengths_B[:, None]
        return TextBatch(self.tokens[rows, :longest].long(), mask_BT.long())


def build_sampler(ids: Sequence[int], config: DataConfig, seed: int) -> Sampler:
    """The sampler of a split of images of these people. Raises ValueError where they are too few for a batch."""
    if config.images_per_id:
        return PKSampler(ids, config.ids_per_batch, config.images_per_id, seed)
    return ShuffledSampler(len(ids), config.batch_size, seed)


class TrainLoader:
    """Training batches of a data set; they depend on (seed, epoch) only, not on config.workers or config.cache. The
    augmentation of an image depends on (seed, epoch, index in the split) only, not on its batch.

    Without a cache and with workers == 0 decoded images are kept in memory (see source.MEMORY_LIMIT); worker processes
    restart every epoch and keep nothing. A cache is updated for the images of train and val.

    own: positions, in a batch of so many images, of those that this process trains on: only they are decoded. None: all.

    Raises ValueError from the sampler (too few identities) and from the cache; while iterating, ValueError or
    FileNotFoundError that names every image of a batch that cannot be read.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: Any, config: DataConfig, seed: int, own: OwnRows | None = None
    ) -> None:
        self.config, self.seed, self.epoch, self.start, self.own = config, seed, 0, 0, own
        self.records = dataset.splits["train"]
        ids = [record.id for record in self.records]
        self.sampler = build_sampler(ids, config, seed)
        self.table = _TokenTable(tokenizer, dataset.train_texts(), config.text_length)
        # An unreadable validation image is reported now, not after the first epoch.
        update_cache([r.path for r in (*self.records, *dataset.splits.get("val", ()))], config)
        self.images = open_images([record.path for record in self.records], config, keep=config.workers == 0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The next iteration yields the batches of this epoch, without the first `start`."""
        self.epoch, self.start = epoch, start
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Number of batches in a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        batches = list(self.sampler)
        draws = self._draws(batches)[self.start :]
        batches = batches[self.start :]
        rows = [self.own(len(batch)) if self.own else list(range(len(batch))) for batch in batches]
        decoded = [[batch[i] for i in chosen] for batch, chosen in zip(batches, rows, strict=True)]
        pixels = read_batches(self.images, decoded, self.config.workers)
        for indices, chosen, draws_BD, pixels_OCHW in zip(batches, rows, draws, pixels, strict=True):
            yield self._batch(indices, chosen, draws_BD, pixels_OCHW)

    def _draws(self, batches: list[list[int]]) -> list[np.ndarray]:
        """(B, D) uniform numbers for each batch, by image and number of its occurrence in this epoch."""
        visits: Counter[int] = Counter()
        tables: list[np.ndarray] = []
        result = []
        for indices in batches:
            rows = []
            for i in indices:
                if visits[i] == len(tables):
                    rng = random_numbers(self.seed, "image", self.epoch, len(tables))
                    tables.append(rng.random((len(self.records), CAPTION_DRAW + 1)))
                rows.append(tables[visits[i]][i])
                visits[i] += 1
            result.append(np.stack(rows))
        return result

    def _batch(self, indices: list[int], rows: list[int], draws_BD: np.ndarray, pixels_OCHW: Tensor) -> Batch:
        """The batch of these images, or the O rows of it whose pixels are given: padded as the whole."""
        config, row = self.config, self.table.row
        records = [self.records[i] for i in indices]
        draws = (draws_BD[:, CAPTION_DRAW] * [len(r.captions) for r in records]).astype(int).tolist()
        captions = [row[r.captions[i]] for r, i in zip(records, draws, strict=True)]
        others = [row[_other_text(r, i)] for r, i in zip(records, draws, strict=True)]
        clothing, has_other = [row[r.clothing] for r in records], [len(r.captions) > 1 for r in records]
        texts = self.table.batch([*captions, *(row[r.identity] for r in records), *clothing, *others])
        parts = zip(texts.input_ids_BT.chunk(4), texts.attention_mask_BT.chunk(4), strict=True)
        caption, identity, garments, other = (TextBatch(tokens, mask) for tokens, mask in parts)
        batch = Batch(
            images_BCHW=transforms.augment(pixels_OCHW, draws_BD[rows], config.pad, config.flip, config.erase),
            captions=caption,
            identity=identity,
            clothing=garments,
            other=other,
            ids_B=torch.tensor([r.id for r in records]),
            clothing_group_B=torch.tensor(clothing),
            paths=tuple(r.file_path for r in records),
            has_other_B=None if all(has_other) else torch.tensor(has_other),
        )
        return batch if self.own is None else _rows_of(batch, rows)


def _rows_of(batch: Batch, rows: list[int]) -> Batch:
    """A batch of which only the images are those of `rows`, with everything else of these rows, and the labels of all."""
    labels = batch.labels
    return dataclasses.replace(
        batch,
        captions=batch.captions.part(rows),
        identity=batch.identity.part(rows),
        clothing=batch.clothing.part(rows),
        other=batch.other.part(rows),
        ids_B=labels.ids_B[rows],
        clothing_group_B=labels.clothing_group_B[rows],
        paths=tuple(labels.paths[i] for i in rows),
        has_other_B=None if labels.has_other_B is None else labels.has_other_B[rows],
        whole=labels,
    )


def _other_text(record: Record, drawn: int) -> str:
    """The caption after the drawn one, cyclically; of an image with one caption only the identity text, or that caption."""
    captions = record.captions
    return captions[(drawn + 1) % len(captions)] if len(captions) > 1 else record.identity or captions[0]


def iterate_images(
    records: Sequence[Record], config: DataConfig, batch_size: int, turns: slice = slice(None)
) -> Iterator[tuple[Tensor, slice]]:
    """Yields (images_BCHW, their slice of `records`) in order: float32 (B, 3, H, W), normalised, not augmented. turns: which
    of the batches; only their images are read.

    Raises ValueError or FileNotFoundError that names every image of a batch that cannot be read, and what the
    cache raises.
    """
    images = open_images([record.path for record in records], config)
    starts = range(0, len(records), batch_size)
    slices = [slice(start, min(start + batch_size, len(records))) for start in starts][turns]
    batches = [range(part.start, part.stop) for part in slices]
    for pixels_BCHW, part in zip(read_batches(images, batches, config.workers), slices, strict=True):
        yield transforms.normalise(pixels_BCHW), part
