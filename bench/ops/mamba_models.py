"""Every Mamba-1 model that the package covers, with and without the operators: `python -m bench.ops.mamba_models`.

Tiny configurations with random weights. For each model the logits, the gradients of all parameters and greedily generated
tokens are compared with those of the model's own functions; the operators' calls are counted; and both are timed side by
side, call by call in turn, so that what else the machine does meets both. Prints a table in Markdown, or writes it with
`--out FILE`.

B batch, L length, D channels, N states, R rank of the step projection, H and W of a feature map.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bdam_fast
from bdam_fast import compat
from bench.harness.results import cpu_name
from bench.ops.vision_blocks import CrossScanBlock, VisionBlock

BATCH, LENGTH, NEW, REPEATS = 2, 32, 6, 3
SIZES = {"vocab_size": 256, "hidden_size": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
ATTENTION = {"num_attention_heads": 4, "intermediate_size": 96, "mamba_d_state": 16}
MODELS: dict[str, dict[str, Any]] = {
    "Mamba": {"num_hidden_layers": 2, "state_size": 16},
    "FalconMamba": {"num_hidden_layers": 2, "state_size": 16},
    "Jamba": ATTENTION
    | {
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "num_experts": 2,
    },
    "Zamba": ATTENTION
    | {"num_hidden_layers": 4, "num_key_value_heads": 4, "n_mamba_heads": 2, "mamba_dt_rank": 4}
    | {"layers_block_type": ["linear_attention", "hybrid"] * 2},
}


@dataclass
class Row:
    """A model's results; errors are largest differences over the largest value, None where there is no such thing."""

    model: str
    logits: float
    gradients: float
    generation: str
    calls: str
    forward: float
    both: float
    decode: float | None


@dataclass
class Subject:
    """A model as three calls, and a context in which it runs on the operators."""

    name: str
    network: nn.Module
    forward: Callable[[], Tensor]
    generate: Callable[[], Tensor] | None
    patched: Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def patched_transformers() -> Iterator[None]:
    """Transformers on the operators."""
    compat.patch_transformers()
    try:
        yield
    finally:
        compat.unpatch_transformers()


def language_model(name: str) -> Subject:
    """A model of transformers."""
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MODELS[name])
    network = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter_name, parameter in network.named_parameters():
        if "mamba" in parameter_name and "x_proj" in parameter_name:  # Zamba's are zero at first
            parameter.data.normal_(0, 0.2)
    ids = torch.randint(1, 256, (BATCH, LENGTH))
    prompt = ids[:1, :8]
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}

    def generate() -> Tensor:
        with torch.no_grad():
            return network.generate(prompt, attention_mask=torch.ones_like(prompt), **options)

    return Subject(name, network, lambda: network(ids, use_cache=False).logits, generate, patched_transformers)


def vision_model(name: str, block: VisionBlock | CrossScanBlock, inputs: Tensor) -> Subject:
    """One block of a vision model, which is asked by a switch to call the operators."""

    @contextlib.contextmanager
    def switched() -> Iterator[None]:
        block.fused = True
        try:
            yield
        finally:
            block.fused = False

    return Subject(name, block, lambda: block(inputs), None, switched)


def subjects() -> Iterator[Subject]:
    """Every model."""
    for name in MODELS:
        yield language_model(name)
    torch.manual_seed(0)
    yield vision_model("Vim block, v1 (bimamba_inner_fn)", VisionBlock(64, shared=True), torch.randn(BATCH, 65, 64))
    yield vision_model("Vim block, v2 (no_out_proj twice)", VisionBlock(64, shared=False), torch.randn(BATCH, 65, 64))
    yield vision_model("VMamba block (four directions)", CrossScanBlock(32), torch.randn(BATCH, 32, 8, 8))


def gradients(subject: Subject) -> dict[str, Tensor]:
    """The gradient of every parameter, of the mean square of the output."""
    subject.network.zero_grad()
    subject.forward().square().mean().backward()
    return {n: p.grad.clone() for n, p in subject.network.named_parameters() if p.grad is not None}


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def counted() -> str:
    """The operators' calls since the counts were reset, as `scan 4+2` for forward and backward."""
    names = {
        "selective_scan": "scan",
        "causal_conv1d": "conv",
        "selective_state_update": "step",
        "causal_conv1d_update": "shift",
    }
    counts, texts = bdam_fast.call_counts(), []
    for operator, short in names.items():
        found = [
            sum(c for n, c in counts.items() if n.split(".")[0] == operator and n.endswith(e))
            for e in ("forward", "backward")
        ]
        if any(found):
            texts.append(f"{short} {found[0]}" + (f"+{found[1]}" if found[1] else ""))
    return ", ".join(texts)


def speed_up(subject: Subject, call: Callable[[], object]) -> float:
    """The time of a call over that on the operators: the median over pairs of calls, one after the other."""
    ratios = []
    for repeat in range(REPEATS + 1):
        seconds = []
        for context in (contextlib.nullcontext, subject.patched):
            with context():
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
        if repeat > 0:  # the first pair warms up
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def measure(subject: Subject) -> Row:
    """All of a model's row."""
    with torch.no_grad():
        logits = subject.forward()
    own, tokens = gradients(subject), subject.generate() if subject.generate else None
    bdam_fast.reset_call_counts()
    with subject.patched():
        with torch.no_grad():
            logits_error = difference(subject.forward(), logits)
        ours = gradients(subject)
        made = subject.generate() if subject.generate else None
        calls = counted()
    same = "" if tokens is None or made is None else f"{int((tokens == made)[:, -NEW:].sum())} of {NEW} tokens"
    errors = [difference(ours[n], g) for n, g in own.items() if g.abs().max() > 0]

    def forward() -> None:
        with torch.no_grad():
            subject.forward()

    speeds = [speed_up(subject, forward), speed_up(subject, lambda: gradients(subject))]
    decode = speed_up(subject, subject.generate) if subject.generate else None
    return Row(subject.name, logits_error, max(errors), same, calls, *speeds, decode)


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    head = "| model | logits | gradients | generation | operator calls | forward | forward + backward | decoding |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        decode = "" if r.decode is None else f"{r.decode:.1f} ×"
        speeds = f"{r.forward:.1f} × | {r.both:.1f} × | {decode}"
        lines.append(f"| {r.model} | {r.logits:.0e} | {r.gradients:.0e} | {r.generation} | {r.calls} | {speeds} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--out", type=Path, help="the file that is written, in place of standard output")
    out = parser.parse_args().out
    rows = []
    for subject in subjects():
        rows.append(measure(subject))
        print(rows[-1], file=sys.stderr)
    versions = f"torch {torch.__version__}, transformers {importlib.import_module('transformers').__version__}"
    text = f"{table(rows)}\n\n{cpu_name()}, {torch.get_num_threads()} threads, {versions}.\n"
    if out is None:
        print(text, end="")
    else:
        out.write_text(text)


if __name__ == "__main__":
    main()
