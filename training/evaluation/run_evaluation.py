"""Evaluation of a run: the test split once under protocol `dual`, and under the other protocols."""

from __future__ import annotations

import importlib.metadata
import json
import platform
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

import bdam_fast
from training.config import to_dict
from training.data.datasets import Dataset, Record, TextFile
from training.data.loader import iterate_images, tokenize
from training.engine import checkpoint
from training.engine.checkpoint import TrainedRun
from training.evaluation import efficiency, protocols
from training.evaluation.dual import DualEmbeddings, evaluate_dual
from training.evaluation.metrics import METRICS, chance_metrics, has_ties, query_metrics
from training.evaluation.protocol_names import DEFAULT_K, Protocol
from training.utils.io import atomic, read_json

EXAMPLES, RESULTS, BINS = 10, 10, 50
# Hexadecimal digits that tell files of texts apart in the name of a result.
DIGITS = 12
# Images in the batch whose speed is measured.
MEASURED = 32
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow")


def evaluate(run_dir: Path) -> tuple[dict[str, Any], bool]:
    """(contents of eval.json, whether they are new).

    Raises FileNotFoundError for a run that is not trained, ValueError when eval.json belongs to another checkpoint or
    the data is not what the run was trained on, and what the data stage raises.
    """
    run_dir = Path(run_dir)
    return checkpoint.cached_result(run_dir, "eval.json", lambda run, dataset: _evaluate(run, dataset, run_dir))


def result_name(protocol: Protocol, k: int, texts: TextFile | None = None) -> str:
    """The file of a protocol's results in the run folder: one for each set of parameters, and for each content of `texts`.

    Raises ValueError for texts with another protocol than gallery-text.
    """
    if texts is not None and protocol != "gallery-text":
        raise ValueError(f"--texts is for the protocol gallery-text, got {texts.path} with {protocol}")
    if protocol == "dual":
        return "eval.json"
    parameter = f"-k{k}" if protocol == "rerank" and k != DEFAULT_K else ""
    return f"eval-{protocol}{parameter}{f'-{texts.sha256[:DIGITS]}' if texts else ''}.json"


def evaluate_protocol(
    run_dir: Path, protocol: Protocol, k: int, texts: TextFile | None = None
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
