"""What a model costs: parameters, FLOPs of one image-text pair, items a second with their spread, peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import bdam_fast
from bdam_fast.nn import Mamba
from training.data.loader import TextBatch
from training.engine.memory import peak_memory_mb as peak_memory_mb
from training.models.model import Model

# Repetitions of a timed call; fewer when they take longer than SECONDS together, at least three.
REPETITIONS = 15
SECONDS = 10.0


def measure(model: Model, images_BCHW: Tensor, texts: TextBatch) -> dict[str, Any]:
    """Cost of a model in evaluation mode, on a batch of images and as many texts.

    Keys: parameters {"total", "trained", "fusion"}; flops of one pair {"total", "image", "text", "fusion"}, a product and a
    sum counting two (bdam_fast.flops says what counts in the operators); speed {"images", "pairs"}: items a second through
    Model.embed_images and through Model.fuse, each {"median", "low", "high", "batch", "repetitions"}, low and high the 20th
    and the 80th percentile over repetitions, without decoding and tokenizing. Without a fusion its entries are 0 and
    "pairs" is None; flops is None where the kernels are not built.
    """
    speed = {"images": _speed(lambda: model.embed_images(images_BCHW), len(images_BCHW)), "pairs": None}
    if model.fusion is not None:
        speed["pairs"] = _speed(lambda: model.fuse(images_BCHW, texts), len(images_BCHW))
    one = TextBatch(texts.input_ids_BT[:1], texts.attention_mask_BT[:1])
    return {"parameters": _parameters(model), "flops": _flops(model, images_BCHW[:1], one), "speed": speed}


def _parameters(model: Model) -> dict[str, int]:
    def count(module: nn.Module | None) -> int:
        return 0 if module is None else sum(p.numel() for p in module.parameters())

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"total": count(model), "trained": trained, "fusion": count(model.fusion)}


@torch.inference_mode()
def _speed(call: Callable[[], object], items: int) -> dict[str, Any]:
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
    return {
        "median": statistics.median(rates),
        "low": low,
        "high": high,
        "batch": items,
        "repetitions": len(rates),
    }


@torch.no_grad()
def _flops(model: Model, image_1CHW: Tensor, text: TextBatch) -> dict[str, int] | None:
    """Of one image, one text and their fusion; the operators by their kernels, whichever backend the model runs."""
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
    # PyTorch's counter knows neither the CPU's fused attention nor its fused transformer layer: they count nothing.
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
    return counts | {"total": sum(counts.values())}
