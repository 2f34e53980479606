"""transformers' MambaForCausalLM with and without `bdam_fast.compat.patch_transformers()`.

Two layers of the 130M size (hidden 768, 16 states, expand 2) with random weights and a vocabulary of 1024 instead of
50280, so that the logits do not hide the mixers.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn

from bdam_fast.nn import Mamba
from bench.harness.case import Case, Variant, Work
from bench.ops import mamba_block, peers

MODEL = "2 layers, hidden 768, vocabulary 1024"
SIZES = {"hidden_size": 768, "num_hidden_layers": 2, "state_size": 16, "expand": 2, "vocab_size": 1024}
BATCH, LENGTH, PROMPT, NEW = 2, 512, 16, 64
# A mean over 1024 tokens of gradients through two blocks: sums of 1e5 terms, of which PyTorch loses as much as we do.
TOLERANCE = 1e-3


def unavailable() -> str:
    """Reason why these cases cannot run; an empty string if they can."""
    try:
        compat = importlib.import_module("bdam_fast.compat")
    except ImportError as problem:
        return f"{problem}"
    absent = [name for name in ("patch_transformers", "unpatch_transformers") if not hasattr(compat, name)]
    if absent:
        return f"bdam_fast.compat has no {' and no '.join(absent)}"
    return peers.missing("transformers", "MambaForCausalLM")


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Patches transformers to run on our kernels meanwhile."""
    compat = importlib.import_module("bdam_fast.compat")
    compat.patch_transformers()
    try:
        yield
    finally:
        compat.unpatch_transformers()


class ReferenceMixer(nn.Module):
    """A mixer's weights in our block with the reference scan: the exact result in any precision."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.block = Mamba(SIZES["hidden_size"], backend="reference")
        self.block.load_state_dict(mixer.state_dict())

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return self.block(hidden_states)


@lru_cache(maxsize=2)
def model(exact: bool = False) -> nn.Module:
    """The model; exact: in float64 with the reference scan."""
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    made = transformers.MambaForCausalLM(transformers.MambaConfig(**SIZES)).eval()
    if exact:
        for layer in made.backbone.layers:
            layer.mixer = ReferenceMixer(layer.mixer)
        made = made.double()
    return made


def tokens(batch: int, length: int) -> Tensor:
    """Random token ids, int64 (batch, length)."""
    return torch.randint(0, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(0))


def forward(exact: bool = False) -> list[Tensor]:
    """Logits."""
    with torch.no_grad():
        return [model(exact)(tokens(BATCH, LENGTH), use_cache=False).logits]


def both(exact: bool = False) -> list[Tensor]:
    """The loss and the gradients of the embedding and of every mixer's input projection."""
    network = model(exact)
    ids = tokens(BATCH, LENGTH)
    loss = network(ids, labels=ids, use_cache=False).loss
    mixers = [getattr(layer.mixer, "block", layer.mixer) for layer in network.backbone.layers]
    return [loss, *torch.autograd.grad(loss, [network.backbone.embeddings.weight, *(m.in_proj.weight for m in mixers)])]


def generate() -> Tensor:
    """Generates NEW tokens after a prompt, greedily; token ids."""
    with torch.no_grad():
        prompt = tokens(1, PROMPT)
        options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
        return model().generate(prompt, attention_mask=torch.ones_like(prompt), **options)


def generate_exact() -> list[Tensor]:
    """Generates the same tokens by running the whole sequence through the float64 model for every new one."""
    ids = tokens(1, PROMPT)
    with torch.no_grad():
        for _ in range(NEW):
            best = model(True)(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], 1)
    return [ids]


def work(direction: str) -> Work:
    """The blocks of all layers and the logits (their products three times with the backward); nothing for generation."""
    if direction not in ("forward", "forward+backward"):
        return Work()
    layers, hidden = SIZES["num_hidden_layers"], SIZES["hidden_size"]
    block = mamba_block.work(BATCH, LENGTH, hidden, direction)
    logits = 2.0 * BATCH * LENGTH * hidden * SIZES["vocab_size"] * (1 if direction == "forward" else 3)
    functions = {name: layers * getattr(block, name) for name in ("exp2", "softplus", "sigmoid")}
    return Work(flops=layers * block.flops + logits, **functions)


def cases(quick: bool = False) -> Iterator[Case]:
    """Forward, forward+backward and generation, patched against unpatched."""
    text = f"{MODEL}, B {BATCH} L {LENGTH}"
    yield _case(text, "forward", forward, lambda: forward(True))
    skipped = "a minute a call, skipped by --quick" if quick else ""
    yield _case(text, "forward+backward", both, lambda: both(True), skipped)
    yield _case(f"{MODEL}, B 1", f"generate {NEW} tokens", generate, generate_exact)


def _case(
    text: str, direction: str, call: Callable[[], object], exact: Callable[[], list[Tensor]], reason: str = ""
) -> Case:
    variants = [Variant("bdam_fast", call, "ours", patched)]
    if not reason:
        variants.append(Variant("unpatched", call))
    skipped = {"unpatched": reason} if reason else {}
    return Case("transformers", text, direction, variants, exact, work(direction), "", "float32", skipped, TOLERANCE)
