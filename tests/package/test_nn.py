"""bdam_fast.nn.Mamba: parameters, initialisation, equality with the block written out, packing, memory order."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import bdam_fast
from bdam_fast.nn import Mamba
from bdam_fast.ops.causal_conv1d import op as conv_op

pytestmark = pytest.mark.usefixtures("kernels")


def written_out(block: Mamba, hidden: Tensor) -> Tensor:
    """The published block with PyTorch's own convolution and a loop over the steps."""
    x, z = block.in_proj(hidden).chunk(2, dim=-1)
    length = hidden.shape[1]
    x = F.silu(block.conv1d(x.transpose(1, 2))[..., :length]).transpose(1, 2)
    step, B, C = block.x_proj(x).split([block.dt_rank, block.d_state, block.d_state], dim=-1)
    dt = F.softplus(F.linear(step, block.dt_proj.weight) + block.dt_proj.bias)
    A = -torch.exp(block.A_log)
    state = torch.zeros(hidden.shape[0], block.d_inner, block.d_state)
    outputs = []
    for t in range(length):
        state = torch.exp(dt[:, t, :, None] * A) * state + (dt[:, t] * x[:, t]).unsqueeze(-1) * B[:, t, None]
        outputs.append((state * C[:, t, None]).sum(-1) + block.D * x[:, t])
    return block.out_proj(torch.stack(outputs, 1) * F.silu(z))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "options", [{}, {"d_state": 5, "d_conv": 2, "expand": 1, "bias": True, "conv_bias": False}], ids=str
)
def test_block_written_out(options, backend):
    block = Mamba(24, dt_rank=3, backend=backend, **options)
    hidden = torch.randn(2, 41, 24, requires_grad=True)
    wanted = [hidden, *block.parameters()]
    results = []
    for function in (block, lambda h: written_out(block, h)):
        out = function(hidden)
        results.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_names_and_shapes_are_the_published_ones():
    block = Mamba(32, d_state=8, d_conv=3, expand=2)
    shapes = {name: tuple(p.shape) for name, p in block.named_parameters()}
    assert shapes == {
        "in_proj.weight": (128, 32),
        "conv1d.weight": (64, 1, 3),
        "conv1d.bias": (64,),
        "x_proj.weight": (2 + 16, 64),
        "dt_proj.weight": (64, 2),
        "dt_proj.bias": (64,),
        "A_log": (64, 8),
        "D": (64,),
        "out_proj.weight": (32, 64),
    }
    assert Mamba(32, bias=True, conv_bias=False).conv1d.bias is None
    assert Mamba(32, dt_rank=5).dt_proj.weight.shape == (64, 5)
    assert "d_model=32, d_state=8, d_conv=3, expand=2" in repr(block)


def test_initialisation():
    block = Mamba(256, dt_min=0.01, dt_max=0.5, dt_init_floor=0.02)
    steps = F.softplus(block.dt_proj.bias)
    assert 0.02 * (1 - 1e-4) <= steps.min().item() < 0.03
    assert 0.3 < steps.max().item() <= 0.5 * (1 + 1e-4)
    share = (steps < math.sqrt(0.01 * 0.5)).float().mean().item()  # log-uniform: half lie below the geometric mean
    assert abs(share - 0.5) < 0.1
    assert block.dt_proj.weight.abs().max().item() <= block.dt_rank**-0.5
    torch.testing.assert_close(block.A_log[3].exp(), torch.arange(1.0, 17.0))
    assert torch.equal(block.D, torch.ones(512))
    assert block.A_log._no_weight_decay and block.D._no_weight_decay and block.dt_proj.bias._no_reinit
    constant = Mamba(32, dt_init="constant", dt_scale=0.5)
    assert torch.equal(constant.dt_proj.weight, torch.full((64, 2), 0.5 * 2**-0.5))


def test_dtype_keeps_states_in_float32():
    block = Mamba(32, dtype=torch.bfloat16)
    assert block.in_proj.weight.dtype == torch.bfloat16
    assert block.A_log.dtype == block.D.dtype == torch.float32
    assert block(torch.randn(1, 9, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Mamba(32)(torch.randn(1, 9, 32)).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_and_packing(reverse, backend):
    """Two sequences in one row, padding behind each: the same as one by one, and padding is not read."""
    block = Mamba(16, d_state=4, backend=backend)
    first, second = torch.randn(1, 11, 16), torch.randn(1, 20, 16)
    pad = torch.full((1, 5, 16), 1e3)
    row = torch.cat([first, pad, second, pad], dim=1)
    index = torch.tensor([[0] * 11 + [-1] * 5 + [1] * 20 + [-1] * 5], dtype=torch.int32)
    out = block(row, seq_idx=index, reverse=reverse)
    torch.testing.assert_close(out[:, :11], block(first, reverse=reverse), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[:, 16:36], block(second, reverse=reverse), rtol=1e-4, atol=1e-5)
    assert out[:, index[0] < 0].abs().sum() == 0


def test_activations_stay_in_batch_length_channel_order(monkeypatch):
    """Nothing is copied: each operator meets views whose channels are adjacent, and answers in that order."""
    seen: dict[str, Tensor] = {}

    def spy(name, function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            tensors = [a for a in (*args, result) if isinstance(a, Tensor) and a.dim() == 3]
            seen.update({f"{name} {i}": t for i, t in enumerate(tensors)})
            return result

        return call

    monkeypatch.setattr("bdam_fast.nn.causal_conv1d", spy("conv", conv_op.causal_conv1d))
    monkeypatch.setattr("bdam_fast.nn.selective_scan", spy("scan", bdam_fast.selective_scan))
    Mamba(32)(torch.randn(2, 12, 32))
    assert len(seen) == 2 + 6
    assert {name for name, tensor in seen.items() if tensor.stride(1) != 1} == set()


def test_both_operators_run_in_the_extension():
    bdam_fast.reset_call_counts()
    block = Mamba(16, backend="cpu")
    block(torch.randn(2, 9, 16)).sum().backward()
    counts = bdam_fast.call_counts()
    for name in ("selective_scan", "causal_conv1d"):
        assert counts[f"{name}.cpu.forward"] == counts[f"{name}.cpu.backward"] == 1
        assert counts[f"{name}.reference.forward"] == 0


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    block = Mamba(16, d_state=4)
    hidden = torch.randn(2, 9, 16)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden), block(hidden))


def test_errors():
    with pytest.raises(ValueError, match='Mamba: dt_init must be "random" or "constant", got \'ones\''):
        Mamba(16, dt_init="ones")
    with pytest.raises(ValueError, match=r"Mamba: hidden_states must have shape \(B, L, 16\), got \(2, 9, 15\)"):
        Mamba(16)(torch.randn(2, 9, 15))
