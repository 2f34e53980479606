"""A gallery beside files that move on: spellings of a path, links, copied and replaced files, folders of cameras."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.support.retrieval.galleries import ColourEmbedder, paint
from training.retrieval.finder import Finder
from training.retrieval.gallery_search import bring_up_to_date
from training.retrieval.image_names import full_path, guess, read_metadata
from training.retrieval.ingest import AddReport, add_images, check_images, image_paths, open_or_create, remove_images
from training.retrieval.store import Gallery
from training.retrieval.web.uploads import Uploads

NAMES = ["a.png", "b.png", "cam_c/c.png"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder with photos, an empty folder `sub` and a link to a folder elsewhere."""
    paint(tmp_path / "here/photos", NAMES)
    (tmp_path / "here/sub").mkdir()
    (tmp_path / "other/deep").mkdir(parents=True)
    (tmp_path / "here/link").symlink_to(tmp_path / "other/deep")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def add(gallery: Gallery, folder: Path | str, **options) -> AddReport:
    return add_images(gallery, image_paths(Path(folder)), ColourEmbedder(), root=Path(folder), **options)


def counts(report: AddReport) -> tuple[int, int, int, int]:
    return report.added, report.replaced, report.present, report.described


@pytest.mark.parametrize("spelling", ["sub/../photos", "./photos", "../here/photos", "photos/cam_c/..", "//{}/photos"])
def test_every_spelling_of_a_folder_is_one(spelling, here):
    gallery, folder = open_or_create(here / "g", ColourEmbedder()), spelling.format(str(here).lstrip("/"))
    add(gallery, "photos")
    assert counts(add(gallery, folder)) == (0, 0, 3, 0) and gallery.count() == 3
    bring_up_to_date(gallery, image_paths(Path(folder)), ColourEmbedder(), pytest.fail)
    assert {row.path for row in gallery.all_rows()} == {str(here / "photos" / name) for name in NAMES}
    assert remove_images(gallery, [folder], False) == 3


def test_every_spelling_of_a_gallery_is_one_on_a_server(here, monkeypatch):
    open_or_create(here / "g", ColourEmbedder()).close()
    monkeypatch.setattr("training.retrieval.finder.QdrantEngine", lambda width, location, name: name)
    names = set()
    for spelling in ("g", "sub/../g", "../here/g", f"/{here}/g"):
        finder = Finder(Gallery(spelling), ColourEmbedder())
        finder.engine_name = "qdrant"
        names.add(finder._connect(32))
    assert len(names) == 1


def test_images_that_were_added_twice_by_an_earlier_version_are_removed_together(here, monkeypatch):
    gallery = open_or_create(here / "g", ColourEmbedder())
    add(gallery, "photos")
    monkeypatch.setattr("training.retrieval.ingest.full_path", lambda path: str(Path(path).absolute()))
    add(gallery, "sub/../photos")
    monkeypatch.undo()
    assert gallery.count() == 6 and remove_images(gallery, [str(here / "photos")], False) == 6


def test_two_dots_after_a_link_lead_out_of_its_target(here):
    paint(here.parent / "other/photos", ["far.png"])
    assert full_path("link/../photos") == str(here.parent / "other/photos")
    assert full_path("link/x.png") == str(here / "link/x.png")
    assert full_path("sub/../link/x.png") == str(here / "link/x.png")
    gallery = open_or_create(here / "g", ColourEmbedder())
    add(gallery, "link/../photos")
    assert [row.path for row in gallery.all_rows()] == [str(here.parent / "other/photos/far.png")]


def test_a_server_of_a_gallery_by_another_spelling_keeps_what_is_uploaded(here, tmp_path):
    open_or_create(here / "g", ColourEmbedder()).close()
    uploads = Uploads(Finder(Gallery("sub/../g"), ColourEmbedder()))
    archive = shutil.make_archive(str(tmp_path / "zip"), "zip", here / "photos")
    with uploads.receive_zip("zip") as path:
        shutil.copy(archive, path)
    deadline = time.monotonic() + 60
    while uploads.job is not None and not uploads.job.finished:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert uploads.job is not None and uploads.job.error == "" and uploads.job.added == 3
    assert len([*here.glob("g/uploads/*/**/*.png")]) == 3


def test_linked_folders_are_followed_once(here):
    far = paint(here.parent / "other/deep", ["cam_d/d.png", "e.png"])
    (here / "photos/a_link").symlink_to(here.parent / "other/deep")
    (here / "photos/again").symlink_to(here.parent / "other/deep/cam_d")
    (here / "photos/a_cam").symlink_to(here / "photos/cam_c")
    (here / "photos/.hidden").symlink_to(here.parent / "other/deep")
    (here / "photos/cam_c/loop").symlink_to("..")
    (here / "photos/root").symlink_to("/")
    (here.parent / "other/deep/up").symlink_to("..")
    (here.parent / "other/deep/back").symlink_to(here / "photos")
    (here / "photos/gone").symlink_to("nowhere")
    assert [str(path) for path in image_paths(Path("photos"))] == [
        "photos/a.png",
        "photos/a_link/cam_d/d.png",
        "photos/a_link/e.png",
        "photos/b.png",
        "photos/cam_c/c.png",
    ]
    gallery = open_or_create(here / "g", ColourEmbedder())
    assert add(gallery, "photos").added == 5 and len(far) == 2
    assert gallery.row_of(str(here / "photos/a_link/cam_d/d.png")).camera == "d"


def touch(photos: Path) -> None:
    os.utime(photos / "a.png", (1, 1))
    os.utime(photos / "cam_c/c.png", (2, 2))


def copy_anew(photos: Path) -> None:
    shutil.copytree(photos, photos.parent / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(photos)
    (photos.parent / "copy").rename(photos)


def write_again(photos: Path) -> None:
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes())


@pytest.mark.parametrize("change", [touch, copy_anew, write_again])
@pytest.mark.parametrize("batch_size", [1, 128])
def test_files_of_the_same_content_are_read_once(change, batch_size, here, monkeypatch):
    gallery = open_or_create(here / "g", ColourEmbedder())
    add(gallery, "photos")
    change(here / "photos")
    assert list(check_images(gallery, False, int)) and not list(check_images(gallery, True, int))
    assert counts(add(gallery, "photos", batch_size=batch_size)) == (0, 0, 3, 0)
    assert not list(check_images(gallery, False, int)) and not list(check_images(gallery, True, int))
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"read again: {path}"))
    changes = gallery.version()
    assert counts(add(gallery, "photos")) == (0, 0, 3, 0) and gallery.version() == changes


def test_metadata_of_a_touched_file_change_with_its_time(here):
    gallery = open_or_create(here / "g", ColourEmbedder())
    add(gallery, "photos")
    touch(here / "photos")
    (here / "facts.csv").write_text("path,camera\na.png,gate\nb.png,gate\n")
    assert counts(add(gallery, "photos", metadata=read_metadata(here / "facts.csv"))) == (0, 0, 3, 2)
    assert [row.camera for row in gallery.all_rows()] == ["gate", "gate", "c"]
    assert not list(check_images(gallery, False, int))


def test_a_replaced_file_keeps_its_metadata(here):
    gallery = open_or_create(here / "g", ColourEmbedder())
    facts = here / "facts.csv"
    facts.write_text("path,camera,time,note\na.png,gate,5,vip\ncam_c/c.png,,,\n")
    add(gallery, "photos", metadata=read_metadata(facts))
    paint(here / "photos", ["a.png", "cam_c/c.png"], seed=9)
    assert counts(add(gallery, "photos")) == (0, 2, 1, 0)
    row = gallery.row_of(str(here / "photos/a.png"))
    assert (row.camera, row.time, row.more) == ("gate", 5, {"note": "vip"})
    # What the CSV says not to know is not guessed afterwards.
    assert gallery.row_of(str(here / "photos/cam_c/c.png")).camera == ""
    paint(here / "photos", ["a.png"], seed=10)
    facts.write_text("path,camera\na.png,door\n")
    assert counts(add(gallery, "photos", metadata=read_metadata(facts))) == (0, 1, 2, 0)
    row = gallery.row_of(str(here / "photos/a.png"))
    assert (row.camera, row.time, row.more) == ("door", None, {}) and not list(check_images(gallery, True, int))


NOON = 1777638605.0


@pytest.mark.parametrize(
    ("path", "camera", "time"),
    [
        ("camera1/x.jpg", "1", None),
        ("Camera-02/x.jpg", "02", None),
        ("CAM01/x.jpg", "01", None),
        ("cam 3/x.jpg", "3", None),
        ("cam_entrance-north/x.jpg", "entrance-north", None),
        ("camera_gate/x.jpg", "gate", None),
        ("cameras/x.jpg", "", None),
        ("campus/x.jpg", "", None),
        ("webcam_1/x.jpg", "", None),
        ("campaign_photos/IMG_20260501_123005.jpg", "", NOON),
        ("cam_1/2026-05-01_12-30-05.jpg", "1", NOON),
        ("cam_a/IMG_20260501_123005.jpg", "a", NOON),
        ("cam_a/IMG_20261301_123005.jpg", "a", None),
        # The name tells its own time.
        ("cam_1/0002_c1s1_000450_03.jpg", "c1", 18.0),
    ],
)
def test_camera_folders_and_dates(path, camera, time):
    facts = guess("/data/" + path)
    assert (facts.camera, facts.time) == (camera, time)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,camera\na,b\n", "needs a column 'path', and each column once; it has file, camera"),
        ("", "needs a column 'path', and each column once; it has none"),
        ("path,camera,camera\na.jpg,b,c\n", "each column once; it has path, camera, camera"),
        ("path,note\na.jpg,tall, thin\n", "line 2 has more than the 2 cells of its header"),
        ('path,note\na.jpg,"tall\nb.jpg,x\n', "is not a CSV file in UTF-8"),
        ("path,time\na.jpg,\na.jpg,\n", "line 3: a.jpg occurs twice"),
        ("path,time\na.jpg,noon\n", "line 2: time must be seconds or ISO 8601"),
        ("path,time\na.jpg,inf\n", "line 2: time must be seconds or ISO 8601"),
        (b"path,camera\na.jpg,\xff\n", "is not a CSV file in UTF-8"),
    ],
)
def test_bad_metadata_is_named(text, message, tmp_path):
    path = tmp_path / "facts.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_metadata(path)
    with pytest.raises(FileNotFoundError, match="metadata .*none.csv does not exist"):
        read_metadata(tmp_path / "none.csv")
