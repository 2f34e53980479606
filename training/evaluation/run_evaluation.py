"""Evaluation of the test split of a run, once: under protocol `dual`, and under the other protocols."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress, TaskID

import bdam_fast
from training.config import to_dict
from training.data.datasets import Dataset, Record, TextFile
from training.data.loader import iterate_images, tokenize
from training.engine.checkpoint import TrainedModel
from training.engine.device import machine_facts
from training.engine.distributed.ranks import ONE_RANK, Ranks
from training.engine.memory import peak_memory_mb
from training.evaluation import efficiency
from training.evaluation.cached_result import cached_result
from training.evaluation.calibration import CALIBRATION, calibrate
from training.evaluation.dual import DualEmbeddings, embed_dual
from training.evaluation.metrics import QueryMetrics, chance_metrics
from training.evaluation.protocols.measure import has_texts, measure
from training.evaluation.protocols.protocol_names import DEFAULT_K, WITH_TEXTS, Protocol
from training.evaluation.result import (
    METRICS,
    Counts,
    DataSummary,
    Efficiency,
    Evaluation,
    Example,
    Histogram,
    ProtocolEvaluation,
    RankedImage,
    read_evaluation,
)
from training.evaluation.run_folder import EVALUATION, QUERIES, Run
from training.utils.io import atomic, file_digest, read_record, write_record
from training.utils.terminal import make_console, make_progress

# Queries shown with their best images, images of each, bins of a histogram.
EXAMPLES, RANKED, BINS = 10, 10, 50
# Hexadecimal digits of a file's SHA-256 in the name of a result.
DIGITS = 12
# Images in the batch whose speed is measured.
SPEED_BATCH = 32
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow")


def evaluate(
    run_dir: Path, data_root: Path | None = None, device: str = "auto", ranks: Ranks = ONE_RANK
) -> tuple[Evaluation, bool]:
    """(contents of eval.json, True if computed now); data_root: where the data are now, if they were moved; device: as in
    `select_device`; ranks: processes that all call this and encode batches in turn.

    Raises FileNotFoundError for an untrained run, ValueError when eval.json was computed from a different checkpoint or the
    data is not the training data of the run, and what `read_dataset` raises.
    """
    run = Run(Path(run_dir))
    compute = partial(_evaluate, run)
    path = run.folder / EVALUATION
    return cached_result(path, read_evaluation, compute, data_root=data_root, device=device, ranks=ranks)


def result_name(protocol: Protocol, k: int, texts: TextFile | None = None) -> str:
    """Name of a protocol's result in the run folder: one for each set of parameters and each content of `texts`.

    Raises ValueError for texts with a protocol that reads none.
    """
    if texts is not None and protocol not in WITH_TEXTS:
        raise ValueError(f"--texts is for the protocols {' and '.join(WITH_TEXTS)}, got {texts.path} with {protocol}")
    if protocol == "dual":
        return EVALUATION
    parameter = f"-k{k}" if protocol == "rerank" and k != DEFAULT_K else ""
    return f"eval-{protocol}{parameter}{f'-{texts.sha256[:DIGITS]}' if texts else ''}.json"


def evaluate_protocol(
    run_dir: Path,
    protocol: Protocol,
    k: int,
    texts: TextFile | None = None,
    data_root: Path | None = None,
    device: str = "auto",
    ranks: Ranks = ONE_RANK,
) -> tuple[ProtocolEvaluation, bool]:
    """(contents of RUN/`result_name`, True if computed now); ranks: as in `evaluate`. Raises what `evaluate`, `result_name`,
    `measure` raise.

    Beside the file is NAME-queries.npz with the values of each query, as of `dual`, except for paired-audit. A result of other
    texts than the data has now is computed again.
    """

    def compute(trained: TrainedModel, dataset: Dataset) -> ProtocolEvaluation | None:
        started = time.perf_counter()
        with make_progress(make_console(stderr=True)) as bar:
            progress = partial(_advance, bar, bar.add_task(protocol, total=None))
            measured = measure(trained, dataset.splits["test"], protocol, k, progress, texts)
        if not ranks.first:
            return None
        if measured.queries is not None and measured.ids_Q is not None:
            _write_queries(path.with_name(f"{path.stem}-queries.npz"), measured.queries, measured.ids_Q)
        return replace(
            measured.result,
            data=_data(dataset),
            versions=_versions(trained.device),
            config=to_dict(trained.stored_config),
            seconds={"evaluation": time.perf_counter() - started},
        )

    def suffices(trained: TrainedModel, stored: ProtocolEvaluation) -> bool:
        return stored.texts is None or has_texts(trained, protocol, texts, stored.texts.sha256)

    path = Path(run_dir) / result_name(protocol, k, texts)
    read = partial(read_record, kind=ProtocolEvaluation)
    return cached_result(path, read, compute, suffices, data_root, device, ranks)


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _evaluate(run: Run, trained: TrainedModel, dataset: Dataset) -> Evaluation | None:
    started = time.perf_counter()
    before = Counter(bdam_fast.call_counts())
    ranks, records = trained.ranks, dataset.splits["test"]
    options = {"tokenizer": trained.tokenizer, "config": trained.config, "ranks": ranks}
    dual = embed_dual(trained.model, records, **options)
    validation = embed_dual(trained.model, dataset.splits["val"], **options)
    weights_G2 = _fusion_weights(trained, records)
    calls = sum(ranks.gather(Counter(bdam_fast.call_counts()) - before), Counter(run.calls))
    peak_mb = ranks.largest({"memory": peak_memory_mb(trained.device)})["memory"]
    if not ranks.first:
        return None
    metrics = dual.metrics(sorted({0.0, trained.beta}))
    checkpoint = file_digest(run.folder / "best.pt")
    write_record(run.folder / CALIBRATION, calibrate(validation, trained.beta, checkpoint))
    _write_queries(run.folder / QUERIES, metrics[trained.beta], dual.query_ids_Q)
    memory_mb = max(peak_mb, peak_memory_mb(trained.device))
    seconds = time.perf_counter() - started
    return Evaluation(
        metrics=metrics[trained.beta].mean(),
        metrics_beta0=metrics[0.0].mean(),
        beta=trained.beta,
        chance=chance_metrics(dual.query_ids_Q, dual.gallery_ids_G),
        ties=metrics[trained.beta].has_ties(),
        counts=Counts(queries=len(dual.captions), gallery=len(records), ids=len({r.id for r in records})),
        examples=_examples(trained.beta, dual, records),
        histograms=_histograms(dual, weights_G2),
        calls=dict(sorted(calls.items())),
        data=_data(dataset),
        versions=_versions(trained.device),
        config=to_dict(trained.stored_config),
        memory_mb=memory_mb,
        training_memory_mb=run.training_memory_mb,
        efficiency=_efficiency(trained, records),
        seconds={
            "training": sum(step.seconds for step in run.log.steps),
            "validation": sum(line["seconds"] for line in run.log.validations),
            "evaluation": seconds,
        },
    )


def _write_queries(path: Path, metrics: QueryMetrics, ids_Q: torch.Tensor) -> None:
    """Arrays ap and r1 (Q,) float32 in [0, 1] at the chosen beta, and ids (Q,) int64 of the person, in the split's order."""
    values_Q5 = metrics.values_Q5.float() / 100
    ap_Q, r1_Q = (values_Q5[:, METRICS.index(name)].numpy() for name in ("mAP", "R1"))
    with atomic(path) as file:
        np.savez_compressed(file, ap=ap_Q, r1=r1_Q, ids=ids_Q.numpy())


def _efficiency(trained: TrainedModel, records: Sequence[Record]) -> Efficiency:
    """`efficiency.measure` on the first images of the split with their first captions."""
    some = records[: min(SPEED_BATCH, trained.config.eval.batch_size)]
    images, _ = next(iter(iterate_images(some, trained.config.data, len(some))))
    texts = tokenize(trained.tokenizer, [record.captions[0] for record in some], trained.config.data.text_length)
    return efficiency.measure(trained.model, images.to(trained.device), texts.to(trained.device))


def _examples(beta: float, dual: DualEmbeddings, records: Sequence[Record]) -> list[Example]:
    """Queries evenly spread over the split, each with its best images."""
    total = len(dual.captions)
    chosen = sorted({round(i * (total - 1) / max(EXAMPLES - 1, 1)) for i in range(min(EXAMPLES, total))})
    examples = []
    for query, scores in zip(chosen, dual.similarity(beta, chosen), strict=True):
        own = records[int(dual.query_images_Q[query])]
        top = [(records[i], float(scores[i])) for i in scores.argsort(descending=True, stable=True)[:RANKED].tolist()]
        ranked = [
            RankedImage(file_path=record.file_path, id=record.id, score=score, correct=record.id == own.id)
            for record, score in top
        ]
        examples.append(Example(caption=dual.captions[query], file_path=own.file_path, id=own.id, results=ranked))
    return examples


@torch.inference_mode()
def _fusion_weights(trained: TrainedModel, records: Sequence[Record]) -> torch.Tensor | None:
    """The two fusion weights (G, 2) of each image with its first caption; None for a model without a fusion."""
    if trained.model.fusion is None:
        return None
    config, weights = trained.config, []
    for images, part in iterate_images(records, config.data, config.eval.batch_size, trained.ranks.turns):
        captions = [record.captions[0] for record in records[part]]
        texts = tokenize(trained.tokenizer, captions, config.data.text_length).to(trained.device)
        weights.append(trained.model.fuse(images.to(trained.device), texts).weights_B2.cpu())
    return torch.cat(trained.ranks.in_order(weights))


def _histograms(dual: DualEmbeddings, weights_G2: torch.Tensor | None) -> dict[str, Histogram | None]:
    """Histograms of g and 1 - g over the test images, and of the two fusion weights (Fig. 3); None for a part that the model
    does not have."""
    gate = dual.gate_GC
    image, text = (None, None) if weights_G2 is None else weights_G2.unbind(1)
    return {
        "gate_id": None if gate is None else _histogram(gate),
        "gate_clo": None if gate is None else _histogram(1.0 - gate),
        "fusion_image": None if image is None else _histogram(image),
        "fusion_text": None if text is None else _histogram(text),
    }


def _histogram(values: torch.Tensor) -> Histogram:
    numbers = values.double().numpy().ravel()
    counts, edges = np.histogram(numbers, bins=BINS, range=(0.0, 1.0))
    mean, std = float(numbers.mean()), float(numbers.std())
    return Histogram(edges=edges.tolist(), counts=counts.tolist(), mean=mean, std=std)


def _data(dataset: Dataset) -> DataSummary:
    counts = {
        name: {
            "ids": len({r.id for r in records}),
            "images": len(records),
            "captions": sum(len(r.captions) for r in records),
        }
        for name, records in dataset.splits.items()
    }
    return DataSummary(
        name=dataset.name,
        root=str(dataset.root),
        split=dataset.split,
        left_out=dataset.skipped_images,
        fingerprint=dataset.fingerprint,
        counts=counts,
    )


def _versions(device: torch.device) -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    host = {"python": platform.python_version(), "platform": platform.platform()}
    return {"bdam_fast": bdam_fast.__version__} | versions | host | machine_facts(device)
