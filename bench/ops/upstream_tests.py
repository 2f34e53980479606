"""Runs the tests of causal-conv1d and mamba_ssm on bdam_fast.compat, on a CPU: `python -m bench.ops.upstream_tests CHECKOUT…`.

Nothing of a checkout is kept: its test files are copied into a temporary folder with the device "cuda" replaced by "cpu", and
import the modules of `compat.install()`, with the package's own references (functions NAME_ref) in place of ours. Prints, for
each test function, how many passed of how many that ran, and how many there are: functions with more than `--at-most` are
sampled evenly. Exit code 1: a test failed. The tests need einops.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.harness.results import ROOT

DEVICE = re.compile(r"""(["'])cuda\1""")
# What the copied tests find. `collected` gets a line for every test function.
CONFTEST = """
import ast
import os
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import bdam_fast.compat

MOST, CHECKOUT = int(os.environ["AT_MOST"]), Path(os.environ["CHECKOUT"])


def take_references(name):
    path, module = CHECKOUT.joinpath(*name.split(".")).with_suffix(".py"), sys.modules[name]
    if not path.exists():
        return
    known = ("torch", "einops", "math", "typing")

    def kept(node):
        if isinstance(node, ast.Import):
            return node.names[0].name.partition(".")[0] in known
        if isinstance(node, ast.ImportFrom):
            return (node.module or "").partition(".")[0] in known
        return isinstance(node, ast.FunctionDef) and node.name.endswith("_ref")

    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if kept(node)]
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    # mamba_ssm's references call causal_conv1d, which is another package.
    found = vars(sys.modules["causal_conv1d"]) | vars(module)
    exec(compile(tree, path, "exec"), found)
    vars(module).update({name: found[name] for name in names})


for name in bdam_fast.compat.install(replace=True):
    take_references(name)


# After -k has chosen.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    functions = defaultdict(list)
    for item in items:
        functions[item.originalname].append(item)
    Path("collected").write_text("".join(f"{name} {len(own)}\\n" for name, own in functions.items()))
    items[:] = [
        own[i * len(own) // min(MOST, len(own))] for own in functions.values() for i in range(min(MOST, len(own)))
    ]
"""


@dataclass
class Counts:
    """Outcomes of one test function."""

    collected: int  # also those beside a sample
    outcomes: Counter[str] = field(default_factory=Counter)  # passed, failed, skipped
    reasons: Counter[str] = field(default_factory=Counter)  # of failures: the first line of the message

    def __str__(self) -> str:
        ran = self.outcomes.total() - self.outcomes["skipped"]
        text = f"{self.outcomes['passed']} of {ran} passed"
        text += f", {self.outcomes['skipped']} skipped" if self.outcomes["skipped"] else ""
        return text + (f" (a sample of {self.collected})" if self.outcomes.total() < self.collected else "")


def test_files(checkout: Path) -> list[Path]:
    """The test files of a checkout. Raises ValueError where there are none."""
    found = sorted((checkout / "tests").rglob("test_*.py"))
    if not found:
        raise ValueError(
            f"CHECKOUT {checkout} has no tests/**/test_*.py, expected a checkout of causal-conv1d or mamba"
        )
    return found


def run_file(path: Path, checkout: Path, chosen: str, at_most: int, seconds: float) -> dict[str, Counts] | str:
    """Runs a copy of a test file; the counts of its functions, or why it did not run."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "conftest.py").write_text(CONFTEST)
        (place / path.name).write_text(DEVICE.sub(r"\1cpu\1", path.read_text(encoding="utf-8")), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=results.xml", path.name]
        command += ["-k", chosen] if chosen else []
        found = os.environ | {"AT_MOST": str(at_most), "CHECKOUT": str(checkout.resolve())}
        found["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            run = subprocess.run(command, cwd=place, env=found, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"not finished in {seconds:.0f} s"
        collected = place / "collected"
        # Nothing is collected from a file that cannot be imported.
        if not collected.exists() or not collected.read_text():
            errors = re.findall(r"^E\s+(.*)$", run.stdout, re.M)
            return errors[-1] if errors else (run.stdout + run.stderr).strip()[-300:]
        lines = (line.rpartition(" ") for line in collected.read_text().splitlines())
        counts = {name: Counts(int(number)) for name, _, number in lines}
        for name, outcome, reason in results(place / "results.xml"):
            counts[name].outcomes[outcome] += 1
            counts[name].reasons.update([reason] if outcome == "failed" else [])
    return counts


def results(xml: Path) -> Iterator[tuple[str, str, str]]:
    """(function, passed, failed or skipped, first line of the message) of each test of pytest's results."""
    for case in ET.parse(xml).iter("testcase"):
        name = case.get("name", "").partition("[")[0]
        bad = next((e for e in case if e.tag in ("failure", "error")), None)
        skipped = case.find("skipped") is not None
        message = "" if bad is None else (bad.get("message") or "").partition("\n")[0][:120]
        yield name, "failed" if bad is not None else "skipped" if skipped else "passed", message


def main() -> None:
    """Prints the counts of every file."""
    parser = argparse.ArgumentParser(prog="python -m bench.ops.upstream_tests", description=__doc__)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT")
    parser.add_argument("--at-most", type=int, default=129, help="tests of a function that run")
    parser.add_argument("-k", default="", metavar="WORDS", help="only tests that pytest's -k chooses")
    parser.add_argument("--seconds", type=float, default=1800, help="time limit of a file")
    options = parser.parse_args()
    failed = 0
    try:
        files = [(checkout, path) for checkout in options.checkouts for path in test_files(checkout)]
    except ValueError as error:
        sys.exit(f"bench.ops.upstream_tests: {error}")
    for checkout, path in files:
        print(path.relative_to(checkout.parent), flush=True)
        found = run_file(path, checkout, options.k, options.at_most, options.seconds)
        if isinstance(found, str):
            print(f"  not run: {found}", flush=True)
            continue
        for name, counts in found.items():
            if counts.outcomes.total():
                print(f"  {name}: {counts}", flush=True)
            for reason, times in counts.reasons.most_common(3):
                print(f"    {times} times: {reason}", flush=True)
            failed += counts.outcomes["failed"]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
