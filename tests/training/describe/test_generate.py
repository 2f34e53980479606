"""`python -m training.describe generate`: what it writes, refuses and asks, alone and with a server."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support import ROOT, contents
from tests.support.fake_provider import KEY, BackgroundServer
from tests.support.generated_texts import lines, paths_of, write_styles
from tests.support.pretrained.tiny_vlm import save_tiny_vlm
from training.config import DataConfig
from training.data.datasets import read_dataset
from training.describe import __main__ as entry
from training.describe import generate as command
from training.describe import text_generation
from training.describe.llm.client import Service
from training.describe.llm.limits import Budget
from training.describe.options import confirm
from training.describe.session import PILOT_SIZE
from training.synthetic.dataset import generate as render
from training.utils import cli


def run(server: BackgroundServer | None, root: Path, out: Path, *words: str, status: int = 0) -> None:
    """The command as `python -m training.describe` would run it, and its exit status."""
    options = ["generate", "cuhk-pedes", str(root), "--out", str(out), *words]
    if server is not None:
        url = f"http://127.0.0.1:{server.port}/v1"
        options += ["--model", "fake", "--base-url", url, "--first-wait", "0.01", "--longest-wait", "0.02"]
    assert cli.run(entry.main, options) == status


def test_texts_of_a_synthetic_set_train_a_model(tmp_path, capsys):
    render(tmp_path / "set", 6, height=160, width=64)
    styles, out = write_styles(tmp_path / "styles", tmp_path / "set"), tmp_path / "out"
    run(None, tmp_path / "set", out, "--provider", "template", "--styles", str(styles))
    assert capsys.readouterr().out.strip() == str(out / "descriptions.jsonl")
    rows = {row["file_path"]: row for row in lines(out / "descriptions.jsonl")}
    assert set(rows) == paths_of(tmp_path / "set", "train")
    assert {row["status"] for row in rows.values()} == {"ok"}
    for number, path in enumerate(sorted(rows)):
        assert rows[path]["style"] == number % 2
        # The writers follow the examples: no verb in one style, the same opening of all sentences in the other.
        assert ("is wearing" in rows[path]["clothing"]) == (number % 2 == 1)
    dataset = read_dataset(DataConfig(root=str(tmp_path / "set"), descriptions=str(out / "descriptions.jsonl")))
    assert all(rows[r.file_path]["identity"] == r.identity for r in dataset.splits["train"])
    before = contents(out)
    run(None, tmp_path / "set", out, "--provider", "template", "--styles", str(styles))
    assert contents(out) == before


def test_gallery_texts_go_to_a_file_of_their_own(tmp_path, server, pedes):
    run(server, pedes, tmp_path / "out", "--yes")
    trained = (tmp_path / "out/descriptions.jsonl").read_bytes()
    assert {row["file_path"] for row in lines(tmp_path / "out/descriptions.jsonl")} == paths_of(pedes, "train")
    for split in ("val", "test"):
        run(server, pedes, tmp_path / "out", "--yes", "--split", split, "--for-gallery")
        assert {row["file_path"] for row in lines(tmp_path / f"out/gallery-{split}.jsonl")} == paths_of(pedes, split)
    assert (tmp_path / "out/descriptions.jsonl").read_bytes() == trained


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"split": "test"}, "no text is generated from images of the test split, which holds queries; --for-gallery"),
        ({"split": "val"}, "no text is generated from images of the val split"),
        ({"for_gallery": True}, "Arguments.for_gallery must be off for the train split, got True"),
        ({"model": ""}, "Arguments.model must be given for the provider openai, got ''"),
        ({"limit": -1}, "Arguments.limit must be within"),
    ],
)
def test_options_that_are_refused(tmp_path, options, text):
    source = command.Source("cuhk-pedes", tmp_path)
    with pytest.raises(ValueError, match=text):
        command.Arguments(**{"source": source, "out": tmp_path / "out", "model": "m"} | options)


def generate(server: BackgroundServer, root: Path, out: Path, confirm_spending: Any, **options: Any) -> Any:
    service = Service(f"http://127.0.0.1:{server.port}/v1", first_wait=0.01, longest_wait=0.02)
    made = command.Arguments(command.Source("cuhk-pedes", root), out, model="fake", **{"service": service} | options)
    return text_generation.generate(made, {}, Console(file=io.StringIO()), confirm_spending)


def test_the_rest_is_paid_for_with_leave_only(tmp_path, server, pedes):
    told: list[str] = []
    budget = Budget(price_in=2.5, price_out=10.0)
    result = generate(server, pedes, tmp_path, lambda text: bool(told.append(text)), budget=budget)
    assert result.stop_reason == "stopped at your request" and result.remaining == 12 - PILOT_SIZE == 7
    assert result.statuses == {"ok": PILOT_SIZE} and server.requests == 2 * PILOT_SIZE
    # 14 calls of 800 and 40 tokens.
    expected = "7 images in about 14 calls, 0.01 million input and 0.00 million output tokens, a cost of 0.03, 0 s."
    assert told == [expected]
    # What is known from then on is not tried out again; --yes does not ask.
    result = generate(server, pedes, tmp_path, None, yes=True, limit=4)
    assert (result.remaining, result.stop_reason, server.requests) == (3, "", 2 * 9)
    result = generate(server, pedes, tmp_path, lambda text: True)
    assert result.remaining == 0 and server.requests == 2 * 12


def test_without_a_terminal_nobody_is_asked(tmp_path, server, pedes, capsys):
    run(server, pedes, tmp_path / "out", status=2)
    assert "There is no terminal to confirm on; --yes continues without confirmation" in capsys.readouterr().err
    assert len(lines(tmp_path / "out/descriptions.jsonl")) == PILOT_SIZE


@pytest.mark.parametrize(("said", "goes_on"), [("y", True), ("Yes ", True), ("", False), ("no", False)])
def test_on_a_terminal_the_user_is_asked(monkeypatch, said, goes_on):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: said)
    assert confirm("It costs 3.") is goes_on


def test_a_budget_of_requests_and_going_on(tmp_path, server, pedes, capsys):
    run(server, pedes, tmp_path / "out", "--yes", "--max-requests", "15", "--concurrency", "2")
    told = capsys.readouterr().err
    assert (
        "the budget of 15 requests is spent; run the same command to continue with the" in told
        and server.requests == 15
    )
    run(server, pedes, tmp_path / "out", "--yes")
    assert len(lines(tmp_path / "out/descriptions.jsonl")) == 12 and server.requests == 24


def test_texts_of_two_settings_do_not_mix(tmp_path, server, pedes, capsys):
    run(server, pedes, tmp_path / "out", "--yes")
    before = contents(tmp_path / "out")
    run(server, pedes, tmp_path / "out", "--yes", "--temperature", "0.1", status=2)
    assert "holds texts with different settings: params {" in capsys.readouterr().err
    run(server, pedes, tmp_path / "out", "--yes", "--leave-out", "skin", status=2)
    assert "holds texts with different settings: texts {" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_a_mistyped_model_can_be_corrected(tmp_path, server, pedes, capsys):
    server.behaviour.faults, server.behaviour.kinds, server.behaviour.status = 1.0, ("refused",), 404
    run(server, pedes, tmp_path / "out", "--yes", "--temperature", "0.1", status=2)
    assert "check base_url, model and key_variable" in capsys.readouterr().err
    server.behaviour.faults = 0.0
    run(server, pedes, tmp_path / "out", "--yes")
    assert {row["params"]["temperature"] for row in lines(tmp_path / "out/descriptions.jsonl")} == {0.7}
    assert '"temperature": 0.7' in (tmp_path / "out/generation.json").read_text()


def test_rejected_images_are_tried_again_with_more_attempts(tmp_path, server, pedes, capsys):
    server.behaviour.faults, server.behaviour.kinds = 1.0, ("words",)
    run(server, pedes, tmp_path / "out", "--yes", "--attempts", "1")
    assert "identity.answer, clothing.answer" in capsys.readouterr().err
    assert {row["status"] for row in lines(tmp_path / "out/descriptions.jsonl")} == {"rejected"}
    server.behaviour.faults = 0.0
    run(server, pedes, tmp_path / "out", "--yes", "--attempts", "2")
    assert server.requests == 24
    run(server, pedes, tmp_path / "out", "--yes", "--attempts", "2", "--again")
    assert "12 images are retried" in capsys.readouterr().err
    rows = lines(tmp_path / "out/descriptions.jsonl")
    assert len(rows) == 12 and {row["status"] for row in rows} == {"ok"}
    # The first answers are stored: only the second ones were asked for.
    assert server.requests == 48 and {row["attempts"]["identity"] for row in rows} == {2}


def test_a_server_that_refuses_is_one_clear_error(tmp_path, server, pedes, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    server.behaviour.faults, server.behaviour.kinds = 1.0, ("refused",)
    run(server, pedes, tmp_path / "out", "--yes", "--key-variable", "MY_KEY", status=2)
    captured = capsys.readouterr()
    assert "refuses every request (HTTP 401: Incorrect key provided: Bearer [key])" in captured.err
    assert captured.err.count("\n") == 1 and server.requests < 12
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert KEY not in captured.err + captured.out + written
    assert (tmp_path / "out/descriptions.jsonl").read_text() == ""


def test_ctrl_c_loses_nothing_that_was_answered(tmp_path, server, pedes):
    # Where the tests run in the background of a shell, they and their children ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupt_generation(tmp_path, server, pedes)
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt_generation(tmp_path, server, pedes):
    # All calls would take ten times as long as those that are waited for.
    server.behaviour.seconds = 1.0
    words = (
        f"generate cuhk-pedes {pedes} --out {tmp_path / 'out'} --yes --model fake --concurrency 2 --base-url".split()
    )
    words.append(f"http://127.0.0.1:{server.port}/v1")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "training.describe", *words]
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while server.requests < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.wait(30) == 130 and process.stderr.read() == "interrupted\n"
    stored, asked = len(lines(tmp_path / "out/answers.jsonl")), server.requests
    assert asked - 2 <= stored < 24
    server.behaviour.seconds = 0.001
    run(server, pedes, tmp_path / "out", "--yes")
    assert server.requests - asked == 24 - stored
    assert len(lines(tmp_path / "out/descriptions.jsonl")) == 12


def test_a_local_model_goes_the_same_way(tmp_path, pedes):
    model = save_tiny_vlm(tmp_path / "model")
    run(None, pedes, tmp_path / "out", *f"--provider transformers --model {model} --limit 2 --max-tokens 16".split())
    rows = lines(tmp_path / "out/descriptions.jsonl")
    # Random weights say nothing that is any good, which is noticed.
    assert [row["status"] for row in rows] == ["rejected"] * 2 and len(lines(tmp_path / "out/answers.jsonl")) == 12


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "factors.jsonl: the provider template describes synthetic sets only"),
        ("", "factors.jsonl has no factors of train/0001_0.jpg, .* .12 in all."),
        ('{"file_path": "train/0001_0.jpg"}\n', "factors.jsonl, line 1 must be an object with the fields file_path"),
        ("{\n", "factors.jsonl, line 1 is not valid JSON: "),
    ],
)
def test_factors_that_cannot_be_read(tmp_path, pedes, capsys, content, text):
    import re

    if content is not None:
        (pedes / "factors.jsonl").write_text(content)
    run(None, pedes, tmp_path / "out", "--provider", "template", status=2)
    assert re.search(text, capsys.readouterr().err) and not (tmp_path / "out").exists()


def test_commands_of_the_package(capsys):
    assert cli.run(entry.main, ["nothing"]) == 2
    assert "unknown command 'nothing', expected one of " in (error := capsys.readouterr().err)
    assert "styles, generate, export-requests, import-answers, check, page" in error
    for argv in (["--help"], []):
        entry.main(argv)
        assert "generates two texts" in capsys.readouterr().out
