"""Adding images: incremental, resumable, damaged files listed, metadata guessed or from a CSV."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from tests.support.retrieval.galleries import ColourEmbedder, clustered, fill, paint
from training.retrieval import ingest
from training.retrieval.finder import Finder, Wanted
from training.retrieval.image_names import ImageFacts, format_time, guess, read_metadata
from training.retrieval.ingest import add_images, check_images, image_paths, open_or_create, remove_images
from training.retrieval.store import Gallery

NAMES = ["cam_a/1.png", "cam_a/2.png", "cam_b/3.png", "sub/0001_c2s1_000050_01.png", "e.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    paint(tmp_path / "photos", NAMES)
    return tmp_path / "photos"


def add(photos: Path, gallery: Gallery, embedder: ColourEmbedder, **options) -> ingest.AddReport:
    return add_images(gallery, image_paths(photos), embedder, root=photos, **options)


def test_a_folder_is_added_once(photos, tmp_path):
    embedder = ColourEmbedder()
    gallery, told = open_or_create(tmp_path / "g", embedder), []
    report = add(photos, gallery, embedder, batch_size=2, progress=told.append)
    assert (report.added, report.present, report.unreadable) == (5, 0, []) and told[-1] == 5
    snapshot = gallery.snapshot()
    for row in gallery.all_rows():
        pixels = embedder.read_image(Path(row.path).read_bytes(), row.path)
        np.testing.assert_array_equal(snapshot.table_PW[row.position], embedder.embed_images(pixels[None])[0])
    assert [row.camera for row in gallery.all_rows()] == ["a", "a", "b", "", "c2"]
    embedder.embedded = 0
    again = add(photos, open_or_create(tmp_path / "g", embedder), embedder)
    assert (again.added, again.present, embedder.embedded) == (0, 5, 0)


def test_new_and_changed_files_are_embedded_and_nothing_else(photos, tmp_path):
    embedder = ColourEmbedder()
    gallery = open_or_create(tmp_path / "g", embedder)
    add(photos, gallery, embedder)
    paint(photos, ["cam_b/3.png", "new.jpg"], seed=9)
    os.utime(photos / "e.png", (1, 1))
    embedder.embedded = 0
    report = add(photos, gallery, embedder)
    # A file whose time alone has changed is read, and not embedded.
    assert (report.added, report.replaced, report.present, embedder.embedded) == (1, 1, 4, 2) and gallery.count() == 6


def test_damaged_files_are_listed_and_the_rest_is_added(photos, tmp_path):
    (photos / "broken.jpg").write_bytes((photos / "e.png").read_bytes()[:40])
    (photos / "empty.png").touch()
    (photos / "._hidden.jpg").write_bytes(b"resource fork")
    (photos / "text.tif").write_text("no image")
    embedder = ColourEmbedder()
    report = add(photos, open_or_create(tmp_path / "g", embedder), embedder, batch_size=1)
    assert report.added == 5
    assert sorted(Path(path).name for path, _ in report.unreadable) == ["broken.jpg", "empty.png", "text.tif"]
    assert all("is not a readable image" in reason for _, reason in report.unreadable)


def test_names_in_other_bytes_are_listed(tmp_path):
    paint(tmp_path / "p", ["a.png"])
    os.rename(tmp_path / "p" / "a.png", os.fsencode(tmp_path / "p") + b"/\xff.png")
    embedder = ColourEmbedder()
    report = add(tmp_path / "p", open_or_create(tmp_path / "g", embedder), embedder)
    assert len(report.unreadable) == 1 and "the name is not UTF-8" in report.unreadable[0][1]


def test_an_interrupted_addition_goes_on(photos, tmp_path):
    embedder = ColourEmbedder()

    class Interrupted(ColourEmbedder):
        def embed_images(self, pixels_N3HW):
            if self.embedded >= 4:
                raise KeyboardInterrupt
            return super().embed_images(pixels_N3HW)

    gallery = open_or_create(tmp_path / "g", embedder)
    with pytest.raises(KeyboardInterrupt):
        add(photos, gallery, Interrupted(), batch_size=2)
    assert gallery.count() == 4
    assert add(photos, gallery, embedder, batch_size=2).added == 1 and embedder.embedded == 1
    assert sorted(Path(row.path).name for row in gallery.all_rows()) == sorted(Path(name).name for name in NAMES)


def test_a_model_that_gives_nan_is_refused(photos, tmp_path):
    class Broken(ColourEmbedder):
        def embed_images(self, pixels_N3HW):
            return np.full((len(pixels_N3HW), 32), np.nan, np.float32)

        def _embed(self, texts):
            return np.full((len(texts), 16), np.nan, np.float32)

    gallery = open_or_create(tmp_path / "g", ColourEmbedder())
    with pytest.raises(ValueError, match="its weights are damaged"):
        add(photos, gallery, Broken())
    assert gallery.count() == 0
    add(photos, gallery, ColourEmbedder())
    with pytest.raises(ValueError, match="a text embedding that is zero or not finite"):
        Finder(gallery, Broken()).query(Wanted([("red", 1.0)]), 0.5)
    with pytest.raises(ValueError, match="embeddings that are not finite"):
        Finder(gallery, Broken()).embed_image((photos / "e.png").read_bytes(), "e.png")


def test_another_model_is_refused_before_anything_is_read(photos, tmp_path):
    gallery = open_or_create(tmp_path / "g", ColourEmbedder())
    other = ColourEmbedder("b" * 64)
    for attempt in (lambda: open_or_create(tmp_path / "g", other), lambda: add(photos, gallery, other)):
        with pytest.raises(ValueError, match="was made with another model"):
            attempt()
    assert other.embedded == 0


def test_metadata_comes_with_the_images_or_later(photos, tmp_path):
    table = tmp_path / "facts.csv"
    table.write_text("path,camera,time,site\ncam_a/1.png,gate,2026-05-01T12:00:00,north\nnone.png,x,,\ne.png,,7.5,\n")
    embedder = ColourEmbedder()
    gallery = open_or_create(tmp_path / "g", embedder)
    report = add(photos, gallery, embedder, metadata=read_metadata(table))
    row = gallery.row_of(str(photos / "cam_a/1.png"))
    noon = datetime(2026, 5, 1, 12, tzinfo=timezone.utc).timestamp()
    assert (row.camera, row.time, row.more) == ("gate", noon, {"site": "north"}) and report.unknown == ["none.png"]
    table.write_text("path,camera\ncam_a/1.png,door\ncam_a/2.png,a\n")
    report = add(photos, gallery, embedder, metadata=read_metadata(table))
    assert report.described == 1 and gallery.row_of(str(photos / "cam_a/1.png")).camera == "door"
    assert gallery.row_of(str(photos / "cam_b/3.png")).camera == "b"


MARCH_3 = 62 * 86400.0


@pytest.mark.parametrize(
    ("path", "camera", "time", "shown"),
    [
        ("bounding_box_test/0002_c1s1_000450_03.jpg", "c1", 18.0, "0:00:18"),
        ("-1_c3s2_000025_00.jpg", "c3", 1.0, "0:00:01"),
        ("test/0000_000_01_0303morning_0015_0.jpg", "c1", MARCH_3 + 8 * 3600, "03 Mar 08:00"),
        ("0005_0001_12_0303afternoon_0015_1.jpg", "c12", MARCH_3 + 16 * 3600, "03 Mar 16:00"),
        ("0001_c2_f0046182.jpg", "c2", 769.7, "0:12:50"),
        ("0000_c14_0004.jpg", "c14", None, ""),
        ("CUHK03/1_001_2_05.png", "1-2", None, ""),
        ("CUHK01/0001003.png", "b", None, ""),
        ("CUHK01/0001002.png", "a", None, ""),
        ("cam_a/000_45.bmp", "a", None, ""),
        ("gate 2026-05-01_12-30-05.jpg", "", 1777638605.0, "2026-05-01 12:30:05"),
        ("IMG_20260501_123005.jpg", "", 1777638605.0, "2026-05-01 12:30:05"),
        ("IMG_20261301_123005.jpg", "", None, ""),
        ("0000_000_01_0231morning_0015_0.jpg", "", None, ""),
        ("holiday.jpg", "", None, ""),
    ],
)
def test_camera_and_time_of_known_names(path, camera, time, shown):
    facts = guess("/data/" + path)
    assert facts.camera == camera and (facts.time == time or facts.time == pytest.approx(time))
    assert format_time(facts.time) == shown


def test_times_beyond_a_calendar_are_shown_as_they_are():
    assert format_time(1e18) == "1e+18 s" and format_time(float("nan")) == ""
    assert ImageFacts().time is None


def test_images_are_removed_by_path_folder_and_absence(photos, tmp_path):
    embedder = ColourEmbedder()
    gallery = open_or_create(tmp_path / "g", embedder)
    add(photos, gallery, embedder)
    with pytest.raises(ValueError, match="has no image .*nowhere, nor one below it"):
        remove_images(gallery, [str(photos / "e.png"), str(tmp_path / "nowhere")], False)
    assert remove_images(gallery, [str(photos / "cam_a"), str(photos / "e.png")], False) == 3
    (photos / "cam_b/3.png").unlink()
    assert remove_images(gallery, [], True) == 1
    assert [Path(row.path).name for row in gallery.all_rows()] == ["0001_c2s1_000050_01.png"]


def test_a_check_names_every_fault(photos, tmp_path):
    embedder = ColourEmbedder()
    gallery = open_or_create(tmp_path / "g", embedder)
    add(photos, gallery, embedder)
    assert list(check_images(gallery, True, int)) == []
    (photos / "cam_a/1.png").unlink()
    os.utime(photos / "cam_a/2.png", (1, 1))
    content = (photos / "cam_b/3.png").read_bytes()
    stat = (photos / "cam_b/3.png").stat()
    (photos / "cam_b/3.png").write_bytes(content[:-1] + b"x")
    os.utime(photos / "cam_b/3.png", ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    row = gallery.row_of(str(photos / "e.png"))
    with open(gallery.table(0), "r+b") as file:
        file.seek(row.position * gallery.table_width * 4)
        file.write(np.full(3, 7, np.float32).tobytes())
    faults = {Path(path).name: fault for path, fault in check_images(gallery, False, int)}
    assert faults == {
        "1.png": "the file does not exist",
        "2.png": "the file has changed since",
        "e.png": "damaged embedding or facts: remove the image and add it again",
    }
    # Equal size and time, other content.
    assert "3.png" in {Path(path).name for path, _ in check_images(gallery, True, int)}


def test_what_is_no_folder_of_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        image_paths(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "d.jpg").mkdir()
    with pytest.raises(ValueError, match="holds no image file \\(.avif .bmp"):
        image_paths(tmp_path)
    (tmp_path / "d.jpg" / "a.HEIC").touch()
    assert [path.name for path in image_paths(tmp_path)] == ["a.HEIC"]


def test_notes_on_a_text():
    embedder = ColourEmbedder()
    assert embedder.notes("red blue") == []
    assert embedder.notes("red qux") == ["words that the model has not learned: qux"]
    assert embedder.notes("foo, bar!") == ["no word of this text was in the texts that the model learned from"]
    assert embedder.notes("?!") == ["this text has no words"]
    assert embedder.notes("red " * 20) == ["the model reads the first 14 tokens of this text, which has 20"]
    with pytest.raises(ValueError, match="TEXT has 2001 characters, at most 2000 are read"):
        embedder.embed_texts(["x" * 2001])
    with pytest.raises(ValueError, match="TEXT has a NUL character or bytes that are not UTF-8"):
        embedder.embed_texts(["red \ud800"])


@pytest.mark.parametrize("engine", ["exact", "faiss"])
def test_a_finder_follows_its_gallery(engine, photos, tmp_path):
    if engine == "faiss":
        pytest.importorskip("faiss")
    embedder = ColourEmbedder()
    gallery = open_or_create(tmp_path / "g", embedder)
    add(photos, gallery, embedder)
    finder = Finder(gallery, embedder, engine)
    ask = finder.query(Wanted([("red", 1.0)]), 0.5)
    assert len(finder.search(ask, 10)) == 5 and not finder.refresh()
    paint(photos, [f"more/{i}.png" for i in range(30)], seed=4)
    add(photos, gallery, embedder)
    assert finder.refresh() and len(finder.search(ask, 100)) == 35 == getattr(finder._loaded.engine, "trained", 35)
    # One by one, then so many that the table is compacted.
    remove_images(gallery, [str(photos / "e.png")], False)
    assert finder.refresh() and len(finder.search(ask, 100)) == 34
    remove_images(gallery, [str(photos / "more")], False)
    assert finder.refresh()
    fresh = Finder(Gallery(tmp_path / "g"), embedder).search(ask, 100)
    assert [(r.image.path, r.score) for r in finder.search(ask, 100)] == [(r.image.path, r.score) for r in fresh]
    for k in (0, 10_001):
        with pytest.raises(ValueError, match="k must be from 1 to 10000"):
            finder.search(ask, k)


def test_queries_of_images_texts_and_feedback(tmp_path):
    table = clustered(200, 16)
    finder = Finder(fill(tmp_path / "g", table), ColourEmbedder())
    alike = finder.search(finder.query(Wanted(images=[18]), 0.5), 3)
    assert alike[0].image.id == 18 and alike[0].score == pytest.approx(1.5, abs=1e-5)
    same = finder.query(Wanted(vectors=[table[17]]), 0.5)
    np.testing.assert_array_equal(same.vector(2), finder.query(Wanted(images=[18]), 0.5).vector(2))
    both = finder.query(Wanted([("red", 2.0)], images=[18]), 0.0)
    t_E = finder.embedder.embed_texts(["red"])[0]
    expected = 2 * t_E + table[17, :16]
    np.testing.assert_allclose(both.identity_E, expected / np.linalg.norm(expected), atol=1e-6)
    refined = finder.query(Wanted([("red", 1.0)], confirmed=[18], rejected=[30]), 0.0)
    plain = finder.query(Wanted([("red", 1.0)]), 0.0)
    assert refined.marks is not None and plain.marks is None and np.array_equal(refined.identity_E, plain.identity_E)
    np.testing.assert_array_equal(refined.marks.confirmed_CW, table[17:18])
    np.testing.assert_array_equal(refined.marks.rejected_RW, table[29:30])
    np.testing.assert_array_equal(finder.query(Wanted(confirmed=[18]), 0.0).identity_E, table[17, :16])
    with pytest.raises(ValueError, match="a query needs a text or an image"):
        finder.query(Wanted(rejected=[3]), 0.5)
    for unknown in ([999], [-1]):
        with pytest.raises(ValueError, match="the gallery has no image"):
            finder.query(Wanted(images=unknown), 0.5)
