"""The whole Mamba-1 block: bdam_fast.nn.Mamba on the kernels, on the reference, and transformers' mixer.

B batch, L length; the inner width is twice d_model, 16 states.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bdam_fast.nn import Mamba
from bench.harness.case import Case, Variant, Work
from bench.ops import peers
from bench.ops.selective_scan import work as scan_work

# B, L, d_model
SHAPES = [(8, 273, 256), (2, 512, 768)]
DIRECTIONS = ("forward", "forward+backward")


def block(width: int, backend: str) -> Mamba:
    """Our block with the same weights at every call."""
    torch.manual_seed(0)
    return Mamba(width, backend=backend)


def mixer(width: int) -> nn.Module:
    """transformers' mixer of the same widths and weights."""
    module = importlib.import_module(peers.TRANSFORMERS_MODULE)
    config = module.MambaConfig(hidden_size=width, num_hidden_layers=1, vocab_size=8)
    made = module.MambaMixer(config, layer_idx=0)
    made.load_state_dict(block(width, "cpu").state_dict())
    return made.eval()


def work(batch: int, length: int, width: int, direction: str) -> Work:
    """Minimum work: products of the four projections, twice as many backward; elementary functions of scan and SiLU."""
    inner, states, rank = 2 * width, 16, -(-width // 16)
    weights = width * 2 * inner + inner * (rank + 2 * states) + rank * inner + inner * width
    scan = scan_work((batch, inner, length, states), direction)
    passes, element = (1, batch * inner * length) if direction == "forward" else (3, 2 * batch * inner * length)
    sigmoids = scan.sigmoid + element
    return Work(exp2=scan.exp2, softplus=scan.softplus, sigmoid=sigmoids, flops=2.0 * batch * length * weights * passes)


def variant(name: str, module: nn.Module, hidden: Tensor, direction: str, kind: str = "eager") -> Variant:
    """Variant that returns the output, or the output and the gradients of the input and of every parameter."""
    wanted = [hidden, *(p for _, p in sorted(module.named_parameters()))]

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [module(hidden)]

    def both() -> list[Tensor]:
        out = module(hidden)
        return [out, *torch.autograd.grad(out.square().mean(), wanted)]

    return Variant(name, forward if direction == "forward" else both, kind)


def cases(quick: bool = False) -> Iterator[Case]:
    """Both shapes and directions."""
    for shape in SHAPES[: 1 if quick else None]:
        for direction in DIRECTIONS:
            yield _case(shape, direction, quick)


def _case(shape: tuple[int, int, int], direction: str, quick: bool) -> Case:
    batch, length, width = shape
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    variants = [variant("bdam_fast", block(width, "cpu"), hidden, direction, "ours")]
    variants.append(variant("reference loop", block(width, "reference"), hidden, direction))
    why = peers.missing(peers.TRANSFORMERS_MODULE, "mamba_selective_scan")
    if not why and direction != "forward" and quick:
        why = "seconds a call, skipped by --quick"
    if not why:
        variants.append(variant("transformers", mixer(width), hidden, direction))

    def exact() -> list[Tensor]:
        double = copy.deepcopy(block(width, "reference")).double()
        result = variant("", double, hidden.detach().double().requires_grad_(), direction).call()
        assert isinstance(result, list)
        return result

    skipped = {"transformers": why} if why else {}
    text = f"B {batch} L {length} d_model {width}"
    return Case("mamba_block", text, direction, variants, exact, work(*shape, direction), skipped=skipped)
