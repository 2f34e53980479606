"""Retrieval metrics of a split of the size of ICFG-PEDES' test split: straight from embeddings, from whole matrices, and sorting.

`python -m bench.pipeline.retrieval_metrics` prints seconds by the clock and of the CPU, side by side, and the peak memory of
a process that does one of them alone. `--keep` appends a row each to bench/results/.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.harness import measure as harness
from bench.harness import memory, results
from bench.pipeline.loading import Sample, sample
from training.evaluation.metrics import embedding_metrics, retrieval_metrics
from training.evaluation.similarity import Similarity

OURS, WHOLE, SORT, PRODUCTS = "embedding_metrics", "whole matrices", "similarity.sort", "scores alone"


@dataclass(frozen=True)
class Arguments:
    """The split and how often it is measured."""

    # Images, each with a caption.
    images: int = 19848
    # People whom they show.
    people: int = 1000
    # Width of the embeddings.
    width: int = 256
    # Weights of the clothing embedding, all in one pass.
    betas: tuple[float, ...] = (0.0, 0.5)
    # Queries that are measured, the first ones; 0 is all of them.
    queries: int = 0
    # Of the embeddings, in lengths of what a person's have in common: 1.8 gives R-1 67, 30 that of chance.
    noise: float = 1.8
    # Measurements of each way, in turn.
    rounds: int = 3
    # Threads of every way.
    threads: int = 2
    # Append rows to bench/results/.
    keep: bool = False
    # Do only this, once, and print the peak memory of this process in MiB (what the parent process calls).
    peak: str = ""


@dataclass(frozen=True)
class Split:
    """Unit embeddings and the person of each query and image."""

    embeddings: tuple[Tensor, Tensor, Tensor]
    query_Q: Tensor
    gallery_G: Tensor
    betas: tuple[float, ...]


def split(arguments: Arguments) -> Split:
    """Captions and both branches around a centre for each person; the clothing is that of the caption's image."""
    g, a = torch.Generator().manual_seed(0), arguments
    ids_G = torch.randint(a.people, (a.images,), generator=g)
    person_GE = torch.randn(a.people, a.width, generator=g)[ids_G]
    clothing_GE = torch.randn(a.images, a.width, generator=g)

    def near(centre_GE: Tensor) -> Tensor:
        noise_GE = torch.randn(a.images, a.width, generator=g)
        return torch.nn.functional.normalize(centre_GE + a.noise * noise_GE, dim=1)

    queries = slice(a.queries or a.images)
    text_GE = near(person_GE + clothing_GE / 2)
    return Split((text_GE[queries], near(person_GE), near(clothing_GE)), ids_G[queries], ids_G, a.betas)


def from_embeddings(case: Split) -> Sample:
    """Ours."""
    query_QE, gallery_GE, clothing_GE = case.embeddings
    return sample(
        lambda: embedding_metrics(query_QE, gallery_GE, case.query_Q, case.gallery_G, clothing_GE, case.betas)
    )


def from_matrices(case: Split) -> Sample:
    """One whole float32 matrix for each weight, as a caller without embeddings has it."""
    query_QE, identity_GE, clothing_GE = case.embeddings

    def call() -> None:
        for beta in case.betas:
            retrieval_metrics(query_QE @ (identity_GE + beta * clothing_GE).T, case.query_Q, case.gallery_G)

    return sample(call)


def sorting(case: Split) -> Sample:
    """The sorts alone, of the same scores in the same blocks."""
    taken = [
        sample(lambda scores_BG=scores_BG: scores_BG.sort(dim=1, descending=True))  # type: ignore[misc]
        for _, _, scores_BG in Similarity(*case.embeddings).blocks(case.betas)
    ]
    return Sample(sum(x.clock for x in taken), sum(x.cpu for x in taken))


def products(case: Split) -> Sample:
    """The part of ours that no way of ranking saves."""
    return sample(lambda: [None for _ in Similarity(*case.embeddings).blocks(case.betas)])


VARIANTS: dict[str, Callable[[Split], Sample]] = {
    OURS: from_embeddings,
    WHOLE: from_matrices,
    SORT: sorting,
    PRODUCTS: products,
}


def peak_mib(variant: str, argv: Sequence[str]) -> float:
    """Peak of a new process that makes the embeddings and does this alone. Raises RuntimeError when it fails."""
    command = [sys.executable, "-m", "bench.pipeline.retrieval_metrics", *argv, "--peak", variant]
    child = subprocess.run(command, cwd=results.ROOT, capture_output=True, text=True)
    if child.returncode != 0:
        raise RuntimeError(f"bench: peak memory of {variant} failed: {child.stderr.strip().splitlines()[-1]}")
    return float(child.stdout.split()[-1])


def measure(arguments: Arguments) -> dict[str, list[Sample]]:
    """All variants in turn, round by round, so that a slow phase of the machine hits all of them."""
    case = split(arguments)
    found: dict[str, list[Sample]] = {variant: [] for variant in VARIANTS}
    for number in range(1, arguments.rounds + 1):
        for variant, call in VARIANTS.items():
            found[variant].append(call(case))
            seconds = found[variant][-1].clock
            print(f"round {number}/{arguments.rounds}  {variant}  {seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def table(arguments: Arguments, found: dict[str, list[Sample]], peaks: dict[str, float]) -> Table:
    """Medians, how many times the sorts' CPU time they are, and peaks."""
    title = f"{arguments.queries or arguments.images} x {arguments.images}, {len(arguments.betas)} betas"
    shown = Table(title=f"{title}, {arguments.threads} threads, {arguments.rounds} rounds")
    for column in ("", "s", "CPU s", "lowest CPU s", "of the sorts' CPU time", "peak MiB"):
        shown.add_column(column, justify="right" if column else "left")
    sorts = median(x.cpu for x in found[SORT])
    for variant, taken in found.items():
        clock, cpu = median(x.clock for x in taken), median(x.cpu for x in taken)
        lowest = min(x.cpu for x in taken)
        shown.add_row(
            variant, f"{clock:.1f}", f"{cpu:.1f}", f"{lowest:.1f}", f"{cpu / sorts:.2f}", f"{peaks[variant]:.0f}"
        )
    return shown


def rows(arguments: Arguments, found: dict[str, list[Sample]], peaks: dict[str, float]) -> list[dict[str, str]]:
    """A row a variant, by the clock."""
    made, ours = [], median(x.clock for x in found[OURS])
    for variant, taken in found.items():
        times = harness.timing([1e3 * x.clock for x in taken])
        made.append(
            {
                "op": "retrieval_metrics",
                "shape": f"{arguments.queries or arguments.images}x{arguments.images}x{arguments.width}",
                "dtype": "float32",
                "direction": f"{len(arguments.betas)} betas",
                "variant": variant,
                "kind": "ours" if variant == OURS else "other",
                **harness.numbers(times, 1e3 * ours),
                "peak_mib": f"{peaks[variant]:.0f}",
                "note": f"CPU time {median(x.cpu for x in taken):.1f} s; peak of the whole process",
            }
        )
    return made


def main() -> None:
    """Measures, prints, appends rows where it is told to."""
    arguments = tyro.cli(Arguments)
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        VARIANTS[arguments.peak](split(arguments))
        print(memory.resident_mib("VmHWM"))
        return
    found = measure(arguments)
    peaks = {variant: peak_mib(variant, sys.argv[1:]) for variant in VARIANTS}
    Console(width=110).print(table(arguments, found, peaks))
    if arguments.keep:
        print(results.append(rows(arguments, found, peaks)))


if __name__ == "__main__":
    main()
