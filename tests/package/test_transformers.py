"""Hugging Face transformers on the operators: logits, gradients, generated tokens, and what patching leaves alone."""

import copy
import inspect
import subprocess
import sys
import types

import pytest
import torch

import bdam_fast
from bdam_fast.compat import patch_transformers, unpatch_transformers
from bdam_fast.integrations.transformers import patch as patching
from tests.support import ROOT

transformers = pytest.importorskip("transformers")
KINDS = {
    "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM),
    "falcon": (transformers.FalconMambaConfig, transformers.FalconMambaForCausalLM),
}
OPTIONS = [{}, {"hidden_act": "gelu"}, {"use_conv_bias": False, "use_bias": True, "conv_kernel": 3}]


@pytest.fixture(autouse=True)
def unpatched():
    yield
    unpatch_transformers()


def model(kind, dtype=torch.float32, **options):
    config, network = KINDS[kind]
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    return network(config(**{**sizes, **ends, **options})).to(dtype).eval()


def batch(length=9):
    """Tokens (3, L), and the mask of a batch padded on the left."""
    ids, mask = torch.randint(1, 61, (3, length)), torch.ones(3, length, dtype=torch.long)
    mask[1, :4] = mask[2, :1] = 0
    return ids, mask


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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
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
    assert grads.keys() == expected[2].keys() and "backbone.layers.0.mixer.A_log" in grads
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[2][name], rtol=1e-3, atol=1e-6, msg=name)
    counts = {name: count for name, count in bdam_fast.call_counts().items() if count}
    layers, parallel, steps = 2, 3, 5  # logits, prefill and training; five of six tokens come from a step each
    assert counts == {
        "causal_conv1d.cpu.forward": layers * parallel,
        "causal_conv1d.cpu.backward": layers,
        "selective_scan.cpu.forward": layers * parallel,
        "selective_scan.cpu.backward": layers,
        "causal_conv1d_update.cpu.forward": layers * steps,
        "selective_state_update.cpu.forward": layers * steps,
    }


@pytest.mark.parametrize("kind", KINDS)
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


def attributes():
    """Everything that patching may touch: every attribute of the two modules and of their mixers."""
    found = {}
    for family, name in patching.MIXERS.items():
        module = patching._modeling(family)
        for owner in (module, getattr(module, name)):
            found |= {(owner.__name__, n): v for n, v in vars(owner).items()}
    return found


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


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("nothing", "causal_conv1d_fn is missing or has other arguments"),
        ("arguments", "FalconMambaMixer.slow_forward has other arguments"),
        ("absent", "modeling_falcon_mamba"),
    ],
)
def test_unknown_versions_raise_and_change_nothing(monkeypatch, case, what):
    before = attributes()
    module = types.ModuleType("modeling_falcon_mamba")
    if case == "arguments":

        class FalconMambaMixer:
            def slow_forward(self, something_else):
                raise AssertionError("only its signature is read")

        module.FalconMambaMixer = FalconMambaMixer
    path = "transformers.models.falcon_mamba.modeling_falcon_mamba"
    monkeypatch.setitem(sys.modules, path, None if case == "absent" else module)
    text = rf"transformers must have the Mamba models of .* as known here, got version {transformers.__version__} \(.*{what}"
    with pytest.raises(RuntimeError, match=text):
        patch_transformers()
    monkeypatch.undo()
    after = attributes()
    assert all(after[n] is before[n] for n in before)


def test_without_transformers_the_error_names_the_remedy():
    code = "import sys; sys.modules['transformers'] = None; from bdam_fast import compat; compat.patch_transformers()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "patch_transformers: transformers must be installed, got none; run `pip install transformers`" in done.stderr
    assert done.returncode != 0
