"""The patch of transformers: its report, unknown versions, backends, and texts continued from a cache."""

import logging
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import bdam_fast
from bdam_fast.compat import patch_transformers, unpatch_transformers
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
