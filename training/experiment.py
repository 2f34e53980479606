"""Trains and evaluates a recipe for several seeds: `python -m training.experiment RECIPE --seeds 0 1 2`.

What is there already is kept: a trained run is not trained again, one that was interrupted is continued, the test
split of each run is evaluated once. Writes OUT/summary.json beside the runs OUT/seed<N>.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from training import checkpoint, cli
from training.audit import refuse_audit
from training.config import Config, to_dict
from training.evaluate import HEADINGS, evaluate
from training.evaluator import METRICS
from training.train import train


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `run_seeds` raises."""
    parser = cli.parser("experiment", __doc__)
    cli.add_recipe(parser)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--data", metavar="ROOT", help="data folder; short for --data.root ROOT")
    parser.add_argument("--out", metavar="FOLDER", help="folder of the runs; default: runs/RECIPE")
    known, config = cli.parse(parser, argv)
    if known.data:
        config = replace(config, data=replace(config.data, root=known.data))
    out = Path(known.out or f"runs/{known.recipe}")
    summary = run_seeds(config, known.seeds, out)
    print_summary(summary, Console(soft_wrap=True))
    print(out / "summary.json")


def run_seeds(config: Config, seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """Contents of OUT/summary.json: recipe, values of every seed, mean, standard deviation (n - 1; null for one seed),
    chance, ratio of the mean to chance, and the configuration.

    Raises ValueError for a seed given twice or runs with different data, and what training and evaluation raise.
    """
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds must be different, got {list(seeds)}")
    evaluations = {}
    for seed in seeds:
        folder = out / f"seed{seed}"
        used = folder.exists() and any(folder.iterdir())
        train(replace(config, seed=seed), folder, resume=used)
        evaluations[seed] = evaluate(folder)[0]
    summary = {"recipe": config.recipe, "config": to_dict(config)} | summarise(evaluations)
    checkpoint.write_json(out / "summary.json", summary)
    return summary


def summarise(evaluations: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Per-seed values, mean, standard deviation, chance and ratios of evaluations of one data set.

    Raises ValueError when they are of different data.
    """
    for seed, evaluation in evaluations.items():
        refuse_audit(evaluation, f"the evaluation of seed {seed}")
    prints = {evaluation["data"]["fingerprint"] for evaluation in evaluations.values()}
    if len(prints) > 1:
        raise ValueError(f"the runs are of different data, fingerprints {sorted(prints)}")
    chance = next(iter(evaluations.values()))["chance"]
    values = {name: [e["metrics"][name] for e in evaluations.values()] for name in METRICS}
    mean = {name: statistics.fmean(column) for name, column in values.items()}
    several = len(evaluations) > 1
    return {
        "seeds": list(evaluations),
        "per_seed": {
            str(seed): {key: e[key] for key in ("metrics", "metrics_beta0", "beta", "seconds", "calls")}
            for seed, e in evaluations.items()
        },
        "mean": mean,
        "std": {name: statistics.stdev(column) if several else None for name, column in values.items()},
        "chance": chance,
        "ratio": {name: mean[name] / chance[name] for name in METRICS},
    }


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """One row a seed, then mean and standard deviation, chance, and the ratio of the mean to chance."""
    table = Table(title=f"{summary['recipe']}, test split")
    table.add_column("percent")
    for name in METRICS:
        table.add_column(HEADINGS[name], justify="right")
    for seed, entry in summary["per_seed"].items():
        table.add_row(f"seed {seed} (beta {entry['beta']:g})", *(f"{entry['metrics'][n]:.2f}" for n in METRICS))
    spread = [f" ± {s:.2f}" if s is not None else "" for s in summary["std"].values()]
    table.add_row("mean", *(f"{summary['mean'][n]:.2f}{s}" for n, s in zip(METRICS, spread, strict=True)))
    table.add_row("chance", *(f"{summary['chance'][n]:.2f}" for n in METRICS))
    table.add_row("times chance", *(f"{summary['ratio'][n]:.1f}" for n in METRICS))
    console.print(table)


if __name__ == "__main__":
    sys.exit(cli.run(main))
