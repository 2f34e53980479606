"""Cost of a model: parameters, FLOPs of one image-text pair, throughput with its spread, peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import bdam_fast
from bdam_fast.nn import Mamba
from training.data.loader import TextBatch
from training.evaluation.result import Efficiency, Flops, Parameters, Speed, Throughput
from training.models.retrieval_model import RetrievalModel

# Repetitions of a timed call; fewer when they take longer than SECONDS together, at least three.
REPETITIONS = 15
SECONDS = 10.0


def measure(model: RetrievalModel, images_BCHW: Tensor, texts: TextBatch) -> Efficiency:
    """Cost of a model in evaluation mode, on a batch of images and as many texts.

    FLOPs: one pair, a product and a sum counting two (bdam_fast.flops defines the count of the operators); None where the
    kernels are not built. Speed: images a second through Model.embed_images and pairs a second through Model.fuse, without
    decoding and tokenizing. Without a fusion its parameters and FLOPs are 0 and its speed is None.
    """
    images = _throughput(lambda: model.embed_images(images_BCHW), len(images_BCHW))
    pairs = None if model.fusion is None else _throughput(lambda: model.fuse(images_BCHW, texts), len(images_BCHW))
    one = TextBatch(texts.input_ids_BT[:1], texts.attention_mask_BT[:1])
    return Efficiency(
        parameters=_parameters(model),
        flops=_flops(model, images_BCHW[:1], one),
        speed=Speed(images=images, pairs=pairs),
    )


def _parameters(model: RetrievalModel) -> Parameters:
    def count(module: nn.Module | None) -> int:
        return 0 if module is None else sum(p.numel() for p in module.parameters())

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Parameters(total=count(model), trained=trained, fusion=count(model.fusion))


@torch.inference_mode()
def _throughput(call: Callable[[], object], items: int) -> Throughput:
    call()
    rates: list[float] = []
    started = time.perf_counter()
    while len(rates) < 3 or (len(rates) < REPETITIONS and time.perf_counter() - started < SECONDS):
        before = time.perf_counter()
        call()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        rates.append(items / (time.perf_counter() - before))
    low, *_, high = statistics.quantiles(rates, n=5, method="inclusive")
    median = statistics.median(rates)
    return Throughput(median=median, low=low, high=high, batch=items, repetitions=len(rates))


@torch.no_grad()
def _flops(model: RetrievalModel, image_1CHW: Tensor, text: TextBatch) -> Flops | None:
    """FLOPs of one image, one text and their fusion; operators are counted by their kernels, whichever backend runs."""
    try:
        bdam_fast.register_flop_formulas()
    except RuntimeError:
        return None
    parts: dict[str, Callable[[], object]] = {
        "image": lambda: model.embed_images(image_1CHW),
        "text": lambda: model.embed_texts(text),
    }
    if model.fusion is not None:
        parts["fusion"] = lambda: model.fuse(image_1CHW, text)
    blocks = [module for module in model.modules() if isinstance(module, Mamba)]
    backends = [block.backend for block in blocks]
    # PyTorch's counter ignores the CPU's fused attention and its fused transformer layer: they would count as 0.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counts = {"image": 0, "text": 0, "fusion": 0}
    try:
        for block in blocks:
            block.backend = "auto"
        for name, call in parts.items():
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                call()
            modules = counter.get_flop_counts()
            counts[name] = sum(modules["Fusion" if name == "fusion" else "Global"].values())
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for block, backend in zip(blocks, backends, strict=True):
            block.backend = backend
    return Flops(**counts, total=sum(counts.values()))
