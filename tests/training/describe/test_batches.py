"""`describe export-requests` and `import-answers`: the texts of the live path, and nothing paid for twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.pipeline.fake_openai import Call
from tests.support import contents
from tests.support.files.batch_service import (
    MODEL,
    answered,
    command,
    expired,
    good,
    refused,
    requests_of,
    run_batch,
    write,
)
from tests.support.generated_texts import lines, paths_of
from training.describe import __main__ as entry
from training.describe.batches import request_files
from training.utils import cli


def by_image(path: Path) -> list[dict[str, Any]]:
    return sorted(lines(path), key=lambda row: row["file_path"])


def test_a_batch_makes_the_files_of_the_live_path(tmp_path, server, pedes, capsys):
    out = tmp_path / "batch"
    command("export-requests", pedes, out, "--price-in", "2", "--price-out", "8")
    told = capsys.readouterr()
    assert told.out.split() == [str(out / "requests-0001.jsonl")]
    assert "24 requests in 1 files" in told.err and ", about 0.07 to pay" in told.err
    rows = requests_of(out)
    assert {tuple(row) for row in rows} == {("custom_id", "method", "url", "body")}
    assert {(row["method"], row["url"]) for row in rows} == {("POST", "/v1/chat/completions")}
    assert all(len(row["custom_id"]) == 64 for row in rows) and rows[0]["body"]["model"] == "fake"
    command("import-answers", pedes, out, "--answers", run_batch(out, tmp_path / "results.jsonl"))
    told = capsys.readouterr()
    assert told.out.strip() == str(out / "descriptions.jsonl") and "24 answers stored, 0 stored before" in told.err
    live = tmp_path / "live"
    words = ["generate", "cuhk-pedes", str(pedes), "--out", str(live), *MODEL, "--yes"]
    assert cli.run(entry.main, [*words, "--base-url", f"http://127.0.0.1:{server.port}/v1"]) == 0
    assert by_image(out / "descriptions.jsonl") == by_image(live / "descriptions.jsonl")
    assert (out / "generation.json").read_bytes() == (live / "generation.json").read_bytes()
    ledgers = [
        sorted(({k: v for k, v in row.items() if k != "seconds"} for row in lines(f / "answers.jsonl")), key=str)
        for f in (out, live)
    ]
    assert ledgers[0] == ledgers[1]
    # The live path goes on where a batch ended, and has nothing left to ask.
    before = server.requests
    assert (
        cli.run(entry.main, [*words[:4], str(out), *words[5:], "--base-url", f"http://127.0.0.1:{server.port}/v1"]) == 0
    )
    assert server.requests == before


def test_what_is_awaited_is_not_written_again(tmp_path, pedes, capsys):
    out = tmp_path / "out"
    command("export-requests", pedes, out, "--limit", "4")
    command("export-requests", pedes, out)
    first, second = (lines(out / f"requests-000{i}.jsonl") for i in (1, 2))
    keys = [row["custom_id"] for row in first + second]
    assert (len(first), len(second), len(set(keys))) == (8, 16, 24)
    assert "8 requests of earlier files have no answer yet; --lost writes them again" in capsys.readouterr().err
    command("export-requests", pedes, out)
    assert capsys.readouterr().out == "" and not (out / "requests-0003.jsonl").exists()
    # The second batch alone, then the first in two parts of which one is read twice.
    command("import-answers", pedes, out, "--answers", write(tmp_path / "b", [good(row) for row in second]))
    assert len(lines(out / "descriptions.jsonl")) == 8
    parts = [write(tmp_path / f"a{i}", [good(row) for row in first[i::2]]) for i in (0, 1)]
    command("import-answers", pedes, out, "--answers", *parts, parts[0])
    assert "8 answers stored, 4 stored before" in capsys.readouterr().err
    assert {row["file_path"] for row in lines(out / "descriptions.jsonl")} == paths_of(pedes, "train")
    before = contents(out)
    command("export-requests", pedes, out)
    command("import-answers", pedes, out, "--answers", *parts)
    assert contents(out) == before


def test_texts_that_fail_a_check_are_requested_again_hotter(tmp_path, pedes):
    out = tmp_path / "out"
    command("export-requests", pedes, out, "--attempts", "2")
    first = requests_of(out)

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        kind = Call.of(row["body"]).kind
        return answered(row, "refusal" if kind == "identity" and row["custom_id"] in chosen else "good")

    chosen = {row["custom_id"] for row in first[:6]}
    names = ["--attempts", "2"]
    command("import-answers", pedes, out, *names, "--answers", run_batch(out, tmp_path / "r1", answer))
    refused_texts = sum(Call.of(row["body"]).kind == "identity" for row in first[:6])
    assert len(lines(out / "descriptions.jsonl")) == 12 - refused_texts
    command("export-requests", pedes, out, *names)
    again = lines(out / "requests-0002.jsonl")
    assert {row["body"]["temperature"] for row in again} == {0.85} and {row["body"]["seed"] for row in again} == {1}
    assert {Call.of(row["body"]).kind for row in again} == {"identity"} and len(again) == 3
    stubborn = run_batch(out, tmp_path / "r2", lambda row: answered(row, "refusal"))
    command("import-answers", pedes, out, *names, "--answers", stubborn)
    rows = lines(out / "descriptions.jsonl")
    assert sorted(row["status"] for row in rows) == ["ok"] * 9 + ["rejected"] * 3
    assert {row["reason"] for row in rows if row["status"] == "rejected"} == {"identity.answer"}
    assert {row["attempts"]["identity"] for row in rows if row["status"] == "rejected"} == {2}


UNANSWERED = {
    "expired": (expired, "24 without an answer: batch_expired: This request could not be executed"),
    "server error": (refused(500, "oh"), "24 without an answer: HTTP 500: oh"),
    "wrong model": (refused(404, "no such model"), "24 without an answer: HTTP 404: no such model"),
    "field": (refused(400, "max_tokens is not supported"), "HTTP 400: max_tokens is not supported"),
}


@pytest.mark.parametrize(("answer", "told"), UNANSWERED.values(), ids=UNANSWERED)
def test_requests_without_an_answer_are_written_again(answer, told, tmp_path, pedes, capsys):
    out = tmp_path / "out"
    command("export-requests", pedes, out)
    command("import-answers", pedes, out, "--answers", run_batch(out, tmp_path / "r", answer))
    shown = capsys.readouterr().err
    assert told in shown and "0 answers stored" in shown and lines(out / "descriptions.jsonl") == []
    command("export-requests", pedes, out, "--without", "max_tokens", "seed")
    first, second = (lines(out / f"requests-000{i}.jsonl") for i in (1, 2))
    assert {row["custom_id"] for row in first} == {row["custom_id"] for row in second}
    assert "max_completion_tokens" in second[0]["body"] and {"seed", "max_tokens"} & second[0]["body"].keys() == set()


def test_a_refused_request_fails_its_image_until_again(tmp_path, pedes, capsys):
    out = tmp_path / "out"
    command("export-requests", pedes, out)
    target = requests_of(out)[0]["custom_id"]
    refuse = refused(400, "the image is not allowed")

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        return refuse(row) if row["custom_id"] == target else good(row)

    command("import-answers", pedes, out, "--answers", run_batch(out, tmp_path / "r", answer))
    (failed,) = [row for row in lines(out / "descriptions.jsonl") if row["status"] != "ok"]
    assert (failed["status"], failed["reason"]) == ("failed", "no answer: HTTP 400: the image is not allowed")
    assert "23 answers stored, 0 stored before, 1 requests failed" in capsys.readouterr().err
    command("export-requests", pedes, out)
    assert not (out / "requests-0002.jsonl").exists()
    command("export-requests", pedes, out, "--again")
    assert [row["custom_id"] for row in lines(out / "requests-0002.jsonl")] == [target]
    # Written again on request, though awaited: a batch that was cancelled. Its answer counts in whichever file it comes.
    command("export-requests", pedes, out, "--lost")
    assert [row["custom_id"] for row in lines(out / "requests-0003.jsonl")] == [target]
    command("import-answers", pedes, out, "--answers", run_batch(out, tmp_path / "r3"))
    assert {row["status"] for row in lines(out / "descriptions.jsonl")} == {"ok"}


def test_files_are_split_by_requests_and_by_size(tmp_path, pedes):
    command("export-requests", pedes, tmp_path / "a", "--file-requests", "10")
    assert [len(lines(path)) for path in sorted((tmp_path / "a").glob("requests-*"))] == [10, 10, 4]
    command("export-requests", pedes, tmp_path / "b", "--file-mb", "0.03")
    sizes = [path.stat().st_size for path in sorted((tmp_path / "b").glob("requests-*"))]
    assert len(sizes) > 2 and max(sizes) <= 30_000
    assert {row["custom_id"] for row in requests_of(tmp_path / "a")} == {
        r["custom_id"] for r in requests_of(tmp_path / "b")
    }
    command("export-requests", pedes, tmp_path / "c", "--file-mb", "0.001")
    rows = lines(tmp_path / "c/descriptions.jsonl")
    assert len(rows) == 12 and "bytes, a file at most 1,000" in rows[0]["reason"]


def test_the_budget_counts_what_is_awaited(tmp_path, pedes, capsys):
    out, prices = tmp_path / "out", ("--price-in", "1000", "--max-cost", "15")
    # 1,500 tokens a call at first: 1.5 each.
    command("export-requests", pedes, out, *prices)
    assert len(requests_of(out)) == 10 and "the budget is spent" in capsys.readouterr().err
    command("export-requests", pedes, out, *prices)
    assert len(requests_of(out)) == 10
    command("import-answers", pedes, out, "--answers", run_batch(out, tmp_path / "r"))
    # 800 tokens a call: 8.0 paid, room for 8 more.
    command("export-requests", pedes, out, *prices)
    assert len(requests_of(out)) == 18
    command("export-requests", pedes, out, "--max-requests", "3")
    assert len(requests_of(out)) == 21


def test_a_killed_export_loses_and_repeats_nothing(tmp_path, pedes, monkeypatch):
    out, replace = tmp_path / "out", request_files.os.replace

    def killed(source: Path, target: Path) -> None:
        if "requests-" in str(source):
            raise KeyboardInterrupt
        replace(source, target)

    # Between the record and the renaming.
    monkeypatch.setattr(request_files.os, "replace", killed)
    command("export-requests", pedes, out, "--limit", "4", status=130)
    monkeypatch.setattr(request_files.os, "replace", replace)
    assert [p.name for p in out.iterdir() if "requests-" in p.name] == [".requests-0001.jsonl.tmp"]
    command("export-requests", pedes, out)
    assert [len(lines(out / f"requests-000{i}.jsonl")) for i in (1, 2)] == [8, 16]
    assert len({row["custom_id"] for row in requests_of(out)}) == 24
    # In the middle of a file: nothing of it is kept, and all of it is written later.
    add = request_files.RequestFiles.add

    def interrupted(self: Any, *arguments: Any) -> None:
        if self.count == 5:
            raise KeyboardInterrupt
        add(self, *arguments)

    monkeypatch.setattr(request_files.RequestFiles, "add", interrupted)
    command("export-requests", pedes, tmp_path / "b", status=130)
    monkeypatch.setattr(request_files.RequestFiles, "add", add)
    assert [p.name for p in (tmp_path / "b").iterdir() if "requests-" in p.name] == []
    (tmp_path / "b/.requests-0001.jsonl.tmp").write_text("left by a kill")
    command("export-requests", pedes, tmp_path / "b")
    assert len(requests_of(tmp_path / "b")) == 24
