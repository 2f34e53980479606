"""Every error text that the package or the pipeline can raise is expected by some test."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

RAISING = sorted(p for folder in ("bdam_fast", "training") for p in (ROOT / folder).rglob("*.py"))
# So many equal characters in a row are taken as "this test expects that text".
SHARED = 12


def constants(node: ast.AST) -> list[str]:
    """The literal pieces of a string expression, f-strings and concatenations included."""
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


@cache
def expected_texts() -> str:
    """All string constants of the tests, regular-expression escapes removed."""
    texts = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        texts += constants(ast.parse(path.read_text()))
    return "\n".join(re.sub(r"\\(.)", r"\1", text) for text in texts)


def raised(path: Path) -> list[tuple[int, list[str]]]:
    """Line and literal pieces of every `raise Error(...)` in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            pieces = [piece for argument in node.exc.args for piece in constants(argument)]
            if any(len(piece.strip()) >= SHARED for piece in pieces):
                found.append((node.lineno, pieces))
    return found


def is_expected(pieces: list[str], texts: str) -> bool:
    windows = (p[i : i + SHARED] for p in pieces for i in range(len(p) - SHARED + 1))
    return any(window.strip() and window in texts for window in windows)


@pytest.mark.parametrize("path", RAISING, ids=lambda p: str(p.relative_to(ROOT)))
def test_error_texts_are_tested(path):
    texts = expected_texts()
    missing = [f"line {line}: {''.join(pieces)!r}" for line, pieces in raised(path) if not is_expected(pieces, texts)]
    assert missing == []


def test_the_check_can_fail():
    pieces = ["this sentence was never ", "expected by anybody"[::-1]]
    assert not is_expected([pieces[1]], expected_texts())
