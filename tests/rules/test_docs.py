"""The pages that people read: length, links, names of files, modules and targets, and code that runs. Each rule is shown a
tree that breaks it."""

import csv
import re
from pathlib import Path

import pytest

import bdam_fast
from tests.support import ROOT
from tests.support.house import pages

# A small checkout in which every rule holds, and the files by which each rule is broken.
SOUND = {
    "README.md": "[pages](docs/index.md), [a part](docs/a.md#two-words)\n\n```\nmake test\npython -m training.train\n```\n",
    "docs/index.md": "# Pages\n\n* [a.md](a.md): a page\n",
    "docs/a.md": "# A\n\n## Two words\n\n`training.train.main` in `csrc/<op>/<op>.h`, [the README](../README.md)\n",
    "training/train.py": "def main():\n    pass\n",
    "training/__init__.py": "",
    "csrc/scan/scan.h": "",
    "Makefile": "test: build\n",
}
BROKEN = {
    pages.long_readme: {"README.md": "[pages](docs/index.md)" + "\n" * 151},
    pages.unlisted_pages: {"docs/b.md": ""},
    pages.unlinked_index: {"README.md": ""},
    pages.broken_links: {
        "docs/a.md": "## Two words\n[no file](b.md) [no heading](a.md#three) [a heading](#two-words)\n"
    },
    pages.unknown_paths: {"docs/a.md": "## Two words\n`training/evaluator.py`, csrc/<op>/<op>.cu\n"},
    pages.unknown_modules: {"docs/a.md": "## Two words\n`training.evaluator`, python -m training.train.other\n"},
    pages.unknown_targets: {"docs/a.md": "## Two words\n`make demo`\n\n```\nmake gpu\n```\n"},
}


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("rule", pages.RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule):
    assert rule(ROOT) == []


@pytest.mark.parametrize("rule", pages.RULES, ids=lambda rule: rule.__name__)
def test_rule_can_fail(rule, tmp_path: Path):
    plant(tmp_path / "sound", SOUND)
    assert rule(tmp_path / "sound") == []
    plant(tmp_path / "broken", SOUND | BROKEN[rule])
    several = (pages.broken_links, pages.unknown_paths, pages.unknown_modules, pages.unknown_targets)
    assert len(rule(tmp_path / "broken")) == (2 if rule in several else 1)


@pytest.mark.parametrize("page", ["README.md", "docs/operators.md"])
def test_python_of_a_page_runs_as_written(page):
    blocks = pages.python_blocks((ROOT / page).read_text())
    assert blocks != []
    bdam_fast.reset_call_counts()
    try:
        names: dict[str, object] = {}
        for block in blocks:
            exec(compile(block, page, "exec"), names)
    finally:
        bdam_fast.compat.unpatch_transformers()
    assert bdam_fast.call_counts()["selective_scan.cpu.forward"] > 0


def test_readme_names_the_two_commands():
    assert re.search(r"^make demo .*\nmake test .*$", (ROOT / "README.md").read_text(), re.M)


def test_the_first_number_of_the_readme_was_measured():
    """The speed in bold is in a committed row of the benchmark, with the times beside it."""
    text = (ROOT / "README.md").read_text()
    claim = re.search(r"\*\*trains (\d+) times as fast on a CPU\*\*: .* takes ([\d.]+) s instead\s+of ([\d.]+) s", text)
    assert claim is not None
    rows = [row for path in (ROOT / "bench/results").glob("*.csv") for row in csv.DictReader(path.open())]
    measured = [
        (f"{float(row['times_ours']):.0f}", f"{float(row['median_ms']) / 1000:.1f}")
        for row in rows
        if (row["op"], row["direction"], row["variant"]) == ("transformers", "forward+backward", "unpatched")
        and row["median_ms"]
    ]
    assert (claim[1], claim[3]) in measured
    assert f"{float(claim[3]) / float(claim[2]):.0f}" == claim[1]


def test_one_version_everywhere():
    assert f'\nversion = "{bdam_fast.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {bdam_fast.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {bdam_fast.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_ci_runs_the_commands_of_the_readme():
    workflow = (ROOT / ".github/workflows/test.yml").read_text()
    assert re.findall(r"- run: (.*)", workflow) == ["make test", "make check"]
