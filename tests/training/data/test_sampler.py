"""PK and plain batches: who is in a batch, how many there are, what they depend on."""

from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from training.data.sampler import PKSampler, ShuffledSampler, random_numbers


def epoch_of(sampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(1, 11), min_size=2, max_size=25),
    ids_per_batch=st.integers(2, 8),
    images_per_id=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_pk_batches(counts, ids_per_batch, images_per_id, epoch):
    chunks = [-(-count // images_per_id) for count in counts]
    assume(sum(chunks) >= 2 * max(chunks))
    # Ids neither contiguous nor sorted.
    ids = [1000 - 7 * i for i, count in enumerate(counts) for _ in range(count)]
    sampler = PKSampler(ids, ids_per_batch, images_per_id, seed=3)
    batches = epoch_of(sampler, epoch)
    assert len(batches) == len(sampler) == max(min(-(-sum(chunks) // ids_per_batch), sum(chunks) // 2), *chunks)
    seen = Counter(index for batch in batches for index in batch)
    assert set(seen) == set(range(len(ids)))
    assert sum(seen.values()) == images_per_id * sum(chunks)
    # Filled up without repetition where the identity has enough other images, evenly where it has not.
    for count, id in ((count, 1000 - 7 * i) for i, count in enumerate(counts)):
        visits = [seen[index] for index, other in enumerate(ids) if other == id]
        assert max(visits) <= (2 if count >= images_per_id else -(-images_per_id // count))
    sizes = set()
    for batch in batches:
        chunked = [batch[i : i + images_per_id] for i in range(0, len(batch), images_per_id)]
        assert all(len({ids[index] for index in chunk}) == 1 for chunk in chunked)
        assert len({ids[chunk[0]] for chunk in chunked}) == len(chunked)
        assert all(len(set(chunk)) == min(images_per_id, ids.count(ids[chunk[0]])) for chunk in chunked)
        assert 2 <= len(chunked) <= (3 if ids_per_batch == 2 and sum(chunks) % 2 else ids_per_batch)
        sizes.add(len(chunked))
    assert max(sizes) - min(sizes) <= 1


def test_order_depends_on_seed_and_epoch_only():
    ids = [i // 5 for i in range(100)]

    def make(seed):
        return PKSampler(ids, 4, 2, seed)

    first = epoch_of(make(0), 0)
    assert epoch_of(make(0), 0) == first
    visited = make(0)
    epoch_of(visited, 7)
    assert epoch_of(visited, 0) == first
    others = [epoch_of(make(0), 1), epoch_of(make(1), 0), epoch_of(make(-1), 0)]
    assert all(other != first for other in others) and others[0] != others[1] != others[2]


def test_identities_of_a_batch_change_between_epochs():
    ids = [i // 2 for i in range(80)]
    sampler = PKSampler(ids, 4, 2, seed=0)
    together = [{frozenset(ids[i] for i in batch) for batch in epoch_of(sampler, epoch)} for epoch in (0, 1)]
    assert not together[0] & together[1]


def test_more_identities_per_batch_than_there_are_gives_one_batch():
    (batch,) = epoch_of(PKSampler([5, 5, 9, 9], ids_per_batch=16, images_per_id=2, seed=0), 0)
    assert sorted(batch) == [0, 1, 2, 3]


def test_batches_that_one_identity_makes_small_are_said():
    sampler = PKSampler([*(i for i in range(100) for _ in range(4)), *[100] * 200], 16, 4, seed=0)
    assert {len(batch) // 4 for batch in sampler} == {3}
    assert sampler.shortage() == (
        "batches hold 3.0 identities on average in place of 16 (data.ids_per_batch): one identity has 200 of 600 training "
        "images, and no batch has it twice; leave some of them out, or raise data.images_per_id"
    )


@settings(max_examples=100, deadline=None)
@given(people=st.integers(2, 60), images=st.integers(1, 9), ids_per_batch=st.integers(2, 20), size=st.integers(1, 4))
def test_batches_of_equal_people_are_never_short(people, images, ids_per_batch, size):
    ids = [i for i in range(people) for _ in range(images)]
    assume(people >= ids_per_batch)
    assert PKSampler(ids, ids_per_batch, size, seed=0).shortage() == ""


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([], "PKSampler: 0 identities with at most 0 images cannot fill batches of at least two identities each"),
        ([4] * 9, "PKSampler: 1 identities with at most 9 images cannot fill batches"),
        ([4] * 9 + [5], "PKSampler: 2 identities with at most 9 images cannot fill batches"),
    ],
)
def test_too_few_identities(ids, text):
    with pytest.raises(ValueError, match=text):
        PKSampler(ids, 4, 2, seed=0)


@pytest.mark.parametrize(("ids_per_batch", "images_per_id"), [(1, 4), (4, 0)])
def test_batches_without_pairs(ids_per_batch, images_per_id):
    text = f"at least 2 and images_per_id at least 1, got {ids_per_batch} and {images_per_id}"
    with pytest.raises(ValueError, match=text):
        PKSampler([1, 2], ids_per_batch, images_per_id, seed=0)


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(2, 64, [2]), (64, 64, [64]), (65, 64, [32, 33]), (10, 4, [3, 3, 4]), (7, 2, [2, 2, 3]), (3, 2, [3])],
)
def test_shuffled_batches(images, batch_size, sizes):
    sampler = ShuffledSampler(images, batch_size, seed=0)
    for epoch in range(3):
        batches = epoch_of(sampler, epoch)
        assert len(sampler) == len(batches) and sorted(map(len, batches)) == sizes
        assert sorted(index for batch in batches for index in batch) == list(range(images))
    if images > 3:
        assert epoch_of(sampler, 0) != epoch_of(sampler, 1)
        assert epoch_of(ShuffledSampler(images, batch_size, seed=1), 0) != epoch_of(sampler, 0)
        assert epoch_of(ShuffledSampler(images, batch_size, seed=0), 1) == epoch_of(sampler, 1)


def test_one_image_is_no_batch():
    with pytest.raises(ValueError, match="ShuffledSampler: at least two images are needed, got 1"):
        ShuffledSampler(1, 2, seed=0)


def test_streams_of_different_purpose_or_key_differ():
    keys = [
        (0, "order", 0),
        (0, "image", 0, 0),
        (0, "order", 1),
        (0, "image", 1, 0),
        (0, "image", 0, 1),
        (1, "order", 0),
    ]
    assert len({random_numbers(*key).integers(2**63) for key in keys}) == len(keys)
