"""Hugging Face transformers on the operators: logits, gradients, generated tokens, and what patching leaves alone."""

import copy
import inspect
import subprocess
import sys

import pytest
import torch

import bdam_fast
from bdam_fast.compat import patch_transformers, unpatch_transformers
from bdam_fast.integrations.transformers import patch as patching
from tests.support import ROOT
from tests.support.operators.language_models import KINDS, PLAIN, attributes, batch, model

transformers = pytest.importorskip("transformers")
OPTIONS = [{}, {"hidden_act": "gelu"}, {"use_conv_bias": False, "use_bias": True, "conv_kernel": 3}]


@pytest.fixture(autouse=True)
def unpatched():
    yield
    unpatch_transformers()


def run(network, ids, mask, new=6, **options):
    """Logits, tokens, and the loss's gradient of every parameter."""
    network.eval()
    with torch.no_grad():
        logits = network(ids, attention_mask=mask).logits
    tokens = network.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, **options)
    network.train()
    network.zero_grad()
    network(ids, attention_mask=mask, labels=ids).loss.backward()
    return logits, tokens, {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "options"), [(k, o) for k in KINDS for o in OPTIONS if k in PLAIN or not o], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_same_results_on_the_operators(kernels, kind, padded, options):
    network = model(kind, **options)
    ids, mask = batch()
    mask = mask if padded else torch.ones_like(mask)
    expected = run(network, ids, mask)
    patch_transformers()
    bdam_fast.reset_call_counts()
    logits, tokens, grads = run(network, ids, mask)
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(tokens, expected[1])
    assert grads.keys() == expected[2].keys() and any(name.endswith("A_log") for name in grads)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[2][name], rtol=1e-3, atol=1e-6, msg=name)
    counts = {name: count for name, count in bdam_fast.call_counts().items() if count}
    layers, scans = KINDS[kind][3:]
    parallel, steps = 3, 5  # logits, prefill and training; five of six tokens come from a step each
    assert counts == {
        "causal_conv1d.cpu.forward": layers * parallel,
        "causal_conv1d.cpu.backward": layers,
        "selective_scan.cpu.forward": scans * parallel,
        "selective_scan.cpu.backward": scans,
        "causal_conv1d_update.cpu.forward": layers * steps,
        "selective_state_update.cpu.forward": scans * steps,
    }


@pytest.mark.parametrize("kind", PLAIN)
def test_bfloat16(kernels, kind):
    """No further from float32 than the models' own functions are, twice over."""
    ids, mask = batch()
    exact = run(model(kind), ids, mask)[0]
    network = model(kind, torch.bfloat16)
    own = run(network, ids, mask)[0]
    patch_transformers()
    ours = run(network, ids, mask)[0]
    assert ours.dtype == own.dtype
    assert (ours - exact).abs().max() <= 2 * (own - exact).abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_new_instances_too_and_beam_search(kernels, kind):
    network = model(kind)
    ids, mask = batch()
    expected = run(network, ids, mask, num_beams=2)
    patch_transformers()
    fresh = model(kind)
    fresh.load_state_dict(network.state_dict())
    for other in (fresh, copy.deepcopy(network)):
        logits, tokens, _ = run(other, ids, mask, num_beams=2)
        torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(tokens, expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_one_by_one_are_the_whole(kernels, kind):
    """The cache that generate() fills: its decoding agrees with the logits of the whole text."""
    patch_transformers()
    network = model(kind)
    ids, _ = batch()
    tokens = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    with torch.no_grad():
        logits = network(tokens).logits
    assert torch.equal(logits[:, 8:-1].argmax(-1), tokens[:, 9:])


def test_unpatching_restores_every_identity():
    before = attributes()
    patch_transformers()
    once = attributes()
    assert any(once[n] is not before[n] for n in before)
    patch_transformers()
    assert all(attributes()[n] is once[n] for n in once)
    for _ in range(2):
        unpatch_transformers()
        after = attributes()
        assert after.keys() == before.keys() and all(after[n] is before[n] for n in before)


def test_other_devices_keep_the_models_own_functions():
    patch_transformers()
    network = model("mamba").to("meta")
    bdam_fast.reset_call_counts()
    with torch.no_grad():
        assert network(torch.ones(1, 5, dtype=torch.long, device="meta")).logits.shape == (1, 5, 61)
    assert not any(bdam_fast.call_counts().values())


def test_functions_that_kernels_wraps_are_recognised():
    """The `kernels` package makes a module of a function, whose `forward` carries the function's signature."""

    class Wrapped(torch.nn.Module):
        def forward(self, *args, **kwargs):
            raise AssertionError("only its signature is read")

    def function(x, weight, bias=None, **kwargs):
        raise AssertionError("only its signature is read")

    own = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    Wrapped.forward.__signature__ = inspect.Signature([*own, *inspect.signature(function).parameters.values()])
    assert patching._parameters(Wrapped()) == patching._parameters(function) == ["x", "weight", "bias"]
    assert patching._parameters(None) == []


def test_without_transformers_the_error_names_the_remedy():
    code = "import sys; sys.modules['transformers'] = None; from bdam_fast import compat; compat.patch_transformers()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "patch_transformers: transformers must be installed, got none; run `pip install transformers`" in done.stderr
    assert done.returncode != 0
