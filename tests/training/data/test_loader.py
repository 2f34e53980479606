"""Train batches and evaluation images: contents, determinism, workers, the cache, errors."""

import dataclasses

import pytest
import torch

from tests.support.pedes_dataset import make_pedes
from training.config import DataConfig, EncoderConfig
from training.data.datasets import read_dataset
from training.data.images import transforms
from training.data.loader import Batch, TrainLoader, _other_text, iterate_images, tokenize
from training.data.tokenizer import build_tokenizer

PLAIN = {"pad": 0, "flip": 0.0, "erase": 0.0}


@pytest.fixture
def config(tmp_path):
    root = make_pedes(tmp_path / "pedes", images_per_id=5)
    return DataConfig(root=str(root), image_size=(32, 16), ids_per_batch=3, images_per_id=2, pad=2)


@pytest.fixture
def make(config):
    dataset = read_dataset(config)
    tokenizer = build_tokenizer(EncoderConfig(), dataset.train_texts())

    def build(seed: int = 0, **options) -> TrainLoader:
        return TrainLoader(dataset, tokenizer, dataclasses.replace(config, **options), seed)

    build.dataset, build.tokenizer = dataset, tokenizer
    return build


def tensors(batch: Batch) -> list[torch.Tensor]:
    texts = [batch.captions, batch.identity, batch.clothing, batch.other]
    parts = [part for text in texts for part in (text.input_ids_BT, text.attention_mask_BT)]
    return [batch.images_BCHW, batch.ids_B, batch.clothing_group_B, *parts]


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        a.paths == b.paths and all(map(torch.equal, tensors(a), tensors(b))) for a, b in zip(left, right, strict=True)
    )


def epoch_of(loader: TrainLoader, epoch: int) -> list[Batch]:
    loader.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize("images_per_id", [2, 0])
def test_rows_of_a_batch_belong_together(make, config, images_per_id):
    loader = make(images_per_id=images_per_id, batch_size=7, **PLAIN)
    records = {record.file_path: record for record in make.dataset.splits["train"]}
    seen, batches = set(), list(loader)
    assert len(loader) == len(batches) == (6 if images_per_id else 5)
    for batch in batches:
        rows = [records[path] for path in batch.paths]
        assert batch.ids_B.tolist() == [r.id for r in rows] and batch.ids_B.dtype == torch.int64
        assert batch.images_BCHW.dtype == torch.float32
        decoded = torch.stack([transforms.decode(r.path, config.image_size) for r in rows])
        assert torch.equal(batch.images_BCHW, transforms.normalise(decoded))
        read = make.tokenizer.batch_decode(batch.captions.input_ids_BT, skip_special_tokens=True)
        as_read = [[make.tokenizer.decode(make.tokenizer(c)["input_ids"][1:-1]) for c in r.captions] for r in rows]
        assert all(text in captions for text, captions in zip(read, as_read, strict=True))
        # Two captions an image: the other one is the one that was not drawn.
        others = make.tokenizer.batch_decode(batch.other.input_ids_BT, skip_special_tokens=True)
        assert [sorted(pair) for pair in zip(read, others, strict=True)] == [sorted(captions) for captions in as_read]
        for text, texts in ((batch.identity, [r.identity for r in rows]), (batch.clothing, [r.clothing for r in rows])):
            alone = tokenize(make.tokenizer, texts, 64)
            length = alone.input_ids_BT.shape[1]
            assert torch.equal(text.input_ids_BT[:, :length], alone.input_ids_BT)
            assert torch.equal(text.attention_mask_BT[:, :length], alone.attention_mask_BT)
            assert not text.input_ids_BT[:, length:].any() and not text.attention_mask_BT[:, length:].any()
        groups = batch.clothing_group_B
        expected = torch.tensor([[a.clothing == b.clothing for b in rows] for a in rows])
        assert torch.equal(groups[:, None] == groups[None], expected) and groups.dtype == torch.int64
        seen |= set(batch.paths)
    assert seen == set(records)


def test_texts_share_the_length_of_the_longest(make):
    for text_length in (64, 8):
        for batch in make(text_length=text_length):
            masks = [text.attention_mask_BT for text in (batch.captions, batch.identity, batch.clothing, batch.other)]
            assert len({mask.shape for mask in masks}) == 1
            assert max(int(mask.sum(1).max()) for mask in masks) == masks[0].shape[1] <= text_length
            assert {text.input_ids_BT.dtype for text in (batch.captions, batch.clothing)} == {torch.int64}


def test_the_other_caption_of_an_image_with_one_is_its_identity_text(make):
    dataset = make.dataset
    single = [dataclasses.replace(r, captions=r.captions[:1]) for r in dataset.splits["train"]]
    loader = make()
    loader.records = single
    batch = next(iter(loader))
    assert torch.equal(batch.other.input_ids_BT, batch.identity.input_ids_BT)
    assert batch.has_other_B is not None and not batch.has_other_B.any()
    assert _other_text(dataclasses.replace(single[0], captions=("a", "b", "c")), 2) == "a"


def test_a_batch_says_which_images_have_another_caption(make):
    assert all(batch.has_other_B is None for batch in make()), "all have"
    loader = make()
    loader.records = [dataclasses.replace(r, captions=r.captions[: 1 + i % 2]) for i, r in enumerate(loader.records)]
    several = {record.file_path: len(record.captions) > 1 for record in loader.records}
    for batch in loader:
        expected = [several[path] for path in batch.paths]
        assert batch.has_other_B.tolist() == batch.labels.has_other_B.tolist() == expected
        assert batch.part(slice(1, 4)).has_other_B.tolist() == expected[1:4]
        assert batch.to("cpu").has_other_B.tolist() == batch.labels.each(lambda x: x).has_other_B.tolist() == expected
    whole = next(iter(loader))
    loader.own = lambda count: [4, 1]
    rows = next(iter(loader))
    assert rows.has_other_B.tolist() == whole.has_other_B[[4, 1]].tolist()
    assert rows.labels.has_other_B.tolist() == whole.has_other_B.tolist()


def test_every_caption_is_drawn_sooner_or_later(make):
    loader = make()
    drawn = {}
    for epoch in range(12):
        for batch in epoch_of(loader, epoch):
            for path, row in zip(batch.paths, batch.captions.input_ids_BT.tolist(), strict=True):
                drawn.setdefault(path, set()).add(tuple(token for token in row if token))
    assert {len(captions) for captions in drawn.values()} == {2}


def test_text_table_tokenizes_in_chunks_to_the_same_batches(make, monkeypatch):
    whole = list(make())
    monkeypatch.setattr("training.data.loader.TOKENIZE_CHUNK", 3)
    assert same(list(make()), whole)


def test_batches_depend_on_seed_and_epoch_only(make):
    first = epoch_of(make(), 1)
    loader = make()
    assert not same(epoch_of(loader, 0), first)
    assert same(epoch_of(loader, 1), first)
    assert not same(epoch_of(make(seed=1), 1), first)


def images_of(batches: list[Batch]) -> dict[str, list[torch.Tensor]]:
    """By path, in the order of the batches."""
    found: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        for path, image in zip(batch.paths, batch.images_BCHW, strict=True):
            found.setdefault(path, []).append(image)
    return found


def test_augmentation_does_not_depend_on_the_batch(make):
    options = {"pad": 5, "erase": 0.9, "images_per_id": 0}
    left, right = (images_of(epoch_of(make(batch_size=size, **options), 2)) for size in (7, 4))
    assert left.keys() == right.keys() and len(left) == 30
    assert all(torch.equal(image, right[path][0]) for path, (image,) in left.items())
    # Whichever the sampler, the first visit to an image in an epoch is the same.
    visits = images_of(epoch_of(make(ids_per_batch=2, **options | {"images_per_id": 3}), 2))
    assert all(torch.equal(images[0], left[path][0]) for path, images in visits.items())
    # Those that fill a batch of an identity with too few images are augmented anew.
    assert len(visits) == 30 and sum(len(images) for images in visits.values()) == 36
    assert all(not torch.equal(*images) for images in visits.values() if len(images) == 2)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_same_batches_for_any_number_of_workers(make):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for epoch in (0, 3):
        expected = epoch_of(make(), epoch)
        for workers in (1, 2, 4):
            assert same(epoch_of(make(workers=workers), epoch), expected)
    # Dropout must not depend on the number of workers either.
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_decoded_once(make, monkeypatch):
    opened = []
    decode_into = transforms.decode_into
    monkeypatch.setattr(
        transforms,
        "decode_into",
        lambda out, rows, paths, most: opened.extend(paths) or decode_into(out, rows, paths, most),
    )
    loader = make()
    cached = [epoch_of(loader, epoch) for epoch in range(3)]
    assert len(opened) == len(set(opened)) == 30
    monkeypatch.setattr("training.data.images.source.MEMORY_LIMIT", 30 * 3 * 32 * 16 - 1)
    uncached = make()
    assert all(same(epoch_of(uncached, epoch), batches) for epoch, batches in enumerate(cached))
    assert len(opened) > 100


def test_cache_is_not_spoilt_by_the_augmentation(make):
    loader = make(pad=5, flip=1.0, erase=1.0)
    epoch_of(loader, 0)
    assert same(epoch_of(loader, 0), epoch_of(make(pad=5, flip=1.0, erase=1.0), 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_image_is_one_clear_error(make, workers):
    path = make.dataset.splits["train"][3].path
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"0001_3.jpg is truncated or not a readable image: ") as error:
        list(make(workers=workers))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_bad_images_of_a_batch_are_one_error(make, workers):
    for record in make.dataset.splits["train"][:2]:
        record.path.write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"^2 of the 10 images of a batch cannot be read: .*0001_[01].jpg is .*0001_[01]"
    ):
        list(make(ids_per_batch=2, images_per_id=5, workers=workers))


def test_image_that_went_away_during_training(make):
    make.dataset.splits["train"][3].path.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no image .*0001_3.jpg"):
        list(make(workers=2))


def test_too_few_identities(make):
    dataset = dataclasses.replace(make.dataset, splits={"train": make.dataset.splits["train"][:5]})
    with pytest.raises(ValueError, match="PKSampler: 1 identities with at most 5 images cannot fill batches"):
        TrainLoader(dataset, make.tokenizer, DataConfig(), 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_iterate_images_is_in_order_and_not_augmented(make, config, workers):
    records = make.dataset.splits["test"]
    parts = list(iterate_images(records, dataclasses.replace(config, workers=workers), batch_size=4))
    assert [part for _, part in parts] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    decoded = torch.stack([transforms.decode(record.path, (32, 16)) for record in records])
    assert torch.equal(torch.cat([images for images, _ in parts]), transforms.normalise(decoded))


def test_batch_moves_to_a_device(make):
    batch = next(iter(make()))
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"} and moved.paths == batch.paths
    assert [tensor.shape for tensor in tensors(moved)] == [tensor.shape for tensor in tensors(batch)]
