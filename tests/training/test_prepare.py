"""`python -m training.prepare validate` and `template` as a user meets them: exit status, table, page, errors."""

import pytest

from tests.support import contents
from tests.support.html import Page
from tests.support.pedes_dataset import edit_records, make_valid
from training import prepare
from training.config import DataConfig
from training.data.datasets import SPLITS, read_dataset, read_records
from training.utils import cli


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        try:
            status = cli.run(prepare.main, list(words))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


def test_exit_status_table_and_page(tmp_path, run):
    root = make_valid(tmp_path / "set")
    status, out, _ = run("validate", "cuhk-pedes", "set", "--allow-counts", "--workers", "2")
    assert status == 0 and "The protocol can be run, on a set whose size differs from the official one." in out
    assert out.splitlines()[-1] == "runs/validate-cuhk-pedes.html"
    page = (tmp_path / "runs" / "validate-cuhk-pedes.html").read_text()
    assert page.count("data:image/jpeg") == 8 + 6 + 6 and "A slim person" in page
    assert "://" not in page and Page(page).open == []
    status, out, _ = run("validate", "cuhk-pedes", "set", "--html", "p/page.html")
    assert status == 1 and "The official protocol cannot be run: see the errors." in out
    assert (tmp_path / "p" / "page.html").exists()
    status, out, _ = run("validate", "cuhk-pedes", "set", "--allow-counts", "--no-hash")
    assert status == 3 and "Not decided: nothing is wrong with the records, but the images were not opened." in out
    edit_records(root, lambda records: records[0].update(id=9, captions=["<script>alert(1)</script>"]))
    status, out, _ = run("validate", "cuhk-pedes", "set", "--allow-counts")
    assert status == 1 and "identities in more than one" in out
    page = (tmp_path / "runs" / "validate-cuhk-pedes.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_own_data_and_another_set_on_the_command_line(tmp_path, run):
    make_valid(tmp_path / "set", "own")
    make_valid(tmp_path / "other")
    status, out, _ = run("validate", "own", "set", "--against", "cuhk-pedes=other", "--cache", "cache.jsonl")
    assert status == 0 and "The protocol can be run." in out and "images are in both sets" in out
    assert len((tmp_path / "cache.jsonl").read_text().splitlines()) == 60


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("own", "set", "--workers", "0"), "error: workers must be at least 1, got 0"),
        (("own", "set", "--against", "mine=other"), "error: --against must be NAME=ROOT with a NAME of cuhk-pedes, "),
        (("own", "set", "--against", "own"), "error: --against must be NAME=ROOT with a NAME of cuhk-pedes, "),
        (
            ("own", "nowhere"),
            "error: data.root=nowhere: there is no folder nowhere; a data folder of own holds records",
        ),
    ],
)
def test_errors_of_the_command_line(tmp_path, run, words, error):
    make_valid(tmp_path / "set", "own")
    status, _, err = run("validate", *words)
    assert status == 2 and err.startswith(error) and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_template_is_a_data_set(tmp_path, run, form):
    status, out, _ = run("template", "mine", "--form", form)
    assert status == 0 and out == "mine/README.txt says what is what\n"
    dataset = read_dataset(DataConfig(dataset="own", root="mine"))
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 8, "val": 4, "test": 4}
    assert f"records.{form}" in (tmp_path / "mine" / "README.txt").read_text()
    assert run("validate", "own", "mine")[0] == 0
    before = contents(tmp_path / "mine")
    status, _, err = run("template", "mine")
    assert status == 2 and err == "error: mine already exists and is not an empty folder; nothing was written\n"
    assert contents(tmp_path / "mine") == before


def test_both_forms_of_the_template_say_the_same(tmp_path, run):
    splits = []
    for form in ("csv", "jsonl"):
        run("template", form, "--form", form)
        records = read_records(DataConfig(dataset="own", root=form))
        splits.append([(r.file_path, r.id, r.captions, r.path.read_bytes()) for s in SPLITS for r in records[s]])
    assert splits[0] == splits[1]
