"""The page to read generated texts by eye."""

from pathlib import Path

import pytest

from tests.support.generated_texts import VALID_TEXTS, make_rows, write_rows
from tests.support.html import Page
from training.describe import page
from training.describe.options import read_data
from training.utils import cli


def made_page(descriptions: Path, data: Path, *words: str) -> Page:
    page.main([str(descriptions), "--data", "cuhk-pedes", str(data), *words])
    return Page(descriptions.with_suffix(".html").read_text())


def test_the_page_counts_everything(descriptions, data, capsys):
    made = made_page(descriptions, data)
    assert capsys.readouterr().out.strip() == str(descriptions.with_suffix(".html"))
    words = made.words()
    assert "12 images with generated texts · some-model" in words
    assert "ok 8 66.7 rejected 3 25.0 failed 1 8.3" in words
    assert "reason images % identity.leak 3 25.0 timeout 1 8.3" in words
    assert "identity.leak 8 3 27.3" in words and "clothing.leak 11 0 0.0" in words
    assert "style ok rejected failed not ok, % 0 4 0 0 0.0 1 3 0 0 0.0 2 0 3 1 100.0 none 1 0 0 0.0" in words
    assert "upper 8" in words and "12 of 12 images" in words and "not in the data set" not in words
    lengths = [len(VALID_TEXTS[i][0].replace("-", " ").split()) for i in range(11) if i not in (2, 5, 8)]
    assert f"mean {sum(lengths) / len(lengths):.1f} words (dashed), from {min(lengths)} to {max(lengths)}" in words


def test_the_page_is_well_formed_and_self_contained(descriptions, data):
    made = made_page(descriptions, data)
    assert made.open == []
    links = [value for _, attrs in made.tags for key, value in attrs.items() if key in ("src", "href", "xlink:href")]
    assert len([link for link in links if link.startswith("data:image/jpeg;base64,")]) == 12
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    assert not {tag for tag, _ in made.tags} & {"script", "link", "iframe", "object"}
    assert [attrs["aria-label"] for tag, attrs in made.tags if tag == "svg"] == [
        "words of the identity text",
        "words of the clothing text",
    ]
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in made.tags


def test_a_card_says_all_about_its_image(descriptions, data):
    first = make_rows(data)[2]
    words = made_page(descriptions, data, "--status", "rejected", "--sample", "9").words()
    assert "3 of 3 images of status rejected" in words
    record = read_data("cuhk-pedes", str(data))[first["file_path"]]
    card = words[words.index(first["file_path"]) :]
    expected = f"{first['file_path']} rejected style 2 · person {record.id} · {record.split} "
    expected += "✗ identity.leak: has words of clothing: coat (upper) "
    expected += f"identity {first['identity']} clothing {first['clothing']} captions {' '.join(record.captions)} "
    expected += "✓ 15 checks passed identity.syntax,"
    assert card.startswith(expected)


def test_records_without_checks_or_texts(descriptions, data):
    words = made_page(descriptions, data).words()
    assert words.count("checks passed (computed for this page)") == 1
    failed = words[words.index(make_rows(data)[11]["file_path"]) :]
    assert "failed style 2" in failed and "timeout: no answer within 60 s identity – clothing –" in failed
    assert "no checks: there is no text" in failed


def test_texts_are_escaped(data, tmp_path):
    row = make_rows(data)[0] | {"identity": "<script>alert(1)</script> & <b>more</b>"}
    made = made_page(write_rows(tmp_path / "one.jsonl", [row]), data)
    assert not {tag for tag, _ in made.tags} & {"script"} and row["identity"] in made.words()


def test_the_sample_is_drawn_by_its_seed(descriptions, data):
    pages = {}
    for seed, run in ((0, 0), (0, 1), (1, 0)):
        made_page(descriptions, data, "--sample", "4", "--seed", str(seed))
        pages[seed, run] = descriptions.with_suffix(".html").read_text()
    assert pages[0, 0] == pages[0, 1] != pages[1, 0]
    assert "4 of 12 images" in Page(pages[0, 0]).words()
    none = made_page(descriptions, data, "--sample", "0")
    assert "0 of 12 images" in none.words() and "img" not in {tag for tag, _ in none.tags}


def test_images_that_the_data_set_lacks(data, tmp_path):
    made = make_rows(data)
    made[0]["file_path"], made[2]["file_path"] = "nowhere/1.jpg", "nowhere/2.jpg"
    words = made_page(write_rows(tmp_path / "some.jsonl", made), data).words()
    assert "2 records belong to images that are not in the data set." in words
    assert words.count("· not in the data set") == 2 == words.count("no image")


def test_a_page_of_failures_only(data, tmp_path):
    words = made_page(write_rows(tmp_path / "failed.jsonl", [make_rows(data)[11] | {"style": None}]), data).words()
    assert "No record has a text that could be checked." in words and words.count("No record has status ok.") == 2
    assert "No caption of an image of status ok names an attribute" in words


def test_agreement_with_the_captions(data, tmp_path):
    record = next(iter(read_data("cuhk-pedes", str(data)).values()))
    text = {"file_path": record.file_path, "status": "ok", "identity": "A tall man with red hair."}
    caption = record.captions[0]
    colours = [word for word in ("red", "green", "blue", "white", "black", "yellow") if f" {word} " in caption]
    other = next(
        word for word in ("red", "green", "blue", "white", "black", "yellow") if word not in " ".join(record.captions)
    )
    for clothing, expected in (
        (f"A {colours[0]} shirt and trousers.", ("upper 1 100.0 100.0", "lower 1 100.0 100.0", "colour 1 100.0 100.0")),
        (f"A {other} coat.", ("upper 1 100.0 0.0", "lower 1 0.0 0.0", "colour 1 100.0 0.0")),
    ):
        words = made_page(write_rows(tmp_path / "one.jsonl", [text | {"clothing": clothing}]), data).words()
        assert all(row in words for row in expected) and "hair 1" not in words


def test_rare_reasons_are_counted(data, tmp_path):
    made = [
        row | {"status": "failed", "reason": f"reason {i}: x", "file_path": f"{i}.jpg"}
        for i in range(22)
        for row in make_rows(data)[:1]
    ]
    words = made_page(write_rows(tmp_path / "many.jsonl", made), data).words()
    assert "and 2 rarer reasons" in words


def test_long_ranges_of_lengths_share_bars(data, tmp_path):
    made = [make_rows(data)[0] | {"identity": "word " * count, "file_path": f"{count}.jpg"} for count in (1, 50, 200)]
    words = made_page(write_rows(tmp_path / "long.jsonl", made), data).words()
    assert f"mean {251 / 3:.1f} words (dashed), from 1 to 200" in words


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (["--sample", "-1"], "--sample must not be negative, got -1"),
        (["--out", "/nowhere/page.html"], "--out /nowhere/page.html: there is no folder /nowhere"),
        (["--leave-out", "nose"], "leave_out must name sensitive attributes"),
        (["--words", "9", "3"], "limits.words must be a range"),
    ],
)
def test_bad_options(descriptions, data, capsys, extra, match):
    assert cli.run(page.main, [str(descriptions), "--data", "cuhk-pedes", str(data), *extra]) == 2
    assert match in capsys.readouterr().err
    assert not descriptions.with_suffix(".html").exists()


def test_nothing_of_that_status(data, tmp_path):
    path = write_rows(tmp_path / "ok.jsonl", make_rows(data)[:2])
    with pytest.raises(ValueError, match="ok.jsonl has no record of status rejected"):
        made_page(path, data, "--status", "rejected")
