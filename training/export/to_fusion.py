"""Export of a run's fusion as a package of torch.export, and its comparison with PyTorch.

Shapes: B pairs of image and text, T tokens, H, W pixels, P pairs that are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bdam_fast import _native
from bdam_fast.nn import Mamba
from training.data.datasets import Record
from training.data.loader import tokenize
from training.engine.checkpoint import TrainedModel
from training.evaluation.protocols.fusion_protocols import matching_logits
from training.export.fusion_package import LEAST_LENGTH, FusionPackage
from training.export.onnx_towers import OnnxTowers
from training.models.model import Model

# Images that are compared, each with two texts, and pairs at once, no divisor: the last batch has another size.
COMPARED, BATCH = 256, 60


class _Matcher(nn.Module):
    """Match (B,) of pairs, in units of the score, as `Embedder.match`: images float (B, 3, H, W), normalised; token ids and mask
    (1 token, 0 padding), int64 (B, T)."""

    temperature: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        # Fixed here: the model clamps its parameter at every call.
        self.register_buffer("temperature", model.temperature().detach().clone())

    def forward(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        model = self.model
        assert model.matching_head is not None
        text_BTC = model.text(input_ids, attention_mask)
        image_BPC = model.fused_tokens(model.bdam(model.visual(images)))
        fused = model.fuse_parts(image_BPC, text_BTC, attention_mask)
        return model.matching_head(fused.f_final_BE, model.embed_tokens(text_BTC, attention_mask)) * self.temperature


def has_fusion(run: TrainedModel) -> bool:
    """True for a model with a fusion and a matching head on it."""
    return run.model.matching_head is not None


def write_fusion(run: TrainedModel, path: Path) -> None:
    """Writes the package of a model that has a fusion, for any number of pairs and texts of LEAST_LENGTH tokens up to the
    run's longest. The model's parameters no longer require gradients. Raises RuntimeError where the operators of its layers are
    not built."""
    from torch.export import Dim

    config = run.config.data
    matcher = _Matcher(run.decoupling_model).eval().requires_grad_(False)
    texts = tokenize(run.tokenizer, ["a man in a red coat", "a woman with a bag and a hat"], config.text_length)
    pairs, length = Dim("pairs", min=1), Dim("length", min=LEAST_LENGTH, max=config.text_length)
    tokens = {0: pairs, 1: length}
    arguments = torch.randn(2, 3, *config.image_size), texts.input_ids_BT, texts.attention_mask_BT
    with _compiled_operators(matcher), torch.inference_mode(False), torch.no_grad():
        program = torch.export.export(matcher, arguments, dynamic_shapes=({0: pairs}, tokens, tokens))
    torch.export.save(program, path)


@contextmanager
def _compiled_operators(module: nn.Module) -> Iterator[None]:
    """Lets Mamba layers call the compiled operators: the reference is a loop over tokens, which holds for one length only."""
    layers = [part for part in module.modules() if isinstance(part, Mamba)]
    if layers:
        _native.extension()
    before = [layer.backend for layer in layers]
    try:
        for layer in layers:
            layer.backend = "cpu"
        yield
    finally:
        for layer, backend in zip(layers, before, strict=True):
            layer.backend = backend


def fusion_difference(run: TrainedModel, folder: Path, records: Sequence[Record]) -> tuple[int, float]:
    """Pairs that were compared, and the largest difference of their match from protocol `rerank` of the run: each image with its
    first caption and with that of the next image."""
    towers, package, records = OnnxTowers(folder, threads=1), FusionPackage(folder), list(records[:COMPARED])
    captions, count = [record.captions[0] for record in records], len(records)
    image_P = torch.arange(count).repeat(2)
    text_P = torch.cat([torch.arange(count), (torch.arange(count) + 1) % count])
    expected_P = matching_logits(run, records, captions, text_P, image_P) * run.model.temperature().detach().cpu()
    worst = 0.0
    for rows in torch.arange(2 * count).split(BATCH):
        paths = [records[i].path for i in image_P[rows].tolist()]
        pixels = np.stack([towers.read_image(path.read_bytes(), str(path)) for path in paths])
        tokens = towers.tokens([captions[i] for i in text_P[rows].tolist()])
        found = package.match(towers.normalised(pixels), *tokens, towers.facts.pad_id)
        worst = float(np.maximum(worst, np.abs(found - expected_P[rows].numpy()).max()))
    return 2 * count, worst
