"""The published sizes, ViT-B/16 and BERT-base with random weights: training steps, one evaluation batch, peak memory."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from bench.harness.memory import resident_mib
from training.config import Config, EncoderConfig
from training.config.recipes import get_recipe
from training.data.loader import Batch, TextBatch
from training.engine.memory_estimate import estimate_memory
from training.engine.train_step import Stepper
from training.models.model import Model
from training.models.pretrained import IMAGE_SIZE

BASE = EncoderConfig(width=768, layers=12, heads=12, patch_size=16)
# Of bert-base-uncased.
VOCABULARY = 30522


def configuration(images: int, accumulate: int, checkpointing: bool, precision: str) -> Config:
    """Recipe cuhk-pedes with encoders of the published sizes and nothing to download; BERT with its own learning rate."""
    config = get_recipe("cuhk-pedes")
    per_id = config.data.images_per_id
    data = replace(config.data, image_size=IMAGE_SIZE, ids_per_batch=max(2, images // per_id))
    model = replace(config.model, visual=BASE, text=replace(BASE, lr_scale=config.model.text.lr_scale))
    optim = replace(config.optim, accumulate=accumulate, checkpointing=checkpointing, precision=precision)
    return replace(config, data=data, model=model, optim=optim)


def random_batch(config: Config, vocabulary: int, images: int) -> Batch:
    """Batch of noise images and texts of the full length, `images_per_id` rows of each identity."""
    g, length = torch.Generator().manual_seed(0), config.data.text_length

    def texts() -> TextBatch:
        return TextBatch(torch.randint(5, vocabulary, (images, length), generator=g), torch.ones(images, length).long())

    rows = torch.arange(images)
    return Batch(
        images_BCHW=torch.randn(images, 3, *config.data.image_size, generator=g),
        captions=texts(),
        identity=texts(),
        clothing=texts(),
        other=texts(),
        ids_B=rows // config.data.images_per_id,
        clothing_group_B=rows,
        paths=tuple(map(str, rows.tolist())),
    )


def run(config: Config, images: int, vocabulary: int = VOCABULARY) -> dict[str, float]:
    """Runs two training steps and one evaluation batch of `images` images and captions; prints and returns seconds, MiB, and
    the memory that `train` would have foreseen."""
    torch.manual_seed(0)
    model = Model(config.model, config.loss, config.data.image_size, vocabulary, 0, config.data.text_length)
    found: dict[str, float] = {}
    for name, part in (("visual encoder", model.visual), ("text encoder", model.text), ("whole model", model)):
        print(f"{name}: {sum(p.numel() for p in part.parameters()) / 1e6:.1f} M parameters")
    stepper, batch = Stepper(config, model.train()), random_batch(config, vocabulary, images)
    found["built_mib"] = resident_mib("VmRSS")
    # All that the estimate asks of a loader: nothing is kept, every text has the full length.
    loader: Any = SimpleNamespace(images=None, table=SimpleNamespace(lengths=torch.tensor([config.data.text_length])))
    estimate = estimate_memory(model, config, loader, found["built_mib"])
    found["estimate_mib"] = estimate.total
    print(f"estimate: {estimate}")
    # The optimiser makes its moments at the end of the first step: only the second has them beside its activations.
    stepper.run(batch, measure=True)
    started = time.perf_counter()
    step = stepper.run(batch, measure=True)
    found |= {
        "step_seconds": time.perf_counter() - started,
        "step_peak_mib": resident_mib("VmHWM"),
        "loss": step.loss,
    }
    optim = config.optim
    print(
        f"training step: {images} images, {3 * images} texts of {config.data.text_length} tokens, {optim.precision}, "
        f"{optim.accumulate} micro-batches, checkpointing {'on' if optim.checkpointing else 'off'}, norms of "
        f"{len(step.norms)} tasks: {found['step_seconds']:.1f} s, loss {step.loss:.3f}, peak {found['step_peak_mib']:.0f} MiB"
    )
    stepper.optimizer.zero_grad(set_to_none=True)
    model.eval()
    started = time.perf_counter()
    with torch.inference_mode():
        image, text = model.embed_images(batch.images_BCHW), model.embed_texts(batch.captions)
        score = (image.v_id_BE @ text.T).diagonal().mean()
    found |= {"evaluation_seconds": time.perf_counter() - started, "peak_mib": resident_mib("VmHWM")}
    print(
        f"evaluation batch: {images} images and {images} captions: {found['evaluation_seconds']:.1f} s, mean cosine of "
        f"the pairs {float(score):.3f}; peak of the process {found['peak_mib']:.0f} MiB"
    )
    return found
