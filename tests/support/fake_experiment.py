"""The summary of an experiment in made-up numbers, as summary.json has it, for tests of its readers."""

from typing import Any

from training.config import to_dict
from training.config.ablations import ABLATIONS, TITLES
from training.config.recipes import get_recipe
from training.evaluation.result import METRICS
from training.evaluation.significance import TEST, holm, verdict

# Difference of each row to the full model: for the page the sign is what counts.
SHIFTS = {
    "no-gate": 1.5,
    "no-cross-attention": -2.0,
    "no-triplet": -0.25,
    "no-mamba": 0.5,
    "transformer": -0.75,
    "decoupling-hsic": -0.5,
}


# What every run of the summary was trained on.
MACHINE = "Some CPU, 2 threads"
NOISE = {
    "R1": {"deviation": 0.5, "distinguishable": 1.25, "machines": 0.375},
    "mAP": dict.fromkeys(("deviation", "distinguishable", "machines")),
}


def make_summary(seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Tables 1 to 3, Fig. 5 and the readings with the full model and the rows of SHIFTS finished, the others missing."""
    runs = {"full": make_run("synthetic-tables", 0.0, seeds)}
    runs |= {name: make_run(f"synthetic-tables/{name}", shift, seeds) for name, shift in SHIFTS.items()}
    tables = {
        table: {"title": TITLES[table], "rows": _rows(rows, runs), "noise": NOISE} for table, rows in ABLATIONS.items()
    }
    return {
        "command": "python -m training.experiment all --seeds 0 1 2",
        "recipe": "synthetic-tables",
        "seeds": list(seeds),
        "config": to_dict(get_recipe("synthetic-tables")),
        "test": TEST,
        "data": {
            "ab" * 32: {
                "name": "cuhk-pedes",
                "root": "data/synthetic",
                "fingerprint": "ab" * 32,
                "split": "train, val and test as the file has them",
                "counts": {"test": {"ids": 200, "images": 1217}},
            }
        },
        "versions": {"torch": "2.13.0", "threads": "2"},
        "missing": [["w/o InfoNCE", 0], ["w/o InfoNCE", 2]],
        "tables": tables,
        "runs": runs,
    }


def _rows(rows: tuple[tuple[str, str], ...], runs: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table, with the verdicts that their p have."""
    result = [{"name": name, "label": label, "run": name if name in runs else None} for name, label in rows]
    compared = [row for row in result if row["run"] and runs[row["run"]]["comparison"]]
    for row in compared:
        row["verdicts"] = {}
    for metric in ("R1", "mAP"):
        tests = [runs[row["run"]]["comparison"][metric] for row in compared]
        for row, test, p in zip(compared, tests, holm([test["p"] for test in tests]), strict=True):
            row["verdicts"][metric] = {"p": p, "word": verdict(test["delta"], p)}
    return result


def make_run(recipe: str, shift: float, seeds: tuple[int, ...]) -> dict[str, Any]:
    """One configuration whose metrics are 10, 20, ... plus the shift, a tenth apart from seed to seed."""
    mean = {name: 10.0 * i + shift for i, name in enumerate(METRICS, 1)}
    several = len(seeds) > 1
    comparison = {
        metric: {"delta": shift, "per_seed": [shift - 0.1, shift, shift + 0.1][: len(seeds)], "same_sign": len(seeds)}
        | {"low": shift - 0.5, "high": shift + 0.5, "p": 0.0125 if abs(shift) > 1 else 0.25}
        for metric in ("R1", "mAP")
    }
    row = recipe.partition("/")[2]
    throughput = {"median": 1200.0, "low": 1100.0, "high": 1300.0, "batch": 32, "repetitions": 15}
    return {
        "recipe": recipe,
        "changes": {"model.bdam.gate": False} if row else {},
        "data": "ab" * 32,
        "folders": [],
        "metrics": {name: [mean[name] + 0.1 * (i - 1) for i in range(len(seeds))] for name in METRICS},
        "mean": mean,
        "std": {name: 0.125 if several else None for name in METRICS},
        "metrics_beta0": {name: [mean[name]] * len(seeds) for name in METRICS},
        "beta": [0.5] * len(seeds),
        "chance": dict.fromkeys(METRICS, 0.75),
        "ratio": mean,
        "threads": ["2"] * len(seeds),
        "seconds": {"training": [100.0] * len(seeds), "validation": [2.0], "evaluation": [4.25] * len(seeds)},
        "memory_mb": {"training": [1234.5] * len(seeds), "evaluation": [700.0]},
        "parameters": {"total": 1_410_212, "trained": 1_410_212, "fusion": 47_138},
        "flops": {"total": 90_919_000, "image": 1, "text": 1, "fusion": 4_922_000},
        "speed": {"images": [throughput] * len(seeds), "pairs": None},
        "comparison": comparison if row else None,
        "machines": [MACHINE] * len(seeds),
        "curves": [
            {"epochs": [1.0, 2.0, 3.0, 4.0, 5.0], "R1": [2.0, 6.0, 8.0, 9.0, 9.0 + shift + i / 10]}
            for i in range(len(seeds))
        ],
    }
