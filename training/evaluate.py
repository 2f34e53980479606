"""Evaluates the test split of a run once and writes RUN/eval.json: `python -m training.evaluate RUN`.

The clothing weight is the one chosen on validation; beta = 0 stands beside it. A second call prints what the first one
wrote. RUN/eval-queries.npz has the average precision and the R-1 of each query. `--protocol` measures another protocol and
writes RUN/eval-PROTOCOL.json; nothing is ever selected by it. gallery-text reads the identity texts of `--texts` where it is
given, and writes a file for each such file of texts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

import bdam_fast
from training.config import to_dict
from training.data.datasets import Dataset, Record, TextFile, read_gallery_texts
from training.data.loader import iterate_images, tokenize
from training.engine import checkpoint
from training.engine.checkpoint import TrainedRun
from training.evaluation import efficiency, protocols
from training.evaluation.audit_guard import refuse_audit
from training.evaluation.dual import METRICS, DualEmbeddings, chance_metrics, evaluate_dual, has_ties, query_metrics
from training.utils import cli
from training.utils.io import atomic, read_json

EXAMPLES, RESULTS, BINS = 10, 10, 50
# Hexadecimal digits that tell files of texts apart in the name of a result.
DIGITS = 12
# Images in the batch whose speed is measured.
MEASURED = 32
HEADINGS = {"R1": "R-1", "R5": "R-5", "R10": "R-10", "mAP": "mAP", "mINP": "mINP"}
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow")


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `evaluate` raises."""
    parser = argparse.ArgumentParser("python -m training.evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="run folder that `python -m training.train` has filled")
    parser.add_argument("--protocol", choices=protocols.PROTOCOLS, default="dual", help="default: dual, the headline")
    help_k = f"images of `dual` that rerank scores again (default {protocols.DEFAULT_K})"
    parser.add_argument("--k", type=int, default=protocols.DEFAULT_K, help=help_k)
    help_texts = "texts of gallery-text, such as OUT/gallery-test.jsonl of training.describe (default: the run's)"
    parser.add_argument("--texts", metavar="FILE", help=help_texts)
    arguments = parser.parse_args(argv)
    run_dir, console = Path(arguments.run), Console(soft_wrap=True)
    protocol, k = arguments.protocol, arguments.k
    texts = None if arguments.texts is None else read_gallery_texts(Path(arguments.texts))
    name = result_name(protocol, k, texts)
    if protocol == "dual":
        evaluation, new = evaluate(run_dir)
        print_table(evaluation, console)
    else:
        evaluation, new = evaluate_protocol(run_dir, protocol, k, texts)
        print_protocol(evaluation, console)
    print(f"{run_dir / name}{'' if new else ' (evaluated before; the test split is evaluated once)'}")


def evaluate(run_dir: Path) -> tuple[dict[str, Any], bool]:
    """(contents of eval.json, whether they are new).

    Raises FileNotFoundError for a run that is not trained, ValueError when eval.json belongs to another checkpoint or
    the data is not what the run was trained on, and what the data stage raises.
    """
    run_dir = Path(run_dir)
    return checkpoint.cached_result(run_dir, "eval.json", lambda run, dataset: _evaluate(run, dataset, run_dir))


def result_name(protocol: protocols.Protocol, k: int, texts: TextFile | None = None) -> str:
    """The file of a protocol's results in the run folder: one for each set of parameters, and for each content of `texts`.

    Raises ValueError for texts with another protocol than gallery-text.
    """
    if texts is not None and protocol != "gallery-text":
        raise ValueError(f"--texts is for the protocol gallery-text, got {texts.path} with {protocol}")
    if protocol == "dual":
        return "eval.json"
    parameter = f"-k{k}" if protocol == "rerank" and k != protocols.DEFAULT_K else ""
    return f"eval-{protocol}{parameter}{f'-{texts.sha256[:DIGITS]}' if texts else ''}.json"


def evaluate_protocol(
    run_dir: Path, protocol: protocols.Protocol, k: int, texts: TextFile | None = None
) -> tuple[dict[str, Any], bool]:
    """(contents of RUN/`result_name`, whether they are new). Raises what `evaluate`, `result_name`, `measure` raise."""

    def compute(run: TrainedRun, dataset: Dataset) -> dict[str, Any]:
        started, console = time.perf_counter(), Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(protocol, total=None)
            progress = partial(_advance, bar, task)
            result = protocols.measure(run, dataset.splits["test"], protocol, k, progress, texts)
        about = {"data": _data(dataset), "versions": _versions(), "config": to_dict(run.config)}
        return result | about | {"seconds": {"evaluation": time.perf_counter() - started}}

    return checkpoint.cached_result(Path(run_dir), result_name(protocol, k, texts), compute)


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def print_protocol(evaluation: dict[str, Any], console: Console) -> None:
    """Metrics of another protocol than dual, with what stands beside them; one line for paired-audit, never a table."""
    audit = evaluation.get("metrics_audit")
    if audit is not None:
        values = ", ".join(f"{HEADINGS[name]} {audit[name]:.2f}" for name in METRICS)
        console.print(
            f"paired-audit, not a text-to-image result: {values}; chance R-1 {evaluation['chance']['R1']:.2f}"
        )
        return
    names = {"metrics": evaluation["protocol"]} | {
        key: key.removeprefix("metrics_") for key in evaluation if key.startswith("metrics_")
    }
    parameters = ", ".join(f"{key} {value:g}" for key, value in evaluation["parameters"].items())
    _print_rows(
        evaluation,
        {label: evaluation[key] for key, label in names.items()},
        f" ({parameters})" * bool(parameters),
        console,
    )
    if "texts" in evaluation:
        path, sha256 = evaluation["texts"]["path"], evaluation["texts"]["sha256"]
        console.print(f"identity texts: {path}, SHA-256 {sha256[:DIGITS]}...", highlight=False, markup=False)
    if evaluation.get("note"):
        console.print(evaluation["note"])


def print_table(evaluation: dict[str, Any], console: Console) -> None:
    """Metrics of the test split at the chosen beta and at beta 0, chance, and the ratio of the first to chance."""
    refuse_audit(evaluation, "this evaluation")
    rows = {f"beta {evaluation['beta']:g} (validation)": evaluation["metrics"], "beta 0": evaluation["metrics_beta0"]}
    _print_rows(evaluation, rows, "", console)


def _print_rows(evaluation: dict[str, Any], rows: dict[str, dict[str, float]], what: str, console: Console) -> None:
    """One row of metrics each, chance, and the ratio of the first row to chance."""
    counts, chance = evaluation["counts"], evaluation["chance"]
    title = f"test{what}: {counts['queries']} queries, {counts['gallery']} images, {counts['ids']} identities"
    table = Table(title=title)
    table.add_column("percent")
    for name in METRICS:
        table.add_column(HEADINGS[name], justify="right")
    for label, values in (rows | {"chance": chance}).items():
        table.add_row(label, *(f"{values[name]:.2f}" for name in METRICS))
    first = next(iter(rows.values()))
    table.add_row("times chance", *(f"{first[name] / chance[name]:.1f}" for name in METRICS))
    console.print(table)
    if evaluation["ties"]:
        console.print("Tied scores occur: the values are expectations over the order of tied images.")


def _evaluate(run: TrainedRun, dataset: Dataset, run_dir: Path) -> dict[str, Any]:
    started = time.perf_counter()
    before = Counter(bdam_fast.call_counts())
    records = dataset.splits["test"]
    dual, metrics = evaluate_dual(run.model, records, run.tokenizer, run.config, sorted({0.0, run.beta}))
    similarity = dual.similarity(run.beta)
    histograms = _histograms(run, dual, records)
    _write_queries(run_dir / "eval-queries.npz", similarity, dual)
    memory_mb = efficiency.peak_memory_mb(similarity.device)
    trained = Counter(read_json(run_dir / "calls.json"))
    seconds = time.perf_counter() - started
    evaluation = {
        "metrics": metrics[run.beta],
        "metrics_beta0": metrics[0.0],
        "beta": run.beta,
        "chance": chance_metrics(dual.query_ids_Q, dual.gallery_ids_G),
        "ties": has_ties(similarity, dual.query_ids_Q, dual.gallery_ids_G),
        "counts": {"queries": len(dual.captions), "gallery": len(records), "ids": len({r.id for r in records})},
        "examples": _examples(similarity, dual, records),
        "histograms": histograms,
        "calls": dict(sorted((trained + (Counter(bdam_fast.call_counts()) - before)).items())),
        "data": _data(dataset),
        "versions": _versions(),
        "config": to_dict(run.config),
        "memory_mb": memory_mb,
        "training_memory_mb": _training_memory(run_dir / "resources.json"),
        "efficiency": _efficiency(run, records),
    }
    return evaluation | {"seconds": _trained_seconds(run_dir) | {"evaluation": seconds}}


def _write_queries(path: Path, similarity_QG: torch.Tensor, dual: DualEmbeddings) -> None:
    """Arrays ap and r1 (Q,) float32 in [0, 1] at the chosen beta, and ids (Q,) int64 of the person, in the split's order."""
    match_QG = dual.query_ids_Q[:, None] == dual.gallery_ids_G[None]
    values_Q5 = query_metrics(similarity_QG, match_QG).float() / 100
    ap_Q, r1_Q = (values_Q5[:, METRICS.index(name)].numpy() for name in ("mAP", "R1"))
    with atomic(path) as file:
        np.savez_compressed(file, ap=ap_Q, r1=r1_Q, ids=dual.query_ids_Q.numpy())


def _efficiency(run: TrainedRun, records: Sequence[Record]) -> dict[str, Any]:
    """`efficiency.measure` on the first images of the split with their first captions."""
    some = records[: min(MEASURED, run.config.eval.batch_size)]
    images, _ = next(iter(iterate_images(some, run.config.data, len(some))))
    texts = tokenize(run.tokenizer, [record.captions[0] for record in some], run.config.data.text_length)
    return efficiency.measure(run.model, images, texts)


def _examples(similarity_QG: torch.Tensor, dual: DualEmbeddings, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Queries evenly spread over the split, each with its top images."""
    total = len(dual.captions)
    chosen = sorted({round(i * (total - 1) / max(EXAMPLES - 1, 1)) for i in range(min(EXAMPLES, total))})
    examples = []
    for query in chosen:
        own, scores = records[int(dual.query_images_Q[query])], similarity_QG[query]
        top = scores.argsort(descending=True, stable=True)[:RESULTS].tolist()
        results = [
            {"file_path": records[i].file_path, "id": records[i].id, "score": float(scores[i])}
            | {"correct": records[i].id == own.id}
            for i in top
        ]
        entry = {"caption": dual.captions[query], "file_path": own.file_path, "id": own.id, "results": results}
        examples.append(entry)
    return examples


@torch.inference_mode()
def _histograms(run: TrainedRun, dual: DualEmbeddings, records: Sequence[Record]) -> dict[str, Any]:
    """Of g and 1 - g over the test images, and of the two fusion weights over each image with its first caption
    (Fig. 3); null for a part that the model does not have."""
    gate = dual.gate_GC
    result = {
        "gate_id": None if gate is None else _histogram(gate),
        "gate_clo": None if gate is None else _histogram(1.0 - gate),
        "fusion_image": None,
        "fusion_text": None,
    }
    if run.model.fusion is not None:
        weights = []
        for images, part in iterate_images(records, run.config.data, run.config.eval.batch_size):
            captions = [record.captions[0] for record in records[part]]
            texts = tokenize(run.tokenizer, captions, run.config.data.text_length)
            weights.append(run.model.fuse(images, texts).weights_B2)
        image, text = torch.cat(weights).unbind(1)
        result |= {"fusion_image": _histogram(image), "fusion_text": _histogram(text)}
    return result


def _histogram(values: torch.Tensor) -> dict[str, Any]:
    numbers = values.double().numpy().ravel()
    counts, edges = np.histogram(numbers, bins=BINS, range=(0.0, 1.0))
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "mean": float(numbers.mean()),
        "std": float(numbers.std()),
    }


def _data(dataset: Dataset) -> dict[str, Any]:
    counts = {
        name: {
            "ids": len({r.id for r in records}),
            "images": len(records),
            "captions": sum(len(r.captions) for r in records),
        }
        for name, records in dataset.splits.items()
    }
    root = str(dataset.root)
    about = {"name": dataset.name, "root": root, "split": dataset.split, "left_out": dataset.skipped_images}
    return about | {"fingerprint": dataset.fingerprint, "counts": counts}


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    host = {"python": platform.python_version(), "platform": platform.platform()}
    return {"bdam_fast": bdam_fast.__version__} | versions | host | {"threads": str(torch.get_num_threads())}


def _training_memory(path: Path) -> float | None:
    """Of a run whose training came to its end; None of one that is not there yet."""
    return read_json(path)["memory_mb"] if path.exists() else None


def _trained_seconds(run_dir: Path) -> dict[str, float]:
    """Seconds of all training steps and of all validations, from metrics.jsonl."""
    seconds = {"training": 0.0, "validation": 0.0}
    with open(run_dir / "metrics.jsonl", encoding="utf-8") as lines:
        for text in lines:
            line = json.loads(text)
            seconds["training" if line["kind"] == "step" else "validation"] += line["seconds"]
    return seconds


if __name__ == "__main__":
    sys.exit(cli.run(main))
