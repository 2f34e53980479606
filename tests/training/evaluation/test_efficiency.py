"""Parameters and FLOPs counted by hand, and what a measurement must leave as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import bdam_fast
from bdam_fast import _native
from tests.support.models import batch, build, recommended
from training.data.loader import TextBatch
from training.engine.memory import peak_memory_mb
from training.evaluation.efficiency import measure
from training.models.model import Model
from training.utils.io import encode

pytestmark = pytest.mark.skipif(not _native.available(), reason="the compiled extension is not built")
# Of tests.support.models.recommended: width of the fusion, its inner channels, states, patches of both branches and text tokens.
W, E, N, L = 8, 16, 4, 2 * 8 + 12
DENSE, INNER = 2 * L * W, 2 * L * E
LAYER = {
    "none": 0,
    # Queries, keys and values; two products of L x L; output; feed-forward.
    "transformer": DENSE * 3 * W + 2 * (2 * L * L * W) + DENSE * W + 2 * DENSE * 4 * W,
    # in_proj, convolution of 4 taps with SiLU, x_proj and dt_proj of rank 1, scan, out_proj.
    "mamba": DENSE * 2 * E + L * E * (2 * 4 + 1) + INNER * (1 + 2 * N) + INNER + L * E * (7 * N + 7) + INNER * W,
}


def model_with(backend: str = "cpu", **fusion: object) -> Model:
    config, loss = recommended()
    return build(replace(config, backend=backend, fusion=replace(config.fusion, **fusion)), loss)


def cost(model: Model) -> dict:
    """`measure` as eval.json has it."""
    data = batch(4)
    texts = TextBatch(data.captions.input_ids_BT, data.captions.attention_mask_BT)
    return encode(measure(model, data.images_BCHW, texts))


@pytest.mark.parametrize("kind", LAYER)
@pytest.mark.parametrize("layers", [1, 3])
def test_flops_of_the_fusion_by_hand(kind: str, layers: int) -> None:
    full, without = cost(model_with(layers_kind=kind, layers=layers)), cost(model_with(layers_kind="none"))
    assert full["flops"]["fusion"] - without["flops"]["fusion"] == layers * LAYER[kind]
    assert {key: full["flops"][key] for key in ("image", "text")} == {
        key: without["flops"][key] for key in ("image", "text")
    }
    assert full["flops"]["total"] == sum(full["flops"][key] for key in ("image", "text", "fusion"))


def test_flops_of_the_text_encoder_by_hand() -> None:
    tokens, width = 12, 16
    layer = 2 * tokens * width * (3 * width + width + 8 * width) + 2 * (2 * tokens * tokens * width)
    mean, projection = 2 * tokens * width, 2 * width * 12
    assert cost(model_with())["flops"]["text"] == layer + mean + projection


def test_the_backend_does_not_change_the_count_and_comes_back() -> None:
    reference = model_with("reference")
    assert cost(reference)["flops"] == cost(model_with("cpu"))["flops"]
    assert {block.backend for block in reference.modules() if isinstance(block, bdam_fast.nn.Mamba)} == {"reference"}
    assert torch.backends.mha.get_fastpath_enabled()


def test_parameters_and_spread() -> None:
    model = model_with()
    model.text.requires_grad_(False)
    result = cost(model)
    assert result["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert result["parameters"]["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert result["parameters"]["fusion"] == sum(p.numel() for p in model.fusion.parameters())
    for speed in result["speed"].values():
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
        assert speed["batch"] == 4 and 3 <= speed["repetitions"] <= 15


def test_without_a_fusion_there_are_no_pairs() -> None:
    result = cost(model_with(enabled=False))
    assert result["speed"]["pairs"] is None
    assert result["parameters"]["fusion"] == result["flops"]["fusion"] == 0 < result["flops"]["image"]


def test_without_kernels_flops_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with("reference")
    monkeypatch.setattr(_native, "_attempt", lambda: (None, "gone"))
    assert cost(model)["flops"] is None


def test_peak_memory_grows_with_what_is_touched() -> None:
    before = peak_memory_mb(torch.device("cpu"))
    block = torch.ones(int(before + 64) * 2**18)
    assert peak_memory_mb(torch.device("cpu")) >= before + 32 and block.numel() > 0
