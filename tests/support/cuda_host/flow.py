"""Instructions that a warp executes in a compiled kernel, from its first to its last, given how often its loops turn.

Which way a branch goes is not known: of the ways through a loop or a kernel those with the most exponentials and asynchronous
copies count, of these either the shortest, which whole tiles take, or the longest, a bound for the tiles at an edge and for
what stands outside the loops. Where a backward has no state of every second tile, it walks the tile before once more, which
the other tiles skip: these take the ways with the fewest exponentials.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from bench.gpu.sass import BRANCH, Kernel, kind

EXPONENTIAL, COPY = "MUFU.EX2", "LDGSTS"
WARP = 32
TILE, UNROLLED = 8, 4
# The scan's usual kernels with 16 states in bfloat16: the forward's pass, or the backward's channels of a thread and the tiles
# from one saved state to the next.
SCANS = re.compile(
    r"device::scan_(?:forward<__nv_bfloat16, 16, 1, \(device::Access\)\d, \(device::Pass\)(\d), \(device::Case\)0>"
    r"|backward<__nv_bfloat16, ([24]), 4, 4, [24], \(device::Access\)\d, \(device::Case\)0, ([12])>)"
)
# Vision models' lengths; the shortest chunk of a split length, for the passes over chunks.
LENGTHS, CHUNK = (77, 192, 193, 197), 128


@dataclass(frozen=True)
class Loop:
    """Instructions of a loop, entered at the header."""

    header: int
    nodes: frozenset[int]


@dataclass(frozen=True)
class Way:
    """Exponentials, asynchronous copies and all instructions of a way through a loop's turn or through a kernel."""

    exponentials: float
    copies: float
    instructions: float

    @property
    def marked(self) -> float:
        """Exponentials and copies."""
        return self.exponentials + self.copies

    def __add__(self, other: Way) -> Way:
        return Way(
            self.exponentials + other.exponentials,
            self.copies + other.copies,
            self.instructions + other.instructions,
        )

    def times(self, turns: float) -> Way:
        """This way taken `turns` times."""
        return Way(self.exponentials * turns, self.copies * turns, self.instructions * turns)


Order = Callable[[Way], tuple[float, float]]


def shortest(way: Way) -> tuple[float, float]:
    """Key by which the shortest of the ways with the most marked instructions is the greatest."""
    return way.marked, -way.instructions


def longest(way: Way) -> tuple[float, float]:
    """Key by which the longest of the ways with the most marked instructions is the greatest."""
    return way.marked, way.instructions


def shortest_without_replay(way: Way) -> tuple[float, float]:
    """The same of the ways with the fewest exponentials, which still fetch the next tile."""
    return way.copies - way.exponentials, -way.instructions


def longest_without_replay(way: Way) -> tuple[float, float]:
    """Key by which the longest of these ways is the greatest."""
    return way.copies - way.exponentials, way.instructions


class Flow:
    """Ways through one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.texts = kernel.instructions
        self.next = [list(self._successors(kernel, i)) for i in range(len(self.texts))]

    def _successors(self, kernel: Kernel, i: int) -> Iterator[int]:
        text = self.texts[i]
        if not text.startswith(("BRA `", "EXIT", "RET")) and i + 1 < len(self.texts):
            yield i + 1
        branch = BRANCH.search(text)
        # The trap after a kernel's end branches to itself.
        if branch and kernel.labels.get(branch[1], i) != i:
            yield kernel.labels[branch[1]]

    @cached_property
    def reached(self) -> list[int]:
        """Instructions in an order in which each stands before those that follow it, but for the turns of loops."""
        seen, done, stack = {0}, [], [(0, iter(self.next[0]))]
        while stack:
            at, rest = stack[-1]
            to = next((n for n in rest if n not in seen), None)
            if to is None:
                done.append(at)
                stack.pop()
            else:
                seen.add(to)
                stack.append((to, iter(self.next[to])))
        return done[::-1]

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops, outer ones first."""
        place = {i: n for n, i in enumerate(self.reached)}
        before: dict[int, list[int]] = {i: [] for i in place}
        for i in place:
            for to in self.next[i]:
                before[to].append(i)
        bodies: dict[int, set[int]] = {}
        for i in place:
            for header in (to for to in self.next[i] if place[to] <= place[i]):
                body, todo = bodies.setdefault(header, {header}), [i]
                while todo:
                    node = todo.pop()
                    if node not in body:
                        body.add(node)
                        todo += before[node]
        return sorted((Loop(h, frozenset(b)) for h, b in bodies.items()), key=lambda loop: -len(loop.nodes))

    @cached_property
    def main(self) -> list[Loop]:
        """The innermost loop with the most exponentials after those around it: the loop over tiles is the first. Empty without
        one."""
        count = {loop: sum(kind(self.texts[i]) == EXPONENTIAL for i in loop.nodes) for loop in self.loops}
        marked = [loop for loop in self.loops if count[loop]]
        innermost = [loop for loop in marked if not any(other.nodes < loop.nodes for other in marked)]
        if not innermost:
            return []
        inner = max(innermost, key=lambda loop: count[loop])
        return [loop for loop in self.loops if loop.nodes >= inner.nodes]

    def way(self, turns: Mapping[Loop, float], best: Order, loop: Loop | None = None) -> Way:
        """Best way through the kernel, or through one turn of a loop. Loops in `turns` turn so often, others once."""
        nodes = frozenset(self.reached) if loop is None else loop.nodes
        start = 0 if loop is None else loop.header
        inner: dict[int, Loop] = {}  # the outermost loop within, of each instruction that has one
        for other in self.loops:
            if other.nodes < nodes:
                inner.update((i, other) for i in other.nodes if i not in inner)
        onward: dict[int, Way] = {}
        for i in reversed([n for n in self.reached if n in nodes]):
            own = inner.get(i)
            if own is None:
                own_kind = kind(self.texts[i])
                exits, cost = self.next[i], Way(own_kind == EXPONENTIAL, own_kind == COPY, 1)
            elif own.header == i:
                exits = [to for n in own.nodes for to in self.next[n] if to not in own.nodes]
                cost = self.way(turns, best, own).times(turns.get(own, 1))
            else:
                continue
            ways = [onward[to] for to in exits if to in onward]
            if start in exits if loop else self.texts[i].startswith("EXIT"):
                ways.append(Way(0, 0, 0))
            if ways:
                onward[i] = cost + max(ways, key=best)
        return onward[start]


def whole_count(kernel: Kernel, length: int, states: int = 16, every: int = 1) -> float:
    """Instructions of a scan's kernel for a warp's element-states: a bound at this length.

    Whole tiles take the shortest way, an incomplete one, the last, the longest; so does what stands outside the loop over tiles,
    with the reading and writing of initial and last states that few calls have.

    Args:
        kernel: one of SCANS.
        length: steps.
        states: element-states of a thread in a step.
        every: tiles between saved states; from the second on, each other tile of a backward needs the walk of the one before.
    """
    flow = Flow(kernel)
    tiles, (tile, *inner) = -(-length // TILE), flow.main
    within = {loop: -(-length // UNROLLED) / tiles for loop in inner}
    outside = flow.way({**within, tile: 0}, longest).instructions

    def turn(number: int) -> float:
        incomplete, replay = (number + 1) * TILE > length, every == 1 or number % every > 0
        with_replay = longest if incomplete else shortest
        without = longest_without_replay if incomplete else shortest_without_replay
        return flow.way(within, with_replay if replay else without, tile).instructions

    # The first two tiles and the last stand for all.
    kinds = [n if n == tiles - 1 else n % every for n in range(tiles)]
    turns = {n: turn(n) for n in set(kinds)}
    return (outside + sum(turns[n] for n in kinds)) / (length * states)


def scan_counts(name: str, kernel: Kernel) -> dict[str, float]:
    """Counts of one of the usual scans by the key `whole_LENGTH`, empty for other kernels."""
    found = SCANS.fullmatch(name)
    if found is None:
        return {}
    lengths = (CHUNK,) if found[1] in ("1", "2") else LENGTHS
    states, every = (16, 1) if found[2] is None else (4 * int(found[2]), int(found[3]))
    return {f"whole_{length}": round(whole_count(kernel, length, states, every), 2) for length in lengths}
