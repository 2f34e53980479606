"""bdam_fast.nn.Mamba step by step: states, decoding, copies of a block, and checkpoints of other implementations."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor

import bdam_fast
from bdam_fast import compat
from bdam_fast.nn import Mamba

pytestmark = pytest.mark.usefixtures("kernels")
BACKENDS = ["cpu", "reference"]


def decode(block: Mamba, hidden: Tensor, states: tuple[Tensor, Tensor]) -> Tensor:
    """The block applied step by step, continuing from `states`, which are updated."""
    outs = []
    for t in range(hidden.shape[1]):
        out, *after = block.step(hidden[:, t : t + 1], *states)
        assert after[0] is states[0] and after[1] is states[1]
        outs.append(out)
    return torch.cat(outs, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"d_state": 5, "d_conv": 2, "bias": True, "conv_bias": False}], ids=str)
def test_steps_are_the_parallel_form(backend, options):
    block = Mamba(24, backend=backend, **options)
    hidden = torch.randn(2, 11, 24)
    with torch.no_grad():
        out = decode(block, hidden, block.allocate_inference_cache(2))
        torch.testing.assert_close(out, block(hidden), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prefill", [1, 2, 3, 4, 7])
def test_prefill_and_steps_are_the_parallel_form(backend, prefill):
    block = Mamba(24, backend=backend)
    hidden = torch.randn(2, 11, 24)
    with torch.no_grad():
        first, states = block(hidden[:, :prefill], return_states=True)
        out = torch.cat([first, decode(block, hidden[:, prefill:], states)], 1)
        torch.testing.assert_close(out, block(hidden), rtol=1e-5, atol=1e-6)
        after, ends = block(hidden, return_states=True)
        torch.testing.assert_close(states[0][:, :, 1:], ends[0][:, :, 1:])
        torch.testing.assert_close(states[1], ends[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_two_parts_are_the_whole(reverse):
    block = Mamba(24)
    hidden = torch.randn(2, 11, 24)
    parts = hidden.split((4, 7), 1)[:: -1 if reverse else 1]
    first, states = block(parts[0], reverse=reverse, return_states=True)
    second = block(parts[1], reverse=reverse, initial_states=states)
    whole = torch.cat([first, second] if not reverse else [second, first], 1)
    torch.testing.assert_close(whole, block(hidden, reverse=reverse), rtol=1e-5, atol=1e-6)


def test_gradients_through_the_states():
    """Decoding with gradients gives those of the parallel form."""
    block = Mamba(16, d_state=4)
    hidden = torch.randn(2, 5, 16)
    grads = []
    for function in (block, lambda h: decode(block, h, block.allocate_inference_cache(2))):
        block.zero_grad()
        function(hidden).square().sum().backward()
        grads.append([p.grad.clone() for p in block.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_cache():
    block = Mamba(24, d_state=5, dtype=torch.bfloat16)
    conv_state, ssm_state = block.allocate_inference_cache(3, 1000)
    assert (conv_state.shape, ssm_state.shape) == ((3, 48, 4), (3, 48, 5))
    assert (conv_state.dtype, ssm_state.dtype) == (torch.bfloat16, torch.float32)
    assert [s.dtype for s in block.allocate_inference_cache(1, dtype=torch.float16)] == [torch.float16] * 2
    assert not conv_state.any() and not ssm_state.any()
    assert block.step(torch.randn(3, 1, 24).bfloat16(), conv_state, ssm_state)[0].dtype == torch.bfloat16
    assert Mamba(24).double().allocate_inference_cache(1)[1].dtype == torch.float64


def test_steps_run_in_the_extension():
    bdam_fast.reset_call_counts()
    block = Mamba(16, backend="cpu")
    with torch.no_grad():
        block.step(torch.randn(2, 1, 16), *block.allocate_inference_cache(2))
    counts = {n: c for n, c in bdam_fast.call_counts().items() if c}
    assert counts == {f"{n}.cpu.forward": 1 for n in ("causal_conv1d_update", "selective_state_update")}


def test_step_compiles_as_one_graph():
    torch._dynamo.reset()
    block = Mamba(16, d_state=4)
    hidden = torch.randn(2, 3, 16)
    compiled = torch.compile(block.step, fullgraph=True, backend="aot_eager")
    states = block.allocate_inference_cache(2)
    with torch.no_grad():
        outs = [compiled(hidden[:, t : t + 1], *states)[0] for t in range(3)]
        torch.testing.assert_close(torch.cat(outs, 1), block(hidden), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_copies_are_the_same_block(how):
    block = Mamba(16, d_state=4, bias=True)
    if how == "deepcopy":
        again = copy.deepcopy(block)
    elif how == "pickle":
        again = pickle.loads(pickle.dumps(block))
    else:
        file = io.BytesIO()
        torch.save(block.state_dict(), file)
        again = Mamba(16, d_state=4, bias=True)
        again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    hidden = torch.randn(2, 5, 16)
    assert torch.equal(again(hidden), block(hidden))


def test_whole_blocks_that_the_published_implementation_pickled():
    """They have no `backend`, and the name of their class is the published one."""
    block, hidden = Mamba(16, d_state=4), torch.randn(2, 5, 16)
    del vars(block)["backend"]
    ours, published = (f"c{module}\nMamba\n".encode() for module in ("bdam_fast.nn", "mamba_ssm.modules.mamba_simple"))
    text = pickle.dumps(block, protocol=0)
    assert ours in text
    compat.install(replace=True)
    try:
        again = pickle.loads(text.replace(ours, published))
    finally:
        compat.uninstall()
    assert torch.equal(again(hidden), Mamba.forward(block, hidden))
    assert again.step(hidden[:, :1], *again.allocate_inference_cache(2))[0].shape == (2, 1, 16)


def test_mixer_of_transformers_loads():
    """The names of Hugging Face's mixer and of the mamba_ssm module are the same; both load without a key left over."""
    modeling = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    config = modeling.MambaConfig(hidden_size=24, state_size=5, conv_kernel=3, num_hidden_layers=1, use_bias=True)
    mixer = modeling.MambaModel(config).layers[0].mixer.eval()
    names = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
    assert {n.split(".")[0] for n in mixer.state_dict()} == {*names, "A_log", "D"}
    block = Mamba(24, d_state=5, d_conv=3, bias=True)
    block.load_state_dict(mixer.state_dict(), strict=True)
    hidden = torch.randn(2, 9, 24)
    torch.testing.assert_close(block(hidden), mixer(hidden), rtol=1e-4, atol=1e-5)


def test_errors():
    block = Mamba(16)
    conv_state, ssm_state = block.allocate_inference_cache(2)
    with pytest.raises(
        ValueError, match=r"Mamba: hidden_states must have shape \(B, 1, 16\) in a step, got \(2, 3, 16\)"
    ):
        block.step(torch.randn(2, 3, 16), conv_state, ssm_state)
    with pytest.raises(ValueError, match=r"Mamba: conv_state must have shape \(2, 32, 4\), got \(2, 32, 3\)"):
        block.step(torch.randn(2, 1, 16), conv_state[:, :, 1:], ssm_state)
    with pytest.raises(ValueError, match=r"Mamba: ssm_state must have shape \(1, 32, 16\), got \(2, 32, 16\)"):
        block(torch.randn(1, 5, 16), initial_states=(conv_state[:1], ssm_state))
    assert not conv_state.any() and not ssm_state.any()
