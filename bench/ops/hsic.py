"""hsic against the textbook formula, in time and in peak memory.

N samples, D features of x and of y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import bdam_fast
from bench.harness import memory
from bench.harness.case import Case, Variant, Work
from bench.harness.results import Row
from bench.ops import peers

# batch, N, D
SHAPES = [(1, 64, 768), (16, 64, 768), (1, 1024, 256), (1, 4096, 256)]
MEMORY_SHAPE = (1, 4096, 256)
KERNELS = ("linear", "rbf")
DIRECTIONS = ("forward", "forward+backward")


def textbook(x: Tensor, y: Tensor, sigma: float | None) -> Tensor:
    """tr(K H L H) / (N - 1)², evaluated as printed in the literature."""
    n = x.shape[-2]
    centre = torch.eye(n, dtype=x.dtype, device=x.device) - 1 / n
    product = gram(x, sigma) @ centre @ gram(y, sigma) @ centre
    return product.diagonal(dim1=-2, dim2=-1).sum(-1) / (n - 1) ** 2


def centred_sum(x: Tensor, y: Tensor, sigma: float | None) -> Tensor:
    """Optimised form: sum of (H K H) ∘ L, centred by subtracting means, so that only two matrix products remain."""
    n = x.shape[-2]
    K = gram(x, sigma)
    K = K - K.mean(-1, keepdim=True)
    K = K - K.mean(-2, keepdim=True)
    return (K * gram(y, sigma)).sum((-2, -1)) / (n - 1) ** 2


def gram(x: Tensor, sigma: float | None) -> Tensor:
    """Gram matrix of <a, b>, or of exp(-|a - b|² / (2 sigma²))."""
    inner = x @ x.transpose(-2, -1)
    if sigma is None:
        return inner
    norms = (x * x).sum(-1)
    squares = norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * inner
    return torch.exp(squares.clamp(min=0) * (-0.5 / sigma**2))


def ours(x: Tensor, y: Tensor, sigma: float | None) -> Tensor:
    """Our CPU kernel."""
    return run_hsic(x, y, sigma, "cpu")


def reference(x: Tensor, y: Tensor, sigma: float | None) -> Tensor:
    """The equation in plain PyTorch."""
    return run_hsic(x, y, sigma, "reference")


def run_hsic(x: Tensor, y: Tensor, sigma: float | None, backend: str) -> Tensor:
    """bdam_fast.hsic on a backend: linear without sigma, else RBF."""
    kernel = "linear" if sigma is None else "rbf"
    return bdam_fast.hsic(x, y, kernel=kernel, sigma_x=sigma, sigma_y=sigma, backend=backend)


def inputs(shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    """Inputs x and y, equal in a tenth of their features so that the value is not a difference of rounding errors."""
    generator = torch.Generator(device).manual_seed(0)
    x, y = (torch.randn(shape, generator=generator, device=device) for _ in range(2))
    y[..., : shape[2] // 10] = x[..., : shape[2] // 10]
    return [t.to(dtype).requires_grad_() for t in (x, y)]


def runner(
    function: Callable[[Tensor, Tensor, float | None], Tensor],
    tensors: list[Tensor],
    sigma: float | None,
    direction: str,
) -> Callable[[], list[Tensor]]:
    """Builds a call that returns the value, or the value and both gradients."""

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [function(*tensors, sigma)]

    def both() -> list[Tensor]:
        value = function(*tensors, sigma)
        return [value, *torch.autograd.grad(value.sum(), tensors)]

    return forward if direction == "forward" else both


def work(shape: tuple[int, int, int], kernel: str, direction: str, itemsize: int = 4) -> Work:
    """Minimum work: inputs read once (gradients written), the cheaper of the N×N and D×D forms, half of a symmetric matrix.

    Linear: a Gram matrix costs N² D operations by symmetry, and 2 N² D for a gradient; the D×D form costs 2 N D² forward
    and 4 N D² backward. RBF: both Gram matrices, their exps in both directions, and 2 N² D for each gradient.
    """
    batch, n, d = shape
    full = direction != "forward"
    moved = batch * n * d * float(itemsize) * (4 if full else 2)
    square, cross = 2.0 * n * n * d, 2.0 * n * d * d
    if kernel == "linear":
        by_samples, by_features = square * (3 if full else 1), cross * (3 if full else 1)
        return Work(moved, flops=batch * min(by_samples, by_features))
    return Work(moved, exp2=batch * float(n * n) * (2 if full else 1), flops=batch * square * (4 if full else 1))


def cases(quick: bool = False) -> Iterator[Case]:
    """Every shape with both kernels and in both directions; at N 4096 only rbf (linear: the formula takes 4 s a call)."""
    for shape in SHAPES[: 2 if quick else None]:
        for kernel in KERNELS if shape != MEMORY_SHAPE else ("rbf",):
            for direction in DIRECTIONS:
                yield _case(shape, kernel, direction, quick)


def _case(shape: tuple[int, int, int], kernel: str, direction: str, quick: bool) -> Case:
    sigma = None if kernel == "linear" else shape[2] ** 0.5
    tensors, doubles = inputs(shape), inputs(shape, torch.float64)
    formulas = {"textbook": textbook, "centred sum": centred_sum}
    variants = [Variant("bdam_fast", runner(ours, tensors, sigma, direction), "ours")]
    variants += [Variant(name, runner(f, tensors, sigma, direction)) for name, f in formulas.items()]
    skipped = {}
    if quick:
        skipped["compiled textbook"] = "takes seconds to compile, skipped by --quick"
    elif shape == MEMORY_SHAPE:
        skipped["compiled textbook"] = "the same products as the eager one, seconds a call; measured at N 1024"
    else:
        call = runner(peers.compiled(textbook), tensors, sigma, direction)
        variants.append(Variant("compiled textbook", call, "compiled"))

    def exact() -> list[Tensor]:
        # The reference forms all (N, N, D) differences: 34 GB in float64 at N 4096, where the textbook formula serves.
        function = textbook if shape[1] > 1024 else reference
        return runner(function, doubles, sigma, direction)()

    text = "batch {} N {} D {} ".format(*shape) + kernel
    return Case("hsic", text, direction, variants, exact, work(shape, kernel, direction), skipped=skipped)


def memory_call(name: str, direction: str, small: bool) -> Callable[[], object]:
    """Call for a child process of `bench.harness.memory`: RBF at MEMORY_SHAPE, or a small problem that loads the libraries."""
    function = {"bdam_fast": ours, "textbook": textbook, "centred sum": centred_sum}[name]
    shape = (1, 64, 64) if small else MEMORY_SHAPE
    return runner(function, inputs(shape), shape[2] ** 0.5, direction)


def extra_rows(quick: bool = False) -> Iterator[list[Row]]:
    """Rows of the peak memory of one call beyond the inputs, each variant in a process of its own."""
    if quick:
        return
    for direction in DIRECTIONS:
        made = []
        for name, kind in (("bdam_fast", "ours"), ("textbook", "eager"), ("centred sum", "eager")):
            row = {"op": "hsic", "shape": "batch {} N {} D {} rbf".format(*MEMORY_SHAPE), "dtype": "float32"}
            row |= {"direction": f"{direction}, peak memory", "variant": name, "kind": kind, "rounds": "1"}
            made.append(row | {"peak_mib": f"{memory.peak_mib('bench.ops.hsic', name, direction):.1f}"})
        yield made
