"""`gallery add` by several ranks: the gallery of one process, written by the first."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from tests.support.distributed.ranks import Job, Outcome, Ranks
from tests.support.retrieval.galleries import paint
from training import gallery
from training.retrieval import ingest
from training.retrieval.store import Gallery, ImageRow
from training.utils import cli
from training.utils.locks import folder_lock

NAMES = [f"cam_{i % 3}/{i:02}.png" for i in range(13)]
# The last one: ranks and one process then embed the same batches.
UNREADABLE = "cam_2/11.png"


def run_add(words: list[str], stop_at: int = 0) -> list[str]:
    """`gallery add` in a rank; the files that it has read. stop_at: batch at which the second rank is killed, counted from 1."""
    embed, read = ingest.embed_files, []

    def counting(embedder, files, batch_size):
        read.append([Path(path).name for path, _ in files])
        if len(read) == stop_at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(embedder, files, batch_size)

    ingest.embed_files = counting
    if status := cli.run(gallery.main, ["add", *words, "--batch-size", "3"]):
        sys.exit(status)
    return [name for batch in read for name in batch]


def add(ranks: Ranks, size: int, home: Path, photos: Path, run: Path, stop_at: int = 0) -> Outcome:
    out = home.parent / f"{home.name}-out-{len([*home.parent.iterdir()])}"
    return ranks.run(Job(run_add, ([str(home), str(photos), "--run", str(run)], stop_at), size, out))


def make_photos(folder: Path) -> Path:
    paint(folder, NAMES)
    (folder / UNREADABLE).write_bytes(b"no image")
    return folder


def facts(row: ImageRow) -> tuple[str, ...]:
    return (row.path, row.sha256, row.camera, str(row.position))


def check_same(ours: Path, theirs: Path) -> None:
    mine, other = Gallery(ours), Gallery(theirs)
    assert [facts(row) for row in mine.all_rows()] == [facts(row) for row in other.all_rows()]
    np.testing.assert_array_equal(mine.snapshot().table_PW, other.snapshot().table_PW)
    assert list(ingest.check_images(mine, True, int)) == []


def test_two_ranks_make_the_gallery_of_one(trained: Path, ranks: Ranks, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    alone = add(ranks, 1, tmp_path / "one", photos, trained)
    outcome = add(ranks, 2, tmp_path / "two", photos, trained)
    assert alone.statuses == [0] and outcome.statuses == [0, 0], "\n".join([*alone.outputs, *outcome.outputs])
    check_same(tmp_path / "two", tmp_path / "one")
    # Every file once, whole batches in turn; the unreadable one is named once, by the first.
    assert sorted(outcome.results[0] + outcome.results[1]) == sorted(Path(name).name for name in NAMES)
    assert len(outcome.results[0]) == 7 and len(outcome.results[1]) == 6
    assert "12 added" in outcome.outputs[0] and f"{UNREADABLE}: is " in outcome.outputs[0]
    assert outcome.outputs[1] == ""
    paint(photos, ["new.png", "cam_0/00.png"], seed=5)
    again = add(ranks, 2, tmp_path / "two", photos, trained)
    assert "1 added, 1 replaced, 11 present, 1 unreadable" in again.outputs[0], again.outputs
    assert sorted(again.results[0] + again.results[1]) == ["00.png", "11.png", "new.png"]


def test_a_rank_that_dies_ends_all_and_the_next_one_goes_on(trained: Path, ranks: Ranks, tmp_path: Path) -> None:
    photos, home = make_photos(tmp_path / "photos"), tmp_path / "g"
    outcome = add(ranks, 2, home, photos, trained, stop_at=2)
    assert outcome.statuses == [2, -signal.SIGKILL] and "rank 1 (" in outcome.outputs[0], outcome.outputs
    assert "ended without a word" in outcome.outputs[0] and Gallery(home).count() == 6
    assert [p.name for p in home.iterdir() if p.name == ".lock"] == []
    again = add(ranks, 2, home, photos, trained)
    assert again.statuses == [0, 0] and "6 added, 0 replaced, 6 present" in again.outputs[0], again.outputs
    assert sorted(Path(row.path).name for row in Gallery(home).all_rows()) == sorted(
        Path(name).name for name in NAMES if name != UNREADABLE
    )


def test_a_gallery_in_use_and_another_model_are_refused(trained: Path, ranks: Ranks, tmp_path: Path) -> None:
    photos, home = make_photos(tmp_path / "photos"), tmp_path / "g"
    home.mkdir()
    with folder_lock(home):
        outcome = add(ranks, 2, home, photos, trained)
    assert outcome.statuses == [2, 2] and "is in use by process" in outcome.outputs[0] and outcome.outputs[1] == ""
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    outcome = ranks.run(Job(_of_other_models, (trained, other, home, photos), 2, tmp_path / "out"))
    assert outcome.statuses == [2, 2] and "differs from rank 0 (" in outcome.outputs[0], outcome.outputs
    assert "model ('" in outcome.outputs[0] and [*home.iterdir()] == []


def _of_other_models(run: Path, other: Path, home: Path, photos: Path) -> None:
    if os.environ["RANK"] == "1":
        from training.retrieval import embedders

        embedders.file_digest = lambda path: "0" * 64
    run_add([str(home), str(photos), "--run", str(run if os.environ["RANK"] == "0" else other)])
