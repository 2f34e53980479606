"""Helpers of the operator tests: one tolerance table, memory orders, and comparisons with the float64 reference."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The backends that run on every machine.
BACKENDS = ["cpu", "reference"]
# Allowed error of a result, by its dtype: twice the error of the same computation in PyTorch plus this much of the
# largest entry. float32: sums in another order and an exp2 of 0.8 ulp; the others: one rounding of the result.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 4e-3, torch.float16: 5e-4}

# Around every tile and chunk size in use (4 to 512 steps), and the lengths of the vision models: 77, 192, 193, 197.
LENGTHS = [1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 77, 127, 128, 129, 130, 192, 193, 197]
LENGTHS += [255, 256, 257, 511, 512, 513, 2047, 2048, 2049]


def assert_close(name: str, got: Tensor, exact: Tensor, same_dtype: Tensor | None = None) -> None:
    """`got` against a float64 result, allowing for what PyTorch itself loses in the same dtype."""
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    assert exact.isfinite().all(), f"{name}: the reference is not finite, the comparison would mean nothing"
    error = (got.double() - exact).abs().max().item()
    allowed = TOLERANCE[got.dtype] * exact.abs().max().item()
    if same_dtype is not None:
        allowed += 2 * (same_dtype.double() - exact).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, counting NaN as equal to NaN."""
    return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a, 12345.0), torch.nan_to_num(b, 12345.0))


def poison_allocations(monkeypatch: Any) -> None:
    """Fresh memory from `torch.empty` and its relatives is NaN (127 in integers), so that what no kernel writes shows."""

    def poisoned(make: Any) -> Any:
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            fresh = make(*args, **kwargs)
            return fresh.fill_(float("nan") if fresh.is_floating_point() else 127)

        return allocate

    makers = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided")]
    for owner, name in (*makers, (torch.Tensor, "new_empty"), (torch.Tensor, "new_empty_strided")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def stream(batch: int, channels: int, length: int, dtype: torch.dtype, order: str) -> Tensor:
    """(B, D, L) in memory order `bdl`, `bld`, or `strided` (neither adjacent, and not at the start of its memory)."""
    if order == "bdl":
        return torch.randn(batch, channels, length).to(dtype)
    if order == "bld":
        return torch.randn(batch, length, channels).to(dtype).transpose(1, 2)
    assert order == "strided"
    return torch.randn(batch, 2 * channels, 3 * length + 1).to(dtype)[:, 1::2, 1::3]


def packed_index(batch: int, length: int, padding: float = 0.2) -> Tensor:
    """(B, L) int32 of ascending sequence indices, some of them replaced by padding."""
    index = torch.sort(torch.randint(0, 4, (batch, length)), dim=1).values.int()
    index[torch.rand(batch, length) < padding] = -1
    return index


def leaves(problem: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The same tensors, views and strides kept, as autograd leaves (converted when a dtype is given)."""
    return {name: v.detach().to(dtype or v.dtype).requires_grad_() for name, v in problem.items()}


def moved(value: Tensor, device: str) -> Tensor:
    """The same numbers, strides and offset on a device: its whole memory goes there, and the view is made again."""
    memory = torch.empty(0, dtype=value.dtype, device=value.device).set_(value.untyped_storage()).to(device)
    return memory.as_strided(value.shape, value.stride(), value.storage_offset())


def with_gradients(problem: dict[str, Tensor], results: dict[str, Tensor], upstream: list[Tensor]) -> dict[str, Tensor]:
    """The results, and the gradients `d<name>` of those tensors of the problem that require one."""
    wanted = {name: value for name, value in problem.items() if value.requires_grad}
    grads = torch.autograd.grad(list(results.values()), list(wanted.values()), upstream, materialize_grads=True)
    results = {name: value.detach() for name, value in results.items()}
    return results | {f"d{name}": g for name, g in zip(wanted, grads, strict=True)}


def compare(got: dict[str, Tensor], exact: dict[str, Tensor], same: dict[str, Tensor]) -> None:
    """Every result against the reference's in float64 and in the problem's own dtype, whose dtype it has."""
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == same[name].dtype, f"{name}: {value.dtype}, expected {same[name].dtype}"
        assert_close(name, value, exact[name], same[name])


def check(
    run: Callable[..., dict[str, Tensor]], problem: dict[str, Tensor], backend: str = "cpu", **options: Any
) -> dict[str, Tensor]:
    """Kernel against the reference in float64 and in the problem's own dtype, forward and every gradient."""
    exact = run(leaves(problem, torch.float64), backend="reference", **options)
    same = run(leaves(problem), backend="reference", **options)
    got = run(leaves(problem), backend=backend, **options)
    compare(got, exact, same)
    for name, value in problem.items():
        assert got[f"d{name}"].stride() == torch.empty_like(value).stride(), name
    return got
