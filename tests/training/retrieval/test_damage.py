"""Damage to a gallery: what SQLite, the disk or a flipped bit does is one error that names the file, and no wrong result."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.files.damage import flipped_bit, largest_file
from tests.support.retrieval.galleries import WIDTH, ColourEmbedder, clustered, fill, image_row, paint
from training.retrieval import finder
from training.retrieval.database import naming_database
from training.retrieval.finder import Finder, Wanted
from training.retrieval.gallery_writer import open_writer
from training.retrieval.ingest import add_images, check_images, image_paths, open_or_create, remove_images
from training.retrieval.store import Gallery
from training.utils import cli


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    """Twelve images in a gallery."""
    paint(tmp_path / "photos", [f"cam_{i % 3}/{i}.png" for i in range(12)])
    made = open_or_create(tmp_path / "g", ColourEmbedder())
    add_images(made, image_paths(tmp_path / "photos"), ColourEmbedder())
    return made


def faults(gallery: Gallery) -> list[tuple[str, str]]:
    return list(check_images(gallery, False, lambda done: None))


def found(folder: Path) -> list[tuple[str, float, str]]:
    opened = Finder(Gallery(folder), ColourEmbedder())
    results = opened.search(opened.query(Wanted([("red", 1.0)]), 0.5), 12)
    return [(result.image.path, result.score, result.image.camera) for result in results]


def test_a_flipped_bit_of_the_table_is_found_by_check_and_by_search(gallery: Gallery) -> None:
    moment, table = random.Random(0), gallery.table(0)
    before = found(gallery.folder)
    for _ in range(20):
        with flipped_bit(table, moment) as place:
            position = place // (gallery.table_width * 4)
            row = next(row for row in gallery.all_rows() if row.position == position)
            expected = [(row.path, "damaged embedding or facts: remove the image and add it again")]
            assert faults(Gallery(gallery.folder)) == expected
            with pytest.raises(
                ValueError, match=f"/g/table-0.f32 or gallery.db is damaged: embedding or facts of {row.path} are not"
            ):
                found(gallery.folder)
    assert found(gallery.folder) == before and not faults(gallery)


def test_a_flipped_bit_of_the_database_changes_no_result(gallery: Gallery) -> None:
    """Refused by name, or the same results."""
    before, folder, refused = found(gallery.folder), gallery.folder, 0
    # Nothing is left in the log.
    assert (folder / "gallery.db-wal").stat().st_size == 0
    gallery.close()
    moment = random.Random(1)
    for _ in range(60):
        with flipped_bit(folder / "gallery.db", moment):
            try:
                assert found(folder) == before
            except (ValueError, OSError, RuntimeError) as error:
                assert str(folder) in str(error)
                refused += 1
    assert refused > 5


def test_facts_that_were_changed_behind_the_gallery_are_found(gallery: Gallery) -> None:
    with sqlite3.connect(gallery.folder / "gallery.db") as connection:
        connection.execute("UPDATE images SET camera = 'gate' WHERE id = 3")
    assert [path for path, _ in faults(gallery)] == [gallery.rows([3])[0].path]


def test_changed_metadata_and_compaction_keep_the_checksums(gallery: Gallery) -> None:
    row = gallery.rows([5])[0]
    with open_writer(gallery) as writer:
        writer.update_metadata(replace(row, camera="gate", time=7, more={"lens": "wide"}))
        writer.remove([1, 2, 3, 4, 6])
    assert gallery.table(1).is_file() and not faults(gallery) and gallery.rows([5])[0].camera == "gate"
    with open(gallery.table(1), "r+b") as file:
        file.write(b"\1")
    # Whoever changes the metadata of a damaged image does not make it good.
    with open_writer(gallery) as writer:
        writer.update_metadata(row)
    assert [path for path, _ in faults(gallery)] == [row.path]


def test_a_large_gallery_is_not_read_when_it_is_opened_but_its_results_are_checked(gallery, monkeypatch) -> None:
    monkeypatch.setattr(finder, "CHECKED_AT_OPEN", 0)
    path, _, _ = found(gallery.folder)[0]
    row = gallery.row_of(path)
    assert row is not None
    with open(gallery.table(0), "r+b") as file:
        file.seek(row.position * gallery.table_width * 4)
        file.write(np.float32(0.25).tobytes())
    opened = Finder(Gallery(gallery.folder), ColourEmbedder())
    with pytest.raises(
        ValueError, match=r"is damaged: .* names all such images, which have to be removed and added again"
    ):
        opened.search(opened.query(Wanted([("red", 1.0)]), 0.5), 12)
    remove_images(gallery, [path], False)
    add_images(gallery, [Path(path)], ColourEmbedder())
    assert len(found(gallery.folder)) == 12


def test_lost_rows_and_a_changed_model_are_named(gallery: Gallery) -> None:
    path = gallery.folder / "gallery.db"
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM images WHERE id = 2")
    with pytest.raises(
        ValueError, match="gallery.db is damaged: 11 of 12 images are found; restore it from a copy, or"
    ):
        gallery.snapshot()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE about SET value = '0.75' WHERE key = 'beta'")
    with pytest.raises(ValueError, match="is damaged: what it says of its model is not what was written"):
        Gallery(gallery.folder)


def test_values_of_another_kind_are_named(gallery: Gallery) -> None:
    path = gallery.folder / "gallery.db"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE images SET more = '[1' WHERE id = 2")
        connection.execute("UPDATE about SET value = 'x' WHERE key = 'end'")
    for attempt in (gallery.snapshot, lambda: gallery.rows([2]), lambda: list(gallery.all_rows())):
        with pytest.raises(ValueError, match=r"gallery.db is damaged: "):
            attempt()
    with (
        pytest.raises(ValueError, match="gallery.db is damaged: invalid literal for int"),
        open_writer(gallery) as writer,
    ):
        writer.add([image_row("a")], clustered(1, WIDTH))


def test_an_end_that_is_too_low_overwrites_nothing(gallery: Gallery) -> None:
    before = gallery.table(0).read_bytes()
    with sqlite3.connect(gallery.folder / "gallery.db") as connection:
        connection.execute("UPDATE about SET value = '2' WHERE key = 'end'")
    with open_writer(gallery) as writer:
        writer.add([image_row("a")], clustered(1, WIDTH))
    assert gallery.table(0).read_bytes()[: len(before)] == before and gallery.count() == 13


def test_a_gallery_of_an_earlier_version_is_read_written_and_checked(gallery: Gallery, tmp_path: Path) -> None:
    with sqlite3.connect(gallery.folder / "gallery.db") as connection:
        connection.execute("ALTER TABLE images DROP COLUMN crc")
        connection.execute("DELETE FROM about WHERE key IN ('crc', 'images')")
    old = Gallery(gallery.folder)
    assert not faults(old) and len(found(gallery.folder)) == 12
    new = paint(tmp_path / "more", ["a.png"], 5)
    assert add_images(old, new, ColourEmbedder()).added == 1
    again = Gallery(gallery.folder)
    assert [row.crc is None for row in again.all_rows()] == [True] * 12 + [False] and not faults(again)
    with open(again.table(0), "r+b") as file:
        file.seek(12 * again.table_width * 4)
        file.write(b"\1")
    assert [path for path, _ in faults(again)] == [str(new[0])]


def test_a_full_database_is_named_and_nothing_is_lost(gallery: Gallery) -> None:
    with open_writer(gallery) as writer:
        pages = writer.connection.execute("PRAGMA page_count").fetchone()[0]
        writer.connection.execute(f"PRAGMA max_page_count = {pages}")
        rows = [image_row("x" * 900 + str(i)) for i in range(40)]
        with pytest.raises(
            OSError, match=r"gallery.db cannot be written: No space left on device; the disk of .* MB free"
        ):
            writer.add(rows, clustered(40, WIDTH))
    assert gallery.count() == 12 and not faults(gallery)


def test_a_full_disk_is_named_and_the_addition_goes_on_later(gallery: Gallery) -> None:
    rows, table = [image_row(str(i)) for i in range(100)], clustered(100, WIDTH)
    # The table, then the database.
    for size, name in ((gallery.table(0).stat().st_size, "table-0.f32"), (16_000, "gallery.db")):
        with (
            open_writer(gallery) as writer,
            largest_file(size),
            pytest.raises(OSError, match=f"{name} cannot be .*MB free"),
        ):
            writer.add(rows, table)
        assert Gallery(gallery.folder).count() == 12
    with open_writer(gallery) as writer:
        writer.add(rows, table)
    assert gallery.count() == 112 and not [fault for _, fault in faults(gallery) if "damaged" in fault]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")
def test_a_disk_that_is_really_full_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        gallery = fill(disk / "g", clustered(2, WIDTH))

        def add(words: object) -> None:
            with open_writer(gallery) as writer:
                for i in range(200):
                    writer.add([image_row(f"{i}/{j}" + 99 * "x") for j in range(9)], clustered(9, WIDTH))

        assert cli.run(add, []) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and f"{disk}/g/" in error and "MB free" in error and error.count("\n") == 1
        gallery.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_database_that_another_program_has_locked_is_named(gallery: Gallery) -> None:
    with sqlite3.connect(gallery.folder / "gallery.db") as other, open_writer(gallery) as writer:
        other.execute("BEGIN IMMEDIATE")
        writer.connection.execute("PRAGMA busy_timeout = 1")
        with pytest.raises(RuntimeError, match=r"gallery.db is locked by another program; wait until it has ended"):
            writer.remove([1])
        other.rollback()
    assert gallery.count() == 12


def test_a_database_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gallery.db"
    with (
        pytest.raises(OSError, match=r"gallery.db cannot be written \(attempt to write a readonly"),
        naming_database(path),
    ):
        raise sqlite3.OperationalError("attempt to write a readonly database")
    with pytest.raises(OSError, match="gallery.db cannot be written: No space left on device"), naming_database(path):
        raise sqlite3.OperationalError("database or disk is full")
    with (
        pytest.raises(OSError, match="the disk reports an error; it may be full or over a quota"),
        naming_database(path),
    ):
        raise sqlite3.OperationalError("disk I/O error")
