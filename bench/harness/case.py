"""Cases and variants: a case is one shape of one operator in one direction, its variants are the ways to compute it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

# Largest error, relative to the largest entry of each result, at which a variant still counts as the same function.
# fp32 peers lose up to 3e-5 in the gradient of A (a sum over B and L); bfloat16 is its own rounding, a few times over.
TOLERANCE = {"float32": 2e-4, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Work:
    """Minimum work of any implementation: the numerator of the shares of the machine's limit."""

    # Bytes read and written.
    bytes: float = 0.0
    # Evaluations of each elementary function.
    exp2: float = 0.0
    softplus: float = 0.0
    sigmoid: float = 0.0
    # Multiplications and additions inside matrix products.
    flops: float = 0.0


@dataclass(frozen=True)
class Variant:
    """One way to compute a case."""

    name: str
    # Timed; its result is compared with the exact one before anything is timed.
    call: Callable[[], object]
    # ours; eager or compiled peer; anchor: ours at the main shape, order or dtype, measured to compare speeds; other:
    # shown beside the peers and never counted as one of them.
    kind: str = "eager"
    # Entered around a round, not timed (patching and unpatching a library).
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    # Elements (B·D·L) and element-states (B·D·L·N) of one call, where the case has an anchor.
    elements: float = 0.0
    states: float = 0.0
    # The result is comparable with this case's exact result (that of an anchor has another shape).
    checked: bool = True


@dataclass(frozen=True)
class Case:
    """One shape of one operator; the first variant is ours, the others are compared with it."""

    op: str
    shape: str
    direction: str
    variants: Sequence[Variant]
    # The result in float64 on the same inputs; called once, before timing.
    exact: Callable[[], Sequence[Tensor]] | None = None
    work: Work = field(default_factory=Work)
    order: str = ""
    dtype: str = "float32"
    # Name of a peer that is not measured here -> reason.
    skipped: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 0.0

    def allowed(self) -> float:
        """Largest error that a variant may have."""
        return self.tolerance or TOLERANCE[self.dtype]


def flat(result: object) -> list[Tensor]:
    """Converts the result of a call to a list of tensors."""
    if isinstance(result, Tensor):
        return [result]
    assert isinstance(result, Sequence), f"a variant returns tensors, got {type(result).__name__}"
    return list(result)


def relative_error(got: object, exact: Sequence[Tensor]) -> float:
    """Largest difference relative to the largest entry, over all results; infinite where a value is not finite.

    A result that is exactly zero (the gradient of A at L = 1) is compared on the scale of the largest one.

    Raises:
        ValueError: the number of results or a shape differs.
    """
    results = flat(got)
    shapes = [tuple(t.shape) for t in results], [tuple(t.shape) for t in exact]
    if shapes[0] != shapes[1]:
        raise ValueError(f"bench: results must have shapes {shapes[1]}, got {shapes[0]}")
    worst = 0.0
    scales = [t.detach().abs().max().item() if t.numel() else 0.0 for t in exact]
    largest = max(scales, default=0.0) or 1.0
    for a, b, scale in zip(results, exact, scales, strict=True):
        if a.numel() == 0:
            continue
        gap = (a.detach().double() - b.detach().double()).abs().max().item()
        if not gap < float("inf"):
            return float("inf")
        worst = max(worst, gap / (scale or largest))
    return worst
