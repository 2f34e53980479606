"""Run folders of made-up numbers, in the format that training and evaluation write, for tests of the report."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.config import to_dict
from training.config.recipes import get_recipe

METRICS = {"R1": 37.5, "R5": 65.25, "R10": 79.0, "mAP": 31.5, "mINP": 12.25}
BETA0 = {"R1": 22.5, "R5": 44.0, "R10": 61.0, "mAP": 20.0, "mINP": 7.5}
CHANCE = {"R1": 2.5, "R5": 12.0, "R10": 23.0, "mAP": 4.2, "mINP": 0.0}
TASKS = {"info_nce": 3.4, "triplet": 0.55, "adversarial": 1.9, "decoupling": 0.02, "matching": 0.7}


def make_run(folder: Path, data: Path, steps: int = 480, epochs: int = 12, seed: int = 0) -> Path:
    """A run folder with every file that the page reads, numbers drawn at random; `data` is a folder of make_pedes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    config = get_recipe("synthetic")
    config = replace(config, seed=3, data=replace(config.data, root=str(data)))
    records = [r for r in json.loads((data / "reid_raw.json").read_text()) if r["split"] == "test"]
    evaluation = {
        "metrics": METRICS,
        "metrics_beta0": BETA0,
        "beta": 0.5,
        "chance": CHANCE,
        "ties": True,
        "counts": {"queries": 2 * len(records), "gallery": len(records), "ids": len({r["id"] for r in records})},
        "examples": [_example(records[i % len(records)], records, rng) for i in range(12)],
        "histograms": {
            name: _histogram(rng.beta(a, b, 5000))
            for name, a, b in (("gate_id", 6, 5), ("gate_clo", 5, 6), ("fusion_image", 9, 4), ("fusion_text", 4, 9))
        },
        "calls": {f"{op}.cpu.{way}": 12_345 for op in ("hsic", "selective_scan") for way in ("forward", "backward")}
        | {"selective_scan.reference.forward": 7},
        "seconds": {"training": 301.25, "validation": 20.5, "evaluation": 4.75},
        "data": {
            "name": "cuhk-pedes",
            "root": str(data),
            "fingerprint": "ab" * 32,
            "counts": {"test": {"ids": 6, "images": 60}},
        },
        "versions": {"torch": "2.13.0", "python": "3.11.2", "platform": "Linux", "threads": "2"},
        "config": to_dict(config),
        "memory_mb": 1234.5,
        "checkpoint": {"epoch": 9, "step": 360, "sha256": "cd" * 32},
    }
    (folder / "eval.json").write_text(json.dumps(evaluation))
    lines = [_step(i, steps, epochs, rng) for i in range(1, steps + 1)]
    lines += [_validation(epoch, epochs, rng) for epoch in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _example(own: dict, records: list[dict], rng: np.random.Generator) -> dict:
    order = rng.permutation(len(records))[:10]
    results = [
        {"file_path": records[i]["file_path"], "id": records[i]["id"], "score": 0.9 - 0.05 * rank}
        | {"correct": records[i]["id"] == own["id"]}
        for rank, i in enumerate(order)
    ]
    return {"caption": own["captions"][0], "file_path": own["file_path"], "id": own["id"], "results": results}


def _histogram(values: np.ndarray) -> dict:
    counts, edges = np.histogram(values, bins=50, range=(0.0, 1.0))
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "mean": float(values.mean()),
        "std": float(values.std()),
    }


def _step(i: int, steps: int, epochs: int, rng: np.random.Generator) -> dict:
    decay = 0.2 + 0.8 * math.exp(-3 * i / steps)
    losses = {name: start * decay * float(rng.uniform(0.85, 1.15)) for name, start in TASKS.items()}
    weights = {name: 1 + 0.4 * math.sin(k + 4 * i / steps) for k, name in enumerate(TASKS)}
    norms = {name: 10.0 ** (-k) * decay * float(rng.uniform(0.7, 1.3)) for k, name in enumerate(TASKS)}
    line = {"kind": "step", "step": i, "epoch": 1 + (i - 1) * epochs // steps, "loss": sum(losses.values())}
    return {**line, "losses": {**losses, "gate": 0.01}, "weights": weights, "norms": norms, "lr": 1e-3, "seconds": 0.6}


def _validation(epoch: int, epochs: int, rng: np.random.Generator) -> dict:
    share = 1 - math.exp(-3 * epoch / epochs)
    values = {name: value * share * float(rng.uniform(0.93, 1.07)) for name, value in METRICS.items()}
    return {"kind": "validation", "epoch": epoch, "step": 40 * epoch, **values, "beta": 0.5, "seconds": 1.5}
