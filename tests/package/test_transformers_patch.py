"""The patch of transformers: its report, unknown versions, backends, texts continued from a cache, and mixers up to 5.15."""

import logging
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import bdam_fast
from bdam_fast.compat import patch_transformers, unpatch_transformers
from bdam_fast.integrations.transformers import mamba
from bdam_fast.integrations.transformers import patch as patching
from tests.support.operators.language_models import KINDS, attributes, batch, model

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def unpatched():
    yield
    unpatch_transformers()


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


WIDTH, CHANNELS, STATES, RANK = 4, 8, 3, 2


class CacheByPosition:
    """One layer's states, filled as transformers 4.57's MambaCache fills them."""

    def __init__(self):
        self.conv_states = [torch.zeros(2, CHANNELS, WIDTH)]
        self.ssm_states = [torch.zeros(2, CHANNELS, STATES)]

    def update_conv_state(self, index, entries, position):
        state = self.conv_states[index].roll(-1, -1)
        state[:, :, position.clamp(0, WIDTH - 1)] = entries
        self.conv_states[index].copy_(state)
        return self.conv_states[index]


class Mixer(nn.Module):
    """The arithmetic of a mixer's own slow_forward up to 5.15."""

    layer_idx, conv_kernel_size, ssm_state_size, time_step_rank = 0, WIDTH, STATES, RANK

    def __init__(self, activation="silu"):
        super().__init__()
        self.activation, self.act = activation, {"silu": F.silu, "relu": F.relu}[activation]
        self.in_proj, self.out_proj = nn.Linear(6, 2 * CHANNELS), nn.Linear(CHANNELS, 6)
        self.conv1d = nn.Conv1d(CHANNELS, CHANNELS, WIDTH, groups=CHANNELS, padding=WIDTH - 1)
        self.x_proj = nn.Linear(CHANNELS, RANK + 2 * STATES, bias=False)
        self.dt_proj = nn.Linear(RANK, CHANNELS)
        self.A_log, self.D = nn.Parameter(torch.randn(CHANNELS, STATES)), nn.Parameter(torch.ones(CHANNELS))

    def slow_forward(self, input_states, cache_params=None, cache_position=None, attention_mask=None):
        x, gate = self.in_proj(input_states).transpose(1, 2).chunk(2, 1)
        length, state = x.shape[2], x.new_zeros(len(x), CHANNELS, STATES)
        if cache_params is not None and cache_position.shape[0] != WIDTH:
            state = cache_params.ssm_states[0].clone()
            window = cache_params.update_conv_state(0, x, cache_position)
            x = self.act((window * self.conv1d.weight[:, 0]).sum(-1) + self.conv1d.bias).unsqueeze(-1)
        else:
            if cache_params is not None:
                cache_params.update_conv_state(0, F.pad(x, (WIDTH - length, 0)), cache_position)
            x = self.act(self.conv1d(x)[..., :length])
        step, B, C = self.x_proj(x.transpose(1, 2)).split([RANK, STATES, STATES], -1)
        step, outs = F.softplus(self.dt_proj(step)), []
        for t in range(length):
            decay = torch.exp(step[:, t, :, None] * -torch.exp(self.A_log))
            state = decay * state + (step[:, t] * x[:, :, t])[:, :, None] * B[:, t, None]
            outs.append((state * C[:, t, None]).sum(-1))
        if cache_params is not None:
            cache_params.ssm_states[0].copy_(state)
        y = (torch.stack(outs, -1) + x * self.D[:, None]) * self.act(gate)
        return self.out_proj(y.transpose(1, 2))


class Patched(Mixer):
    slow_forward = mamba.slow_forward(SimpleNamespace(), Mixer.slow_forward, "auto")


class LowRank(nn.Conv1d):
    """Weights and a product of two small matrices, which a call adds."""

    def __init__(self, base):
        super().__init__(CHANNELS, CHANNELS, WIDTH, groups=CHANNELS, padding=WIDTH - 1)
        self.load_state_dict(base.state_dict())
        self.down, self.up = nn.Parameter(torch.randn(2, WIDTH)), nn.Parameter(torch.randn(CHANNELS, 2))

    def forward(self, x):
        weight = self.weight + (self.up @ self.down).unsqueeze(1)
        return F.conv1d(x, weight, self.bias, padding=self.padding, groups=CHANNELS)


class Wrapped(nn.Module):
    """A layer that shows no weights of its own."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return 2 * self.base(x)


def hooked(layer):
    layer.register_forward_hook(lambda module, args, out: 3 * out)
    return layer


def own_forward(layer):
    layer.forward = lambda x: -nn.Conv1d.forward(layer, x)
    return layer


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", amount=0.5)


CHANGES = [lambda layer: layer, LowRank, Wrapped, hooked, own_forward, pruned]
NAMES = ["plain", "low rank", "wrapped", "hooked", "own forward", "pruned"]


def mixers(change, activation):
    """A mixer as it is and one on the operators, with the same parameters."""
    made = []
    for kind in (Mixer, Patched):
        torch.manual_seed(1)
        mixer = kind(activation)
        mixer.conv1d = change(mixer.conv1d)
        made.append(mixer)
    return made


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_a_convolution_that_is_more_than_its_weights(kernels, change, activation):
    hidden, results = torch.randn(2, 7, 6), []
    for mixer in mixers(change, activation):
        bdam_fast.reset_call_counts()
        for _ in range(2):  # a second backward needs a graph of its own
            out = mixer.slow_forward(hidden)
            out.square().sum().backward()
        results.append((out, [p.grad for p in mixer.parameters()]))
    assert bdam_fast.call_counts()["selective_scan.cpu.forward"] == 2
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-5)
    assert all(grad is not None for grad in results[1][1])
    for got, expected in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
@pytest.mark.parametrize("length", [2, 7])
@torch.no_grad()
def test_a_prompt_and_steps_of_such_a_convolution(kernels, change, activation, length):
    """A step reads the weights alone, which is what the mixers do: an error where they have one."""
    hidden, results, states = torch.randn(2, length + 3, 6), [], []
    for mixer in mixers(change, activation):
        cache = CacheByPosition()
        outs = [mixer.slow_forward(hidden[:, :length], cache, torch.arange(WIDTH))]
        for t in range(length, length + 3):
            step = (hidden[:, t : t + 1], cache, torch.tensor([WIDTH + t - length]))  # as generate() counts
            if change is Wrapped:
                with pytest.raises(AttributeError, match="weight"):
                    mixer.slow_forward(*step)
            else:
                outs.append(mixer.slow_forward(*step))
        results.append(torch.cat(outs, 1))
        states.append((cache.conv_states[0], cache.ssm_states[0]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)
