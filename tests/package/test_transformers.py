"""Hugging Face transformers on the operators: logits, gradients, generated tokens, and what patching leaves alone."""

import copy
import importlib
import inspect
import logging
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import bdam_fast
from bdam_fast.compat import patch_transformers, unpatch_transformers
from bdam_fast.integrations.transformers import patch as patching
from tests.support import ROOT

transformers = pytest.importorskip("transformers")
# Config and model, the sizes by their own names, and the sum over layers of Mamba's mixers and of their heads.
ATTENTION = {"num_attention_heads": 4, "intermediate_size": 48, "mamba_d_state": 8}
ONE = {"num_hidden_layers": 2, "state_size": 8}
KINDS = {
    "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM, ONE, 2, 2),
    "falcon": (transformers.FalconMambaConfig, transformers.FalconMambaForCausalLM, ONE, 2, 2),
    "jamba": (
        *(transformers.JambaConfig, transformers.JambaForCausalLM),
        ATTENTION
        | {"num_hidden_layers": 3, "num_key_value_heads": 2, "attn_layer_period": 3, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1},
        *(2, 2),
    ),
    "zamba": (
        *(transformers.ZambaConfig, transformers.ZambaForCausalLM),
        ATTENTION
        | {"num_hidden_layers": 4, "num_key_value_heads": 4, "n_mamba_heads": 2, "mamba_dt_rank": 2}
        | {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
        *(4, 8),
    ),
}
# Mamba's and FalconMamba's own names for what the mixer may have.
PLAIN = ("mamba", "falcon")
OPTIONS = [{}, {"hidden_act": "gelu"}, {"use_conv_bias": False, "use_bias": True, "conv_kernel": 3}]


@pytest.fixture(autouse=True)
def unpatched():
    yield
    unpatch_transformers()


def model(kind, dtype=torch.float32, **options):
    config, network, own, _, _ = KINDS[kind]
    sizes = {"vocab_size": 61, "hidden_size": 32} | own
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    made = network(config(**{**sizes, **ends, **options}))
    for name, parameter in made.named_parameters():
        if kind == "zamba" and "mamba" in name and "proj" in name:  # some are zero at first: then no state matters
            parameter.data.normal_(0, 0.2)
    return made.to(dtype).eval()


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


def attributes():
    """Everything that patching may touch: every attribute of the two modules and of their mixers."""
    found = {}
    for family, name in patching.MIXERS.items():
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
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


def unknown(monkeypatch, family, case):
    """Puts a module of another version in place of a family's."""
    mixer = patching.MIXERS[family]
    module = types.ModuleType(f"modeling_{family}")
    if case == "arguments":

        class Mixer:
            def slow_forward(self, something_else):
                raise AssertionError("only its signature is read")

        setattr(module, mixer, Mixer)
    elif case == "functions":
        setattr(module, mixer, type(mixer, (), {}))
    path = f"transformers.models.{family}.modeling_{family}"
    monkeypatch.setitem(sys.modules, path, None if case == "absent" else module)


CASES = [
    ("nothing", "FalconMambaMixer is missing"),
    ("functions", "is missing or has other arguments"),
    ("arguments", "FalconMambaMixer.slow_forward has other arguments, or is not known"),
    ("absent", "modeling_falcon_mamba"),
]


@pytest.mark.parametrize(("case", "what"), CASES)
def test_an_unknown_family_is_left_and_reported(monkeypatch, caplog, case, what):
    unknown(monkeypatch, "falcon_mamba", case)
    with caplog.at_level(logging.INFO):
        patched = patch_transformers()
    assert patched.covered == ("mamba", "jamba", "zamba") and what in patched.left["falcon_mamba"]
    assert "falcon_mamba is left on its own functions" in caplog.text and what in caplog.text
    assert "mamba, jamba, zamba run on the operators" in caplog.text


def test_unknown_versions_raise_and_change_nothing(monkeypatch):
    before = attributes()
    for family in patching.MIXERS:
        unknown(monkeypatch, family, "nothing")
    text = rf"must have the Mamba models of .* as known here, got version {transformers.__version__} \(mamba: MambaMixer is"
    with pytest.raises(RuntimeError, match=text):
        patch_transformers()
    monkeypatch.undo()
    after = attributes()
    assert all(after[n] is before[n] for n in before)


def test_the_report_names_every_family():
    patched = patch_transformers()
    assert patched.covered == tuple(patching.MIXERS)
    assert patched.left.keys() <= set(patching.OTHERS) and "mamba2" in patched.left
    assert patch_transformers() is patched


def test_no_model_of_transformers_is_forgotten():
    """Whatever has a selective scan of Mamba-1 in its source is in the table."""
    folder = Path(transformers.__file__).parent / "models"
    scans = re.compile(r"^def mamba_selective_scan|import .*selective_scan_fn", re.MULTILINE)
    found = {p.parent.name for p in folder.glob("*/modeling_*.py") if scans.search(p.read_text())}
    assert found == set(patching.MIXERS)


@pytest.mark.parametrize("kind", KINDS)
def test_backend(kernels, kind):
    """The models run on the backend that is asked for; another one later takes its place."""
    ids, mask = batch()
    network = model(kind)
    expected = network(ids, attention_mask=mask).logits
    for backend in ("reference", "cpu"):
        patch_transformers(backend=backend)
        bdam_fast.reset_call_counts()
        torch.testing.assert_close(network(ids, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-5)
        used = {name.split(".")[1] for name, count in bdam_fast.call_counts().items() if count}
        assert used == {backend}
    with pytest.raises(
        ValueError, match="patch_transformers: backend must be one of auto, cuda, triton, cpu, reference"
    ):
        patch_transformers(backend="fast")


@pytest.mark.parametrize("kind", KINDS)
def test_several_tokens_continued_from_a_cache(kernels, kind):
    """As in speculative decoding and chats: a text in pieces gives the logits of the whole."""
    network, (ids, _) = model(kind), batch(12)

    def pieces():
        cache, logits = None, []
        for part in ids.split([5, 4, 1, 2], dim=1):
            out = network(part, use_cache=True, cache=cache)
            cache = out.cache
            logits.append(out.logits)
        return torch.cat(logits, 1)

    with torch.no_grad():
        whole = network(ids).logits
        lost = (pieces() - whole).abs().max()
        patch_transformers(continue_cache=True)
        bdam_fast.reset_call_counts()
        repaired = (pieces() - whole).abs().max()
        assert bdam_fast.call_counts()["selective_scan.cpu.forward"] == 3 * KINDS[kind][4]
        torch.testing.assert_close(network(ids).logits, whole, rtol=1e-4, atol=1e-5)
    assert repaired < 1e-5 and lost > 50 * repaired  # else transformers repairs this itself by now


def test_without_transformers_the_error_names_the_remedy():
    code = "import sys; sys.modules['transformers'] = None; from bdam_fast import compat; compat.patch_transformers()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "patch_transformers: transformers must be installed, got none; run `pip install transformers`" in done.stderr
    assert done.returncode != 0
