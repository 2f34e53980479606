"""Rules of the pages that people read, as functions of a checkout: each returns what breaks it, one line each."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from tests.support.house import layout

README_LINES = 150
INDEX = Path("docs/index.md")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
FOLDERS = "bdam_fast|bench|csrc|docs|tests|training"
# Names as they stand in text and in commands: paths below a folder of the repository, and modules by their dotted names.
PATH = re.compile(rf"(?<![\w./~-])(?:{FOLDERS}|\.github|\.ci)/[\w./<>*-]*[\w/>*]")
MODULE = re.compile(r"(?<![\w./-])(?:bench|tests|training)(?:\.(?!md\b)\w+)+(?![\w/])")
TARGET = re.compile(r"(?:^|`)make ([\w-]+)", re.M)


def pages(root: Path) -> list[Path]:
    """README, CONTRIBUTING and the pages of docs/, relative to the checkout."""
    top = [Path(name) for name in ("README.md", "CONTRIBUTING.md") if (root / name).exists()]
    return top + layout.files(root, "docs", (".md",))


def python_blocks(text: str) -> list[str]:
    """The fenced blocks of Python in a page."""
    return [code for language, code in FENCE.findall(text) if language == "python"]


def long_readme(root: Path) -> list[str]:
    """The README, where it has more lines than somebody reads before trying."""
    lines = (root / "README.md").read_text().count("\n")
    return [f"README.md: {lines} lines, at most {README_LINES}"] if lines > README_LINES else []


def unlisted_pages(root: Path) -> list[str]:
    """Pages of docs/ that the index does not link to, on a line of their own."""
    lines = (root / INDEX).read_text().splitlines()
    listed = [link[1] for line in lines if line.startswith("* ") and (link := LINK.search(line))]
    return [
        f"{p}: not in {INDEX}" for p in pages(root) if p.parent == INDEX.parent and p != INDEX and p.name not in listed
    ]


def unlinked_index(root: Path) -> list[str]:
    """The index, where the README does not lead to it."""
    return [] if f"({INDEX})" in (root / "README.md").read_text() else [f"README.md has no link to {INDEX}"]


def broken_links(root: Path) -> list[str]:
    """Relative links to files or headings that do not exist."""
    wrong = []
    for page, text in _texts(root):
        for target in LINK.findall(FENCE.sub("", text)):
            name, _, anchor = target.partition("#")
            file = (root / page.parent / name) if name else root / page
            if re.match(r"\w+:", target):
                continue
            if not file.exists():
                wrong.append(f"{page}: {target}: no such file")
            elif anchor and anchor not in _anchors(file):
                wrong.append(f"{page}: {target}: no such heading")
    return wrong


def unknown_paths(root: Path) -> list[str]:
    """Paths below a folder of the repository that name nothing; `<op>` and `*` stand for anything."""
    wrong = []
    for page, text in _texts(root):
        for path in PATH.findall(LINK.sub("", text)):
            pattern = re.sub(r"<\w+>", "*", path).rstrip("/")
            if not any(root.glob(pattern)):
                wrong.append(f"{page}: {path}")
    return wrong


def unknown_modules(root: Path) -> list[str]:
    """Dotted names below training, bench or tests that are neither a module nor a name in one."""
    return [f"{page}: {name}" for page, text in _texts(root) for name in MODULE.findall(text) if not _named(root, name)]


def unknown_targets(root: Path) -> list[str]:
    """`make TARGET` of a target that the Makefile does not have."""
    targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.M))
    return [
        f"{page}: make {name}" for page, text in _texts(root) for name in TARGET.findall(text) if name not in targets
    ]


def _texts(root: Path) -> Iterator[tuple[Path, str]]:
    for page in pages(root):
        yield page, (root / page).read_text()


@cache
def _anchors(file: Path) -> set[str]:
    """The headings of a page as GitHub names them in links."""
    if file.suffix != ".md":
        return set()
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def _named(root: Path, name: str) -> bool:
    """Existence of a module, or of a module that defines or imports the last part of the name."""
    module, _, last = name.rpartition(".")
    if _source(root, name):
        return True
    source = _source(root, module)
    return source is not None and last in _defined(source)


def _source(root: Path, module: str) -> Path | None:
    base = root / module.replace(".", "/")
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


@cache
def _defined(source: Path) -> set[str]:
    """The names that a module defines or imports on its top level."""
    names: set[str] = set()
    for node in layout.tree(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


RULES: list[Callable[[Path], list[str]]] = [
    long_readme,
    unlisted_pages,
    unlinked_index,
    broken_links,
    unknown_paths,
    unknown_modules,
    unknown_targets,
]
