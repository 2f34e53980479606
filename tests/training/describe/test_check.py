"""Files of generated texts as they are read, and the command that checks them."""

import json
from dataclasses import replace

import pytest

from tests.support.generated_texts import VALID_TEXTS, make_rows, write_rows
from training.describe import check
from training.describe.options import read_data
from training.describe.text.records import TextRecord, read_text_records
from training.describe.text.schema import DEFAULT_SCHEMA


def test_the_last_record_of_an_image_counts(data, tmp_path):
    first, other = make_rows(data)[0], make_rows(data)[1]
    path = write_rows(tmp_path / "twice.jsonl", [first | {"status": "failed", "reason": "x"}, other, first])
    assert [(text.file_path, text.status) for text in read_text_records(path)] == [
        (other["file_path"], "ok"),
        (first["file_path"], "ok"),
    ]


def test_a_torn_last_line_is_left_out(descriptions):
    whole = list(read_text_records(descriptions))
    with open(descriptions, "a") as file:
        file.write('\n{"file_path": "a.jp')
    assert list(read_text_records(descriptions)) == whole and len(whole) == 12
    assert whole[11] == replace(whole[11], status="failed", identity="", clothing="", checks=None)
    assert isinstance(whole[0], TextRecord)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{\n", "line 2 is not valid JSON"),
        ("[" * 200_000 + "\n", "line 2 is not valid JSON"),
        ("[3]\n", "line 2 must be an object with the strings file_path and status"),
        ('{"file_path": "a.jpg"}\n', "line 2 must be an object with the strings file_path and status"),
        (
            '{"file_path": "a.jpg", "status": "good"}\n',
            "line 2: status must be one of ok, rejected, failed, got 'good'",
        ),
        ('{"file_path": "a.jpg", "status": "ok", "identity": 3}\n', "line 2: identity must be strings"),
        ('{"file_path": "a.jpg", "status": "ok", "style": "x"}\n', "line 2: style must be an integer, got 'x'"),
        ('{"file_path": "a.jpg", "status": "ok", "checks": {"a": 1}}\n', "line 2: checks must be an object of strings"),
    ],
)
def test_files_that_are_broken(data, tmp_path, line, match):
    path = write_rows(tmp_path / "broken.jsonl", make_rows(data)[:1])
    with open(path, "a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=match):
        list(read_text_records(path))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="the file of generated texts .*none.jsonl does not exist"):
        list(read_text_records(tmp_path / "none.jsonl"))


def checked(capsys, *words: str) -> tuple[int, str]:
    status = 0
    try:
        check.main(words)
    except SystemExit as exit:
        status = exit.code
    return status, " ".join(capsys.readouterr().out.split())


def test_the_check_passes_what_is_good(descriptions, capsys):
    status, out = checked(capsys, str(descriptions))
    assert status == 0 and "12 records: 8 ok, 3 rejected, 1 failed" in out
    assert "identity.leak │ 0 │ 0.00" in out and "for instance" not in out and "another person" not in out


def test_the_check_fails_on_a_bad_text_of_status_ok(data, tmp_path, capsys):
    made = make_rows(data)[:4]
    made[2]["status"] = "ok"
    path = write_rows(tmp_path / "bad.jsonl", made)
    status, out = checked(capsys, str(path))
    assert status == 1 and "any │ 1 │ 25.00" in out
    assert f"identity.leak, for instance {made[2]['file_path']}: has words of clothing: coat (upper)" in out
    assert "identity.leak │ 1 │ 25.00" in checked(capsys, str(path), "--hedging", "--words", "2", "99")[1]


def test_the_check_obeys_schema_and_limits(descriptions, tmp_path, capsys):
    assert checked(capsys, str(descriptions), "--leave-out", "skin")[0] == 1
    assert checked(capsys, str(descriptions), "--words", "40", "80")[0] == 1
    assert checked(capsys, str(descriptions), "--attributes", "9")[0] == 1
    schema = json.loads(DEFAULT_SCHEMA.read_text())
    schema["identity"]["attributes"][0]["words"] = ["queen"]
    (tmp_path / "own.json").write_text(json.dumps(schema))
    status, out = checked(capsys, str(descriptions), "--schema", str(tmp_path / "own.json"))
    assert status == 1 and "does not cover sex" in out


def test_the_check_counts_texts_of_two_people(data, tmp_path, capsys):
    made = make_rows(data)
    records = read_data("cuhk-pedes", str(data))
    people = {records[row["file_path"]].id for row in made}
    assert len(people) > 1
    for row in made:
        row |= {"identity": VALID_TEXTS[0][0], "clothing": VALID_TEXTS[0][1], "status": "ok"}
    status, out = checked(capsys, str(write_rows(tmp_path / "same.jsonl", made)), "--data", "cuhk-pedes", str(data))
    first = records[made[0]["file_path"]].id
    others = [row for row in made if records[row["file_path"]].id != first]
    assert status == 0 and f"{len(others)} of 12 are near-duplicates of a text of another person, for instance" in out


def test_there_must_be_something_to_check(data, tmp_path):
    with pytest.raises(ValueError, match="holds no record of status ok to check"):
        check.main([str(write_rows(tmp_path / "failed.jsonl", make_rows(data)[11:]))])
