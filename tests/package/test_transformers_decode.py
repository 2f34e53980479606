"""Decoding of a patched transformers model: its large layers take one row on all threads, and nothing else changes."""

import pytest
import torch
import torch.nn.functional as F

from bdam_fast.compat import patch_transformers, unpatch_transformers
from bdam_fast.integrations.transformers import one_row
from tests.support.operators.language_models import KINDS, PLAIN, model

transformers = pytest.importorskip("transformers")
LARGE = {"hidden_size": 256, "vocab_size": 512}
NEW = 5


@pytest.fixture(autouse=True)
def unpatched():
    yield
    unpatch_transformers()


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the weights that `one_row` has met."""
    met: list[tuple[int, ...]] = []
    own = one_row.one_row

    def counted(x, weight, bias):
        met.append(tuple(weight.shape))
        return own(x, weight, bias)

    monkeypatch.setattr(one_row, "one_row", counted)
    return met


def generate(network):
    prompt = torch.arange(1, 8)[None]
    return network.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )


@pytest.mark.parametrize("shape", [(48,), (1, 48), (1, 1, 48)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_one_row_is_the_linear_layer(shape, bias):
    x, weight, added = torch.randn(shape), torch.randn(24, 48), torch.randn(24) if bias else None
    exact = F.linear(x.double(), weight.double(), None if added is None else added.double())
    torch.testing.assert_close(one_row.one_row(x, weight, added).double(), exact, rtol=1e-5, atol=1e-5)


def test_same_bits_with_any_number_of_threads(kernels):
    x, weight = torch.randn(1, 1, 256), torch.randn(1024, 256)
    torch.set_num_threads(1)
    expected = one_row.one_row(x, weight, None)
    torch.set_num_threads(2)
    assert torch.equal(one_row.one_row(x, weight, None), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_one_row_and_says_the_same(calls, kind):
    network = model(kind, **LARGE).eval()
    expected = generate(network)
    assert calls == []
    patch_transformers()
    got = generate(network)
    assert torch.equal(got.sequences, expected.sequences)
    for ours, own in zip(got.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)
    heads = calls.count((LARGE["vocab_size"], LARGE["hidden_size"]))
    # The first token's logits come from the prompt's last row.
    assert heads == NEW and len(calls) > 2 * NEW


def test_layers_that_are_more_than_their_weights_are_called(calls):
    network, seen = model("mamba", **LARGE).eval(), []
    mixer = network.backbone.layers[0].mixer
    mixer.in_proj.register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    patch_transformers()
    generate(network)
    assert len(seen) == NEW and (mixer.in_proj.out_features, LARGE["hidden_size"]) in calls  # of the other layers


def test_hooks_of_all_modules_see_the_layers(calls):
    """As they do without the patch."""
    network, seen = model("mamba", **LARGE).eval(), []
    layers = {network.lm_head, *(layer.mixer.in_proj for layer in network.backbone.layers)}
    patch_transformers()
    with torch.nn.modules.module.register_module_forward_hook(lambda module, given, out: seen.append(module)):
        generate(network)
    assert calls == [] and all(seen.count(layer) == NEW for layer in layers)


def test_gradients_autocast_and_other_dtypes_take_the_layers_as_they_are(calls):
    network = model("mamba", **LARGE).eval()
    token = torch.ones(1, 1, dtype=torch.int64)
    patch_transformers()
    network(token).logits.sum().backward()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            network(token)
        network.bfloat16()(token)
    assert calls == []


def test_what_a_forward_sets_is_set_on_the_module(calls):
    def forward(self, x):
        self.calls_seen = getattr(self, "calls_seen", 0) + 1
        return self.lm_head(x)

    module = torch.nn.Module()
    module.lm_head = torch.nn.Linear(256, 512)
    with torch.no_grad():
        for _ in range(2):
            one_row.decoding(forward, "auto")(module, torch.ones(1, 256))
    assert module.calls_seen == 2 and calls == [(512, 256)] * 2


@pytest.mark.parametrize("kind", PLAIN)
def test_the_decoding_step_is_one_graph(kernels, kind):
    """Compiled, a step takes the layers as they are: the compiler has products of its own."""
    network = model(kind, **LARGE).eval()
    patch_transformers()
    prompt, token = torch.arange(1, 8)[None], torch.ones(1, 1, dtype=torch.int64)
    with torch.no_grad():
        caches = [network(prompt, use_cache=True).cache_params for _ in range(2)]
        expected = network(token, cache=caches[0], use_cache=True).logits
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        got = compiled(token, cache=caches[1], use_cache=True).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
