"""bdam_fast.nn.Mamba called as the published block, and with a conv1d or dt_proj that is more than its weights."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from bdam_fast import compat
from bdam_fast.nn import Mamba

pytestmark = pytest.mark.usefixtures("kernels")


def test_signatures_are_the_published_ones():
    made = [p for p in inspect.signature(Mamba).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert [p.name for p in made] == [
        *(
            "d_model",
            "d_state",
            "d_conv",
            "expand",
            "dt_rank",
            "dt_min",
            "dt_max",
            "dt_init",
            "dt_scale",
            "dt_init_floor",
        ),
        *("conv_bias", "bias", "use_fast_path", "layer_idx", "device", "dtype"),
    ]
    called = [p.name for p in inspect.signature(Mamba.forward).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert called == ["self", "hidden_states", "inference_params"]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("pieces", [[4, 1, 1, 3], [1, 1, 1, 6], [9], [2, 7]], ids=str)
def test_inference_params(pieces, backend):
    """A text in pieces through two blocks that share one object, by position and by name."""
    blocks = [Mamba(16, d_state=4, layer_idx=i, use_fast_path=False, backend=backend) for i in (0, 3)]
    hidden = torch.randn(2, 9, 16)
    whole = blocks[1](blocks[0](hidden))
    params = compat.provider.InferenceParams(max_seqlen=9, max_batch_size=2)
    out = []
    with torch.no_grad():
        for part in hidden.split(pieces, 1):
            out.append(blocks[1](blocks[0](part, params), inference_params=params))
            params.seqlen_offset += part.shape[1]
    torch.testing.assert_close(torch.cat(out, 1), whole, rtol=1e-4, atol=1e-5)
    states = params.key_value_memory_dict
    assert [tuple(t.shape for t in states[i]) for i in states] == [((2, 32, 4), (2, 32, 4))] * 2 and [*states] == [0, 3]
    params.reset(9, 2)
    with torch.no_grad():  # the old states are not read again
        torch.testing.assert_close(blocks[0](hidden, params), blocks[0](hidden))
        assert params.key_value_memory_dict[0][0] is states[0][0]


def test_inference_params_errors():
    hidden, params = torch.randn(2, 3, 16), SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0)
    with pytest.raises(
        ValueError, match="Mamba: inference_params needs a block that was made with layer_idx, got None"
    ):
        Mamba(16)(hidden, params)
    with pytest.raises(
        ValueError, match="Mamba: inference_params must come without seq_idx, reverse, initial_states, ret"
    ):
        Mamba(16, layer_idx=0)(hidden, params, reverse=True)
    Mamba(16, layer_idx=0)(hidden, params)
    with pytest.raises(ValueError, match=r"Mamba: conv_state must have shape \(1, 32, 4\), got \(2, 32, 4\)"):
        Mamba(16, layer_idx=0)(hidden[:1], params)


class LowRank(nn.Module):
    """A layer and a product of two small matrices beside it, as LoRA has them."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        convolution = isinstance(base, nn.Conv1d)
        self.down = nn.Parameter(torch.randn(rank, base.kernel_size[0] if convolution else base.in_features))
        self.up = nn.Parameter(torch.randn(base.out_channels if convolution else base.out_features, rank))

    def forward(self, x):
        delta = self.up @ self.down
        if isinstance(self.base, nn.Conv1d):
            weight = self.base.weight + delta.unsqueeze(1)
            return nn.functional.conv1d(x, weight, self.base.bias, padding=self.base.padding, groups=self.base.groups)
        return self.base(x) + x @ delta.T

    def merged(self):
        """The weights with the product added, of a plain layer."""
        self.base.weight.data += (self.up @ self.down).view_as(self.base.weight).detach()
        return self.base


def everything(block, hidden):
    """The results of a block called in each of its ways."""
    states = block(hidden, return_states=True)
    backwards = block(hidden, reverse=True, return_states=True)
    continued = block(hidden, initial_states=states[1])
    with torch.no_grad():
        conv_state, ssm_state = (s.clone() for s in states[1])
        step = block.step(hidden[:, :1], conv_state, ssm_state)
        first = block.step(hidden[:, :1], *block.allocate_inference_cache(hidden.shape[0]))
    return [states[0], *states[1], backwards[0], *backwards[1], continued, *step, *first]


@pytest.mark.parametrize("name", ["conv1d", "dt_proj"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_low_rank_adapters(name, backend):
    """The same as the merged weights in every way of calling the block, and trained."""
    block, hidden = Mamba(16, d_state=4, backend=backend), torch.randn(2, 9, 16)
    plain = everything(block, hidden)
    adapter = LowRank(getattr(block, name))
    setattr(block, name, adapter)
    adapted = everything(block, hidden)
    adapted[0].square().sum().backward()
    assert adapter.up.grad.abs().sum() > 0 < adapter.down.grad.abs().sum()
    setattr(block, name, adapter.merged())
    for got, merged in zip(adapted, everything(block, hidden), strict=True):
        torch.testing.assert_close(got, merged, rtol=1e-4, atol=1e-5)
    assert (adapted[0] - plain[0]).abs().max() > 100 * (adapted[0] - everything(block, hidden)[0]).abs().max()


@pytest.mark.parametrize("name", ["conv1d", "dt_proj"])
def test_hooks_are_called(name):
    block, hidden = Mamba(16, d_state=4), torch.randn(2, 9, 16)
    before, seen = everything(block, hidden), []
    handle = getattr(block, name).register_forward_hook(lambda module, args, out: seen.append(out.shape))
    for got, expected in zip(everything(block, hidden), before, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == 5
    handle.remove()
    everything(block, hidden)
    assert len(seen) == 5
    getattr(block, name).register_forward_hook(lambda module, args, out: 0 * out)
    assert not torch.allclose(block(hidden), before[0], atol=1e-4)


@pytest.mark.parametrize("name", ["conv1d", "dt_proj"])
def test_spectral_norm_pruning_and_own_forwards(name):
    """Weights that are computed at each call, by parametrizations or by hooks, and a `forward` set on the layer itself."""
    hidden = torch.randn(2, 9, 16)
    block = Mamba(16, d_state=4)
    nn.utils.parametrizations.weight_norm(getattr(block, name))
    torch.testing.assert_close(block(hidden), block(hidden))
    block(hidden).sum().backward()
    assert getattr(block, name).parametrizations.weight.original0.grad.abs().sum() > 0
    block = Mamba(16, d_state=4)
    before = block(hidden)
    prune.random_unstructured(getattr(block, name), "weight", amount=0.9)
    block(hidden).sum().backward()
    grad, mask = getattr(block, name).weight_orig.grad, getattr(block, name).weight_mask
    assert grad[mask == 1].abs().sum() > 0 == grad[mask == 0].abs().sum()
    block = Mamba(16, d_state=4)
    layer = getattr(block, name)
    layer.forward = lambda x: 0 * type(layer).forward(layer, x)
    assert not torch.allclose(block(hidden), before, atol=1e-4)


class Quantised(nn.Module):
    """A layer whose weights are eight-bit integers, as a buffer."""

    def __init__(self, base):
        super().__init__()
        self.scale = base.weight.detach().abs().max() / 127
        self.register_buffer("weight", (base.weight / self.scale).round().to(torch.int8).detach())
        self.bias, self.padding = base.bias, getattr(base, "padding", None)

    def forward(self, x):
        weight = self.weight * self.scale
        if self.padding is None:
            return nn.functional.linear(x, weight, self.bias)
        return nn.functional.conv1d(x, weight, self.bias, padding=self.padding, groups=weight.shape[0])


@pytest.mark.parametrize("names", [["dt_proj"], ["conv1d"], ["in_proj", "conv1d", "x_proj", "dt_proj", "out_proj"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantised_layers(names, dtype):
    """The parallel form, steps and inference_params agree, and with what the weights were."""
    block, hidden = Mamba(16, d_state=4, layer_idx=0, dtype=dtype), torch.randn(2, 9, 16, dtype=dtype)
    expected = block(hidden)
    for name in names:
        setattr(block, name, Quantised(getattr(block, name)))
    block.to(dtype)
    whole = block(hidden)
    torch.testing.assert_close(whole, expected, rtol=2e-2, atol=2e-2)
    states, params = block.allocate_inference_cache(2), SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0)
    assert [s.dtype for s in states] == [dtype, dtype]
    steps, continued = [], []
    with torch.no_grad():
        for token in hidden.split(1, 1):
            steps.append(block.step(token, *states)[0])
            continued.append(block(token, params))
            params.seqlen_offset += 1
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(continued, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_of_another_dtype_beside_an_adapter(dtype):
    """As with the merged weights: a step's own input keeps its digits, whatever dtype the states have."""
    block, hidden, results = Mamba(16, d_state=4), torch.randn(2, 4, 16), []
    adapter = block.conv1d = LowRank(block.conv1d)
    for _ in range(2):
        states = block.allocate_inference_cache(2, dtype=dtype)
        with torch.no_grad():
            results.append(torch.cat([block.step(token, *states)[0] for token in hidden.split(1, 1)], 1))
        assert states[0].dtype == dtype
        block.conv1d = adapter.merged()
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_states_of_integers_raise(adapted):
    block = Mamba(16, d_state=4)
    if adapted:
        block.conv1d = LowRank(block.conv1d)
    conv_state, ssm_state = block.allocate_inference_cache(2)
    text = "Mamba: conv_state must be float32, bfloat16, float16 or float64, got torch.int8"
    with pytest.raises(TypeError, match=text):
        block.step(torch.randn(2, 1, 16), conv_state.to(torch.int8), ssm_state)
    with pytest.raises(TypeError, match=text):
        block(torch.randn(2, 3, 16), initial_states=(conv_state.to(torch.int8), ssm_state))


def test_hooks_of_all_modules_leave_the_operators_in_place():
    """Counters of FLOPs set such hooks: they are to count what runs without them, and packed sequences go on."""
    block, hidden, seen = Mamba(16, d_state=4), torch.randn(2, 9, 16), []
    index = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 2)
    expected = block(hidden, seq_idx=index)
    with nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(module)):
        assert torch.equal(block(hidden, seq_idx=index), expected)
    assert block.in_proj in seen and block.conv1d not in seen


def test_an_adapted_convolution_refuses_packed_sequences():
    block = Mamba(16)
    block.conv1d = LowRank(block.conv1d)
    with pytest.raises(
        ValueError, match="Mamba: seq_idx needs a plain nn.Conv1d, whose window can be emptied, got LowRank"
    ):
        block(torch.randn(2, 9, 16), seq_idx=torch.zeros(2, 9, dtype=torch.int32))


def test_an_index_of_int64():
    """`torch.tensor([0, 1])` makes one."""
    block, hidden = Mamba(16), torch.randn(2, 9, 16)
    index = torch.tensor([[0, 0, 0, 1, 1, -1, 2, 2, 2]] * 2)
    assert torch.equal(block(hidden, seq_idx=index), block(hidden, seq_idx=index.int()))
