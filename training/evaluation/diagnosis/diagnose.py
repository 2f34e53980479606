"""Diagnosis of a trained run on a fixed sample of the validation split; see `diagnosis_result` for its parts and bounds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.data.datasets import Dataset, Record, descriptions_path, with_texts
from training.engine.checkpoint import TrainedModel, build_model
from training.engine.losses import info_nce
from training.evaluation.cached_result import cached_result
from training.evaluation.diagnosis.diagnosis_result import (
    DIAGNOSIS,
    Diagnosis,
    InfoNce,
    MatchingHead,
    OwnCaption,
    Sample,
    TaskGradient,
    TextSearch,
)
from training.evaluation.diagnosis.loss_gradients import batches, fill_batches, loss_gradients, new_model
from training.evaluation.dual import DualEmbeddings, embed_dual
from training.evaluation.metrics import chance_metrics, embedding_metrics
from training.evaluation.protocols.fusion_protocols import fused_pairs, matching_logits
from training.evaluation.run_folder import Run
from training.models.model_outputs import hard_negatives, negative_indices
from training.utils.io import read_record

# Images of the sample, whole people or not: the first ones of the split.
IMAGES = 512


def diagnose(run_dir: Path, data_root: Path | None = None, device: str = "auto") -> tuple[Diagnosis, bool]:
    """(contents of RUN/diagnosis.json, True if computed now). Raises as `run_evaluation.evaluate`."""
    run = Run(Path(run_dir))
    read, compute = partial(read_record, kind=Diagnosis), partial(_diagnose, run)
    return cached_result(run.folder / DIAGNOSIS, read, compute, data_root=data_root, device=device)


def _diagnose(run: Run, trained: TrainedModel, dataset: Dataset) -> Diagnosis:
    steps = run.log.steps
    return measure_diagnosis(trained, dataset, steps[-1].weights if steps else {})


def measure_diagnosis(trained: TrainedModel, dataset: Dataset, weights: dict[str, float]) -> Diagnosis:
    """The diagnosis of a model; weights: the task weights at the end of its training.

    Generated texts are those of the validation images where the file of texts has them, as on rendered sets, otherwise
    of training images.
    """
    started, split = time.perf_counter(), "val"
    sample = dataset.splits["val"][:IMAGES]
    described = with_texts(dataset.splits["val"], trained.config.data)[:IMAGES]
    if not fill_batches(described, trained.config):
        split, described = "train", dataset.splits["train"][:IMAGES]
    parts = batches(dataset, described, trained.tokenizer, trained.config)
    first = [replace(record, captions=record.captions[:1]) for record in sample]
    dual = embed_dual(trained.model, first, trained.tokenizer, trained.config)
    data = trained.config.data
    texts = None if data.captions_only else str(descriptions_path(data))
    return Diagnosis(
        sample=_sample("val", sample),
        described=_sample(split, described, texts),
        tasks=_tasks(trained, parts, weights),
        own_caption=_own_caption(trained, first, dual),
        matching=_matching(trained, first, dual),
        search=_search(trained, described),
        info_nce=_info_nce(trained, dual),
        seconds=time.perf_counter() - started,
    )


def _sample(split: str, records: Sequence[Record], texts: str | None = None) -> Sample:
    return Sample(split=split, images=len(records), ids=len({record.id for record in records}), texts=texts)


def _tasks(trained: TrainedModel, parts: Sequence[Any], weights: dict[str, float]) -> dict[str, TaskGradient]:
    config, tokenizer = trained.config, trained.tokenizer
    fresh = new_model(config, tokenizer, build_model).to(trained.device)
    start, end = (loss_gradients(model, parts, config) for model in (fresh, trained.model))
    return {
        name: TaskGradient(
            loss_start=start[name][0],
            loss_end=loss,
            norm_start=start[name][1],
            norm_end=norm,
            weight=weights.get(name),
        )
        for name, (loss, norm) in end.items()
    }


def _others(dual: DualEmbeddings) -> Tensor | None:
    """Position of an image of another person for each image; None for a sample of one person."""
    return negative_indices(dual.gallery_ids_G)


def _own_caption(trained: TrainedModel, records: Sequence[Record], dual: DualEmbeddings) -> OwnCaption | None:
    others = _others(dual)
    if trained.model.fusion is None or others is None:
        return None
    own = torch.arange(len(records))

    def found(image_Q: Tensor) -> float:
        scores_QQ = fused_pairs(trained, records, dual.captions, image_Q) @ dual.t_QE.T
        # Of equal captions none is the first: each has its part of the hit.
        best_QQ = scores_QQ >= scores_QQ.amax(1, keepdim=True)
        return 100.0 * float((best_QQ[own, own] / best_QQ.sum(1)).mean())

    return OwnCaption(right_image=found(own), wrong_image=found(others), chance=100.0 / len(records))


def _matching(trained: TrainedModel, records: Sequence[Record], dual: DualEmbeddings) -> MatchingHead | None:
    others, ids = _others(dual), dual.gallery_ids_G
    if trained.model.matching_head is None or others is None:
        return None
    hard = hard_negatives(dual.similarity(trained.beta), ids)
    assert hard is not None
    own = torch.arange(len(records))
    images = torch.cat([own, others, hard])
    logits = matching_logits(trained, records, dual.captions, own.repeat(3), images)
    right, wrong, similar = logits.chunk(3)
    return MatchingHead(auc_random=auc(right, wrong), auc_hard=auc(right, similar))


def auc(right_N: Tensor, wrong_M: Tensor) -> float:
    """Probability that a right pair scores higher than a wrong one, ties counting half."""
    right_N1, wrong_1M = right_N[:, None], wrong_M[None]
    return float((right_N1 > wrong_1M).double().mean() + (right_N1 == wrong_1M).double().mean() / 2)


def _search(trained: TrainedModel, described: Sequence[Record]) -> TextSearch | None:
    if trained.config.data.captions_only:
        return None
    asked = [replace(record, captions=(record.identity, record.clothing)) for record in described]
    dual = embed_dual(trained.model, asked, trained.tokenizer, trained.config)
    ids = dual.gallery_ids_G

    def r1(text_QE: Tensor, image_GE: Tensor) -> float:
        return embedding_metrics(text_QE, image_GE, ids, ids)[0.0].mean()["R1"]

    identity_QE, clothing_QE = dual.t_QE[0::2], dual.t_QE[1::2]
    return TextSearch(
        identity_v_id=r1(identity_QE, dual.v_id_GE),
        clothing_v_id=r1(clothing_QE, dual.v_id_GE),
        clothing_v_clo=None if dual.v_clo_GE is None else r1(clothing_QE, dual.v_clo_GE),
        chance=chance_metrics(ids, ids)["R1"],
    )


def _info_nce(trained: TrainedModel, dual: DualEmbeddings) -> InfoNce:
    """Own captions as positives, other images of the person left out, in batches of the size of training."""
    image_GE = dual.v_id_GE if dual.v_clo_GE is None else dual.v_id_GE + dual.v_clo_GE
    data, ids, tau = trained.config.data, dual.gallery_ids_G, float(trained.model.temperature().detach())
    size = data.ids_per_batch * data.images_per_id or data.batch_size
    # Neighbours in the split show one person; a fixed order mixes them.
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    # Embeddings that are all zero tell nothing.
    losses = []
    for images in (image_GE, torch.zeros_like(image_GE)):
        parts = [(images[rows], dual.t_QE[rows], ids[rows]) for rows in order.split(size)]
        values = [len(part[2]) * float(info_nce(*part, tau, symmetric=True, positives="own")) for part in parts]
        losses.append(sum(values) / len(ids))
    return InfoNce(loss=losses[0], chance=losses[1])
