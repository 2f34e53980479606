"""Counts the instructions of compiled CUDA kernels, an estimate of their speed without a GPU.

`python -m bench.gpu.sass FILE.cubin` prints, for each kernel, the number of instructions in one iteration of its main loop, by
kind. The disassembler comes with the package triton.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

LABEL = re.compile(r"^(\.L_x_\d+):")
SECTION = re.compile(r"^//-+ \.text\.(\S+) +-+$")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
BRANCH = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")
GUARD = re.compile(r"^@!?U?P\w+\s+")


@dataclass(frozen=True)
class Kernel:
    """The machine code of one kernel."""

    instructions: tuple[str, ...]
    labels: dict[str, int]  # the instruction that a label stands before

    @cached_property
    def loops(self) -> list[tuple[int, int]]:
        """First and last instruction of each loop, found by its backward branch."""
        found = []
        for end, text in enumerate(self.instructions):
            branch = BRANCH.search(text)
            start = self.labels.get(branch[1], end + 1) if branch else end + 1
            # The trap after a kernel's end branches to itself.
            if start < end:
                found.append((start, end))
        return found

    def count(self, first: int = 0, last: int | None = None) -> Counter[str]:
        """Instructions by kind: the operation, with the function of a MUFU and without other suffixes."""
        stop = len(self.instructions) if last is None else last + 1
        return Counter(kind(text) for text in self.instructions[first:stop])

    def main_loop(self, marker: str) -> tuple[int, int] | None:
        """The innermost loop with the most `marker` instructions."""
        marked = {loop: n for loop in self.loops if (n := self.count(*loop)[marker]) > 0}

        def is_innermost(loop: tuple[int, int]) -> bool:
            return not any(o != loop and o[0] >= loop[0] and o[1] <= loop[1] for o in marked)

        return max(filter(is_innermost, marked), key=lambda loop: (marked[loop], loop[0] - loop[1]), default=None)

    def hot_path(self, marker: str) -> Counter[str]:
        """Instructions of one iteration of the main loop: the path with the most `marker` instructions, of these the shortest.

        The element-by-element code at the edges of a tensor does not count. Empty without such a loop.
        """
        loop = self.main_loop(marker)
        if loop is None:
            return Counter()
        # best[i]: (markers, -length, next instruction) from instruction i to the loop's end; branches go forward.
        best: dict[int, tuple[int, int, int]] = {}
        for i in range(loop[1], loop[0] - 1, -1):
            found = int(kind(self.instructions[i]) == marker)
            onward = [(best[n][0] + found, best[n][1] - 1, n) for n in self._successors(i) if n in best]
            if i == loop[1] or onward:
                best[i] = max(onward, default=(found, -1, -1))
        path, i = [], loop[0]
        while i >= 0:
            path.append(self.instructions[i])
            i = best[i][2]
        return Counter(map(kind, path))

    def _successors(self, i: int) -> list[int]:
        """Instructions that may follow instruction i, without backward branches."""
        text = self.instructions[i]
        branch = BRANCH.search(text)
        target = self.labels.get(branch[1], -1) if branch else -1
        ends = text.startswith(("BRA `", "EXIT", "RET"))  # with no guard and no further condition
        return [n for n in ([] if ends else [i + 1]) + [target] if n > i]


def kind(instruction: str) -> str:
    """`@!P0 FFMA.FTZ R1, …` is FFMA, `MUFU.EX2 R3, R4` is MUFU.EX2."""
    parts = GUARD.sub("", instruction).split()[0].split(".")
    return ".".join(parts[:2]) if parts[0] == "MUFU" else parts[0]


def disassembler() -> Path | None:
    """Path of nvdisasm in the installed triton, None without one."""
    package = find_spec("triton")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "backends/nvidia/bin/nvdisasm"
    return path if path.exists() else None


def kernels(cubin: Path) -> dict[str, Kernel]:
    """Disassembles a compiled file into kernels by their short names (`causal_conv1d::forward_rows<float, 4>`).

    Raises:
        RuntimeError: there is no disassembler, or it cannot read the file.
    """
    tool = disassembler()
    if tool is None:
        raise RuntimeError("bench.gpu.sass: nvdisasm was not found; it comes with `pip install triton`")
    run = subprocess.run([tool, "-c", cubin], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"bench.gpu.sass: nvdisasm cannot read {cubin}: {run.stderr.strip()}")
    found: dict[str, tuple[list[str], dict[str, int]]] = {}
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in run.stdout.splitlines():
        if section := SECTION.match(line):
            instructions, labels = found.setdefault(section[1], ([], {}))
        elif label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := INSTRUCTION.search(line):
            instructions.append(instruction[1])
    names = short_names(list(found))
    return {name: Kernel(tuple(i), at) for name, (i, at) in zip(names, found.values(), strict=True)}


def short_names(mangled: list[str]) -> list[str]:
    """Demangled kernel names without return type, outer namespace and arguments."""
    tool = shutil.which("c++filt")
    if tool is None:
        return mangled
    text = "\n".join(mangled)
    plain = subprocess.run([tool], input=text, capture_output=True, text=True, check=True).stdout.splitlines()
    names = (re.sub(r"^void |bdam_fast::", "", name) for name in plain)
    return [re.sub(r"\([^()]*\)$", "", re.sub(r"\((int|bool)\)", "", name)) for name in names]


def main() -> None:
    """Prints the kernels of the files on the command line."""
    for path in map(Path, sys.argv[1:]):
        for name, kernel in kernels(path).items():
            path = kernel.hot_path("MUFU.EX2")
            kinds = ", ".join(f"{n} {k}" for k, n in path.most_common(8))
            print(f"{name}: {len(kernel.instructions)} instructions, main loop {path.total()}: {kinds}")


if __name__ == "__main__":
    main()
