"""Append-only files: what a kill, a full disk or a second process may do to them, and answers found by their key."""

from __future__ import annotations

import errno
import json
import os
import re

import pytest

from training.describe.llm.answer_store import Answer, AnswerStore, DescriptionStore, JsonLines, answer_key

ROWS = [
    {"number": 1, "text": "plain"},
    {"number": 2, "text": "ümläut \u2028 and\nline"},
    {"number": 3, "text": "x" * 9000},
    {"number": 4, "text": "halves \ud83d, \\\udc00 and \udfff\ud800", "\udcff": ['a\ud83d"']},
]
KEYS = [answer_key(image=name, attempt=0) for name in ("a", "b", "c")]


def filled(path) -> list[int]:
    lines = JsonLines(path)
    places = [lines.append(row) for row in ROWS]
    lines.close()
    return places


def test_rows_are_found_in_order_and_by_place(tmp_path):
    places = filled(tmp_path / "rows.jsonl")
    lines = JsonLines(tmp_path / "rows.jsonl")
    assert list(lines.rows()) == list(zip(places, ROWS, strict=True))
    assert [lines.read_at(place) for place in reversed(places)] == ROWS[::-1]
    place = lines.append({"number": 5})
    assert lines.read_at(place) == {"number": 5}
    lines.close()


def test_a_line_torn_anywhere_is_removed_and_the_rest_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    places = filled(path)
    whole = path.read_bytes()
    for start, end in zip(places, [*places[1:], len(whole)], strict=True):
        # One byte of the line, all but its end, and cuts inside the first block and before it.
        for cut in {start + 1, end - 2, (start + end) // 2, min(start + 5000, end - 2)}:
            path.write_bytes(whole[:cut])
            lines = JsonLines(path)
            lines.append({"number": 9})
            lines.close()
            assert path.read_bytes() == whole[:start] + b'{"number": 9}\n'


def test_a_whole_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    lines = JsonLines(path)
    assert [row for _, row in lines.rows()] == ROWS
    lines.close()
    assert path.read_bytes() == whole


def test_a_last_line_without_end_is_removed(tmp_path):
    path = tmp_path / "rows.jsonl"
    filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"a": ' + b"[" * 200_000)
    JsonLines(path).close()
    assert path.read_bytes() == whole


def test_one_process_at_a_time(tmp_path):
    lines = JsonLines(tmp_path / "rows.jsonl")
    with pytest.raises(RuntimeError, match=r"rows.jsonl is being written by another process; wait for it to end"):
        JsonLines(tmp_path / "rows.jsonl")
    lines.close()
    JsonLines(tmp_path / "rows.jsonl").close()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    filled(path)
    whole, write = path.read_bytes(), os.write
    lines = JsonLines(path)
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    with pytest.raises(OSError, match="5 of 14 bytes could be written; is the disk full"):
        lines.append({"number": 9})
    assert path.read_bytes() == whole

    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="rows.jsonl cannot be written: No space left on device"):
        lines.append({"number": 9})
    monkeypatch.undo()
    assert lines.read_at(lines.append({"number": 9})) == {"number": 9}
    lines.close()


def test_a_file_that_somebody_cut(tmp_path):
    lines = JsonLines(tmp_path / "rows.jsonl")
    place = lines.append({"number": 1})
    os.truncate(tmp_path / "rows.jsonl", 3)
    with pytest.raises(ValueError, match="rows.jsonl was truncated by another process while in use"):
        lines.read_at(place)
    lines.close()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "line 2 is not valid JSON: "),
        ('{"a": ' + "[" * 200_000, "line 2 is not valid JSON: "),
        ("[]", "line 2 must be an object, got list"),
    ],
)
def test_a_broken_line_in_the_middle_is_named(tmp_path, line, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    lines = JsonLines(path)
    with pytest.raises(ValueError, match=text):
        list(lines.rows())
    lines.close()


def test_answers_are_found_again_with_all_that_they_said(tmp_path):
    path = tmp_path / "answers.jsonl"
    said = [
        Answer("one", "", "stop", 800, 40, 1.5),
        Answer("", "no", "stop", None, None, 0.5),
        Answer("cut", "", "length"),
    ]
    answers = AnswerStore(path)
    for key, answer in zip(KEYS, said, strict=True):
        assert answers.get(key) is None
        answers.add(key, answer, kind="identity")
    answers.lines.close()
    again = AnswerStore(path)
    assert len(again) == 3 and [again.get(key) for key in KEYS] == said
    assert (again.with_usage, again.prompt_tokens, again.completion_tokens, again.seconds) == (1, 800, 40, 2.0)
    again.lines.close()


def test_the_key_covers_everything(tmp_path):
    base = {"image": "a", "prompt": "p", "model": "m", "params": {"temperature": 0.7}, "kind": "identity", "attempt": 0}
    changed = [base | {name: "other"} for name in base] + [base | {"params": {"temperature": 0.8}}]
    assert len({answer_key(**parts) for parts in [base, *changed]}) == 8
    assert answer_key(**base) == answer_key(**dict(reversed(base.items())))
    assert re.fullmatch("[0-9a-f]{64}", answer_key(**base))


def test_keys_of_answers_that_were_stored_before_never_change():
    key = answer_key(image="a", prompt="b", model="m", params={"x": 1}, kind="identity", attempt=0)
    assert key == "2586c6678b3e5976a031c2833bfeb67bc055ef4f559fdfcb59018fab82969f30"


@pytest.mark.parametrize(
    ("store", "rows", "text"),
    [
        (AnswerStore, [{"key": KEYS[0]}], "the row at byte 0 lacks the strings key and text"),
        (AnswerStore, [{"key": KEYS[0], "text": "a"}] * 2, f"holds two answers for the key {KEYS[0]}"),
        (DescriptionStore, [{"file_path": "a.jpg"}], "the row at byte 0 lacks the strings file_path and status"),
        (DescriptionStore, [{"file_path": "a.jpg", "status": "ok"}] * 2, "has more than one record of a.jpg"),
    ],
)
def test_rows_of_another_form(tmp_path, store, rows, text):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=text):
        store(tmp_path / "rows.jsonl")


def test_records_know_which_images_are_done(tmp_path):
    records = DescriptionStore(tmp_path / "descriptions.jsonl")
    records.add({"file_path": "a.jpg", "status": "ok"})
    records.add({"file_path": "b.jpg", "status": "rejected"})
    records.lines.close()
    again = DescriptionStore(tmp_path / "descriptions.jsonl")
    assert again.file_paths == {"a.jpg", "b.jpg"}
    again.lines.close()
