"""`python -m training`: lists the commands and runs them; every --help answers before anything heavy is imported."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support import ROOT
from training import __main__ as front_door
from training import evaluate, gallery, prepare
from training.describe import __main__ as describe
from training.utils import cli

# Types of options that bring their words.
SELF_EXPLAINED = ("Device", "DataRoot", "ConfigFile")
HEAVY = ("torch", "transformers", "sklearn", "scipy", "matplotlib")
# Prints what --help of each line's command printed, and what it has imported.
HELPS = """
import contextlib, io, json, sys
from training.__main__ import main
for line in sys.stdin:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main([*line.split(), "--help"])
            status = 0
        except SystemExit as stop:
            status = stop.code
    print(json.dumps([status, out.getvalue(), [name for name in %r if name in sys.modules]]))
"""


def commands() -> list[str]:
    """Every command and sub-command."""
    below = {"describe": [*describe.COMMANDS], "prepare": [kind.__name__.lower() for kind in prepare.COMMANDS]}
    below |= {"gallery": [kind.__name__.lower() for kind in gallery.COMMANDS]}
    return [f"{name} {sub}".strip() for name in front_door.COMMANDS for sub in ("", *below.get(name, []))] + [
        "train synthetic",
        "experiment table1",
    ]


def test_every_help_answers_without_heavy_imports() -> None:
    process = subprocess.run(
        [sys.executable, "-c", HELPS % (HEAVY,)],
        input="\n".join(commands()),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = dict(zip(commands(), map(json.loads, process.stdout.splitlines()), strict=True))
    assert {command: imported for command, (_, _, imported) in answers.items() if imported} == {}
    assert {status for status, _, _ in answers.values()} == {0}
    for command, (_, text, _) in answers.items():
        assert text.startswith("usage: python -m training." + command.split()[0]), command
    assert "--optim.epochs INT" in answers["train synthetic"][1] and "--optim.epochs" in answers["train"][1]


def test_every_option_has_words_of_its_own() -> None:
    """Without a comment of its own an option or a group shows the one above it. Types that bring the words need none."""
    silent = []
    for path, part in option_classes():
        lines = path.read_text(encoding="utf-8").splitlines()
        silent += [
            f"{path.name} {part.name}.{ast.unparse(field.target)}"
            for field in part.body
            if isinstance(field, ast.AnnAssign)
            and "ClassVar" not in (words := ast.unparse(field))
            and "help=" not in words
            and ast.unparse(field.annotation) not in SELF_EXPLAINED
            and not lines[field.lineno - 2].lstrip().startswith("#")
        ]
    assert silent == []


def option_classes() -> list[tuple[Path, ast.ClassDef]]:
    """Dataclasses of options: the commands' own, Config, and all that their fields and bases name, however deep."""
    classes = dict[tuple[Path, str], ast.ClassDef]()
    homes = dict[tuple[Path, str], Path]()
    for path in sorted([*ROOT.glob("bench/**/*.py"), *ROOT.glob("training/**/*.py")]):
        for part in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(part, ast.ClassDef) and any("dataclass" in ast.unparse(x) for x in part.decorator_list):
                classes[path, part.name] = part
            elif isinstance(part, ast.ImportFrom) and part.module:
                home = ROOT / (part.module.replace(".", "/") + ".py")
                homes |= {(path, alias.name): home for alias in part.names}
    # Results and other records of the same modules are no options.
    several = [ROOT / "training" / name for name in ("gallery.py", "prepare.py")]
    waiting = [key for key in classes if key[1] in ("Arguments", "Config") or key[0] in several]
    found = dict[tuple[Path, str], ast.ClassDef]()
    while waiting:
        path, name = waiting.pop()
        key = (homes.get((path, name), path), name)
        if key in classes and key not in found:
            found[key] = part = classes[key]
            parts = [*part.bases, *(field.annotation for field in part.body if isinstance(field, ast.AnnAssign))]
            waiting += [(key[0], x.id) for tree in parts for x in ast.walk(tree) if isinstance(x, ast.Name)]
    return [(path, part) for (path, _), part in found.items()]


@pytest.mark.parametrize("recipe", ["synthetic", "cuhk-pedes"])
def test_no_two_fields_of_a_recipe_have_the_same_help(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(front_door.main, ["train", recipe, "--help"])
    fields = capsys.readouterr().out.partition("Complete configuration of a run")[2]
    words = re.sub(r"[│─╭╮╰╯]+", " ", fields)
    # An encoder is configured twice, once for images and once for texts.
    words = words.partition("model.text options")[0] + words.partition("model.bdam options")[2]
    texts = re.findall(r"^ +--[a-z].*?\n((?: .*\n)*?.*)\(default:", words, re.MULTILINE)
    helps = [" ".join(text.split()) for text in texts]
    assert len(helps) > 80 and [text for text, count in Counter(helps).items() if count > 1 or not text] == []


def test_commands_are_listed_with_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert cli.run(front_door.main, argv) == 0
        lines = capsys.readouterr().out.splitlines()
        for name, (_, summary) in front_door.COMMANDS.items():
            assert [line.split(maxsplit=1) for line in lines].count([name, summary]) == 1
    on_top = {path.stem for path in (ROOT / "training").glob("*.py")} - {"__init__", "__main__"}
    packages = {path.parent.name for path in (ROOT / "training").glob("*/__main__.py")}
    assert {*front_door.COMMANDS} == on_top | packages


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(front_door.main, ["trian", "synthetic"]) == 2
    names = ", ".join(front_door.COMMANDS)
    assert capsys.readouterr().err == f"error: unknown command 'trian', expected one of {names}\n"


def test_a_command_is_run_with_its_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = []
    for main, words in ((front_door.main, ["evaluate"]), (evaluate.main, [])):
        ends.append((cli.run(main, [*words, str(tmp_path)]), capsys.readouterr()))
    assert ends[0] == ends[1] and ends[0][0] == 2 and "holds no trained model" in ends[0][1].err


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["report", "run", "--mark", "x"], ["search", "run", "text", "--gal", "test"]):
        with pytest.raises(SystemExit) as stop:
            cli.run(front_door.main, words)
        assert stop.value.code == 2 and words[-2] in capsys.readouterr().err
