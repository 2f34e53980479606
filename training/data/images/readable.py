"""Check that every image of a data set can be read, before a run trains on some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from training.data.checks import examples
from training.data.datasets import Record
from training.data.image_digests import ImageDigests
from training.data.validation.decode_cache import CACHE, DecodeCache, decode_files, default_workers

Progress = Callable[[int, int], None]


def require_readable(
    root: Path,
    splits: Mapping[str, Sequence[Record]],
    max_pixels: int,
    progress: Progress = lambda done, total: None,
) -> ImageDigests:
    """Digests of the images of all splits, which it decodes as `validate` does, whose cache in `root` it shares: only changed
    files are opened, and none is read a second time for its digest.

    Raises ValueError with five of the images that cannot be read and their number in each split.
    """
    split_of = {record.file_path: split for split, records in splits.items() for record in records}
    try:
        cache = DecodeCache(root / CACHE)
    except OSError:
        # A disk without permission to write: everything is opened each time.
        cache = DecodeCache(None)
    with closing(cache):
        results = decode_files(root / "imgs", list(split_of), cache, default_workers(), progress, max_pixels)
        folder = (root / "imgs").resolve()
        known = {name: cache.known[f"{folder}/{name}"] for name, result in results.items() if not result.damage}
    bad = {name: result for name, result in results.items() if result.damage}
    if bad:
        numbers = ", ".join(f"{split} {sum(split_of[name] == split for name in bad)}" for split in splits)
        shown = [
            f"{name}: {result.damage}{f' ({result.detail})' if result.detail else ''}" for name, result in bad.items()
        ]
        raise ValueError(
            f"images of {root} cannot be read ({numbers}): {examples(shown)}; `python -m training.prepare validate` shows them"
        )
    stamps = {name: stamp for name, (stamp, _) in known.items()}
    return ImageDigests(stamps, {name: result.sha256 for name, (_, result) in known.items()})
