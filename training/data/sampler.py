"""Samplers: batches of identities times images (PK), or plain shuffled batches.

A sampler yields one list of image indices per batch; the batches of an epoch depend on (seed, epoch) only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np


class Sampler(Protocol):
    """Interface of a sampler for the loader."""

    def set_epoch(self, epoch: int) -> None:
        """The next iteration yields the batches of this epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


def random_numbers(seed: int, purpose: Literal["order", "image"], *key: int) -> np.random.Generator:
    """Independent random stream for `seed` (any integer), a purpose and non-negative integers, equal on every machine.

    The purpose is needed: numpy pads short keys with zeros, so (seed, epoch) and (seed, epoch, 0) are one stream.
    """
    return np.random.default_rng([seed % 2**64, {"order": 1, "image": 2}[purpose], *key])


class PKSampler:
    """Batches of up to `ids_per_batch` different identities with `images_per_id` images of each.

    An identity's images are cut into chunks of `images_per_id`, in random order; the last chunk is completed with
    other images of the identity, repeated only if it has too few. Every image appears at least once an epoch, no identity
    twice in a batch, and the batches differ by at most one identity in size. (With ids_per_batch 2 and an odd number of
    chunks one batch has three identities: a single one has no negatives.)

    Raises ValueError if batches with at least two identities are impossible.
    """

    def __init__(self, ids: Sequence[int], ids_per_batch: int, images_per_id: int, seed: int) -> None:
        if ids_per_batch < 2 or images_per_id < 1:
            raise ValueError(
                "PKSampler: ids_per_batch must be at least 2 and images_per_id at least 1, "
                f"got {ids_per_batch} and {images_per_id}"
            )
        groups: dict[int, list[int]] = {}
        for index, id in enumerate(ids):
            groups.setdefault(id, []).append(index)
        self.groups = [np.array(group) for group in groups.values()]
        self.ids_per_batch, self.images_per_id = ids_per_batch, images_per_id
        self.seed, self.epoch = seed, 0
        chunks = [-(-len(group) // images_per_id) for group in self.groups]
        # One identity needs as many batches as it has chunks; all chunks together need one batch per ids_per_batch.
        balanced = min(-(-sum(chunks) // ids_per_batch), sum(chunks) // 2)
        self.batches = max(balanced, *chunks, 0)
        if sum(chunks) < 2 * self.batches or not chunks:
            raise ValueError(
                f"PKSampler: {len(groups)} identities with at most {max(map(len, self.groups), default=0)} images "
                "cannot fill batches of at least two identities each"
            )

    def shortage(self) -> str:
        """Sentence about batches of half of `ids_per_batch` or less, which an identity with very many images causes; else ""."""
        images = [len(group) for group in self.groups]
        chunks = sum(-(-count // self.images_per_id) for count in images)
        # With fewer identities than a batch holds there is one batch of all of them.
        if self.batches == 1 or 2 * chunks > self.ids_per_batch * self.batches:
            return ""
        return (
            f"batches hold {chunks / self.batches:.1f} identities on average in place of {self.ids_per_batch} "
            f"(data.ids_per_batch): one identity has {max(images):,} of {sum(images):,} training images, and no batch has it "
            "twice; leave some of them out, or raise data.images_per_id"
        )

    def set_epoch(self, epoch: int) -> None:
        """The next iteration yields the batches of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = random_numbers(self.seed, "order", self.epoch)
        batches: list[list[int]] = [[] for _ in range(self.batches)]
        count = 0
        # Consecutive batches for the chunks of one identity: no identity has more chunks than there are batches, so none is
        # twice in a batch.
        for group in rng.permutation(len(self.groups)):
            for chunk in self._chunks(self.groups[group], rng):
                batches[count % self.batches].extend(chunk)
                count += 1
        for i in rng.permutation(self.batches):
            yield batches[i]

    def _chunks(self, group: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
        size = self.images_per_id
        order = rng.permutation(group)
        # The full chunks have at least `size` images, enough to complete the last one without repetition.
        in_full_chunks = order[: len(order) // size * size]
        filling = np.resize(in_full_chunks if len(in_full_chunks) else order, -len(order) % size)
        return np.concatenate([order, filling]).reshape(-1, size).tolist()


class ShuffledSampler:
    """Every image once an epoch in random order, in batches of at most `batch_size` that differ by at most one.

    With batch_size 2 and an odd number of images one batch has three: a single image has no negatives.

    Raises ValueError for fewer than two images.
    """

    def __init__(self, images: int, batch_size: int, seed: int) -> None:
        if images < 2:
            raise ValueError(f"ShuffledSampler: at least two images are needed, got {images}")
        self.images, self.seed, self.epoch = images, seed, 0
        self.batches = max(1, min(-(-images // batch_size), images // 2))

    def set_epoch(self, epoch: int) -> None:
        """The next iteration yields the batches of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        order = random_numbers(self.seed, "order", self.epoch).permutation(self.images)
        for batch in np.array_split(order, self.batches):
            yield batch.tolist()
