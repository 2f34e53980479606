"""Gallery on disk: what is committed stays, readers see one moment, one writer, damage is named."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.retrieval.galleries import WIDTH, clustered, fill, image_row, unit
from training.retrieval.gallery_writer import open_writer
from training.retrieval.store import About, Gallery

ABOUT = About("a" * 64, WIDTH, 2, 0.5, "runs/x")


def rows(*names: str) -> list:
    return [image_row(name) for name in names]


def table(count: int, seed: int = 0) -> np.ndarray:
    return clustered(count, WIDTH, seed=seed)


def held(gallery: Gallery) -> dict[str, bytes]:
    """Embedding of each path, by way of a snapshot."""
    snapshot = gallery.snapshot()
    return {
        row.path: snapshot.table_PW[snapshot.positions(np.array([row.id]))[0]].tobytes() for row in gallery.all_rows()
    }


def test_images_come_back_with_their_embeddings(tmp_path):
    gallery, first, second = Gallery.create(tmp_path / "g", ABOUT), table(3), table(2, 1)
    assert gallery.count() == 0 and len(gallery.snapshot()) == 0
    with open_writer(gallery) as writer:
        writer.add(rows("a", "b", "c"), first)
        writer.add([image_row("d", "cam", 3.5, lens="wide"), image_row("e")], second)
    again = Gallery(tmp_path / "g")
    expected = dict(zip("abcde", [x.tobytes() for x in (*first, *second)], strict=True))
    assert held(again) == expected and again.about == ABOUT
    row = again.row_of("d")
    assert row is not None and (row.camera, row.time, row.more) == ("cam", 3.5, {"lens": "wide"})
    snapshot = again.snapshot()
    assert snapshot.values == {"camera": ["", "cam"], "lens": ["", "wide"]} and snapshot.codes["lens"].tolist() == [
        0,
        0,
        0,
        1,
        0,
    ]
    np.testing.assert_array_equal(snapshot.times_P, [np.nan] * 3 + [3.5, np.nan])
    assert again.row_of("f") is None and [r.path for r in again.rows([row.id, 999, 1])] == ["d", "a"]


def test_an_image_that_is_added_again_is_replaced_and_has_a_new_number(tmp_path):
    gallery, first, second = Gallery.create(tmp_path, ABOUT), table(2), table(1, 1)
    with open_writer(gallery) as writer:
        writer.add(rows("a", "b"), first)
        before = gallery.row_of("b").id
        writer.add(rows("b"), second)
    assert held(gallery) == {"a": first[0].tobytes(), "b": second[0].tobytes()}
    assert gallery.row_of("b").id > before


@pytest.mark.parametrize("removed", [["a"], ["c"], ["a", "b", "c", "e"], ["a", "b", "c", "d", "e"]])
def test_removed_images_are_gone_and_the_others_keep_number_and_embedding(removed, tmp_path):
    gallery, embeddings = Gallery.create(tmp_path, ABOUT), table(5)
    with open_writer(gallery) as writer:
        writer.add(rows(*"abcde"), embeddings)
        ids = {row.path: row.id for row in gallery.all_rows()}
        before = gallery.snapshot()
        assert writer.remove([ids[name] for name in removed]) == len(removed)
        # A reader keeps the moment at which it began.
        np.testing.assert_array_equal(before.table_PW, embeddings)
        writer.add(rows("f"), table(1, 7))
    np.testing.assert_array_equal(before.table_PW, embeddings)
    kept = [name for name in "abcde" if name not in removed]
    expected = {name: embeddings["abcde".index(name)].tobytes() for name in kept}
    assert held(gallery) == expected | {"f": table(1, 7)[0].tobytes()}
    assert {row.path: row.id for row in gallery.all_rows() if row.path != "f"} == {name: ids[name] for name in kept}
    assert len(list(tmp_path.glob("table-*.f32"))) == 1


def test_an_interrupted_write_is_overwritten(tmp_path):
    gallery, embeddings = Gallery.create(tmp_path, ABOUT), table(3)
    with open_writer(gallery) as writer:
        writer.add(rows("a"), embeddings[:1])
    with open(gallery.table(0), "ab") as file:
        file.write(b"half a row")
    (tmp_path / "table-1.f32").write_bytes(b"a compaction that was killed")
    with open_writer(gallery) as writer:
        writer.add(rows("b", "c"), embeddings[1:])
    assert held(gallery) == dict(zip("abc", [x.tobytes() for x in embeddings], strict=True))
    assert not (tmp_path / "table-1.f32").exists()


def test_a_failed_batch_changes_nothing(tmp_path):
    gallery = Gallery.create(tmp_path, ABOUT)
    with open_writer(gallery) as writer:
        writer.add(rows("a"), table(1))
        with pytest.raises(ValueError, match="gallery.db refuses the change: UNIQUE constraint failed"):
            writer.add(rows("b", "b"), table(2))
        with pytest.raises(ValueError, match=r"embeddings must be float32 \(1, 32\), got float64 \(1, 32\)"):
            writer.add(rows("c"), table(1).astype(np.float64))
        broken = table(2)
        broken[1, 3] = np.nan
        with pytest.raises(ValueError, match="embeddings that are not finite"):
            writer.add(rows("c", "d"), broken)
    assert [row.path for row in gallery.all_rows()] == ["a"]


def test_one_writer_and_readers_that_wait_for_nobody(tmp_path):
    gallery = fill(tmp_path, table(4))
    with open_writer(gallery) as writer:
        with pytest.raises(RuntimeError, match="is in use by another part"), open_writer(Gallery(tmp_path)):
            pass
        other = [sys.executable, "-c", WRITER, str(tmp_path), "0"]
        refused = subprocess.run(other, cwd=ROOT, capture_output=True, text=True)
        assert refused.returncode and f"{tmp_path} is in use by process {os.getpid()} on " in refused.stderr
        writer.connection.execute("BEGIN IMMEDIATE")
        writer.connection.execute("DELETE FROM images")
        start = time.monotonic()
        assert Gallery(tmp_path).count() == 4 and len(gallery.snapshot()) == 4
        assert time.monotonic() - start < 5
        writer.connection.rollback()
    assert not (tmp_path / ".lock").exists()


def test_readers_notice_a_change(tmp_path):
    gallery = fill(tmp_path, table(2))
    before = gallery.version()
    assert gallery.version() == before
    with open_writer(gallery) as writer:
        writer.add(rows("x"), table(1))
        changed = gallery.version()
        assert changed != before
        writer.update_metadata(gallery.row_of("x"))
    assert gallery.version() != changed


def test_another_model_is_refused(tmp_path):
    gallery = fill(tmp_path, table(1))
    gallery.require_model("a" * 64, "runs/x")
    with pytest.raises(
        ValueError, match=r"was made with another model \(runs/x, aaaaaaaaaaaa\) than runs/y \(bbbbbbbbbbbb\)"
    ):
        gallery.require_model("b" * 64, "runs/y")


def test_what_is_no_gallery_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no gallery: there is no gallery.db"):
        Gallery(tmp_path)
    (tmp_path / "gallery.db").write_bytes(b"not a database, but long enough to be read as one" * 50)
    with pytest.raises(ValueError, match="gallery.db is damaged or not the database of a gallery"):
        Gallery(tmp_path)
    fill(tmp_path / "g", table(3))
    with pytest.raises(FileExistsError, match="holds a gallery already"):
        Gallery.create(tmp_path / "g", ABOUT)
    os.truncate(tmp_path / "g" / "table-0.f32", 100)
    with pytest.raises(ValueError, match="table-0.f32 is shorter than its 3 images"):
        Gallery(tmp_path / "g").snapshot()
    Gallery(tmp_path / "g").table(0).unlink()
    with pytest.raises(FileNotFoundError):
        Gallery(tmp_path / "g").snapshot()
    with sqlite3.connect(tmp_path / "g" / "gallery.db") as connection:
        connection.execute("UPDATE about SET value = '7' WHERE key = 'format'")
    with pytest.raises(ValueError, match="has format 7, expected 1"):
        Gallery(tmp_path / "g")


def test_a_broken_database_is_one_error(tmp_path):
    gallery = fill(tmp_path, table(1))
    with pytest.raises(ValueError, match="gallery.db cannot be read: no such table: people"):
        gallery.query("SELECT * FROM people")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_gallery_in_a_folder_that_cannot_be_written_is_read(tmp_path):
    fill(tmp_path / "g", table(3)).close()
    (tmp_path / "g").chmod(0o555)
    try:
        assert len(Gallery(tmp_path / "g").snapshot()) == 3
    finally:
        (tmp_path / "g").chmod(0o755)


WRITER = """
import sys
from pathlib import Path
from tests.support.retrieval.galleries import WIDTH, clustered, image_row
from training.retrieval.gallery_writer import open_writer
from training.retrieval.store import Gallery
gallery, number = Gallery(sys.argv[1]), int(sys.argv[2])
with open_writer(gallery) as writer:
    print("ready", flush=True)
    for batch in range(10**6):
        names = [f"/{number}/{batch}/{i}" for i in range(3)]
        writer.add([image_row(name) for name in names], clustered(3, WIDTH, seed=number * 1000 + batch % 1000))
        if batch % 7 == 6:
            writer.remove([row.id for row in gallery.all_rows()][::2])
"""


def test_a_gallery_survives_kills_at_any_moment(tmp_path):
    """Every committed batch is whole, and its embeddings are those that were given."""
    Gallery.create(tmp_path, ABOUT).close()
    rng = np.random.default_rng(0)
    for number in range(4):
        words = [sys.executable, "-c", WRITER, str(tmp_path), str(number)]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.05, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        gallery = Gallery(tmp_path)
        snapshot = gallery.snapshot()
        for row in gallery.all_rows():
            person, batch, i = map(int, row.path.strip("/").split("/"))
            given = clustered(3, WIDTH, seed=person * 1000 + batch % 1000)[i]
            np.testing.assert_array_equal(snapshot.table_PW[row.position], given)
        gallery.close()
    with open_writer(Gallery(tmp_path)) as writer:
        writer.add(rows("last"), unit(np.ones((1, 2, WIDTH))).reshape(1, -1))
    assert Gallery(tmp_path).row_of("last") is not None
