"""What the operator tests share: one tolerance table, problems, and comparisons with the float64 reference."""

from typing import Any

import torch
from torch import Tensor

import bdam_fast

# The backends that run on every machine.
BACKENDS = ["cpu", "reference"]
# Allowed error of a result, by its dtype: twice the error of the same computation in PyTorch plus this much of the
# largest entry. float32: sums in another order and an exp2 of 0.8 ulp; the others: one rounding of the result.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 4e-3, torch.float16: 5e-4}


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


def scan_problem(
    batch: int = 2,
    channels: int = 5,
    length: int = 9,
    states: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    order: str = "bld",
    groups: tuple[int | None, int | None] = (1, 1),
    absent: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Tensor arguments of selective_scan.

    `groups` of B and C: None is constant (D, N), 1 is (B, N, L), else (B, G, N, L).
    """

    def projection(count: int | None) -> Tensor:
        if count is None:
            return torch.randn(channels, states)
        whole = stream(batch, count * states, length, dtype, order)
        return whole if count == 1 else whole.unflatten(1, (count, states))

    parameter_type = torch.float64 if dtype == torch.float64 else torch.float32
    problem = {
        "u": stream(batch, channels, length, dtype, order),
        "delta": stream(batch, channels, length, dtype, order) - 0.5,
        "A": -torch.arange(1, states + 1) * torch.exp(0.1 * torch.randn(channels, states)),
        "B": projection(groups[0]),
        "C": projection(groups[1]),
        "D": torch.randn(channels),
        "z": stream(batch, channels, length, dtype, order),
        "delta_bias": torch.rand(channels) * 2 - 2,
        "initial_state": torch.randn(batch, channels, states),
    }
    for name in ("A", "B", "C", "D", "delta_bias", "initial_state"):
        if problem[name].dtype == torch.float32:
            problem[name] = problem[name].to(parameter_type)
    return {name: value for name, value in problem.items() if name not in absent}


def packed_index(batch: int, length: int, padding: float = 0.2) -> Tensor:
    """(B, L) int32 of ascending sequence indices, some of them replaced by padding."""
    index = torch.sort(torch.randint(0, 4, (batch, length)), dim=1).values.int()
    index[torch.rand(batch, length) < padding] = -1
    return index


def leaves(problem: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The same tensors, views and strides kept, as autograd leaves (converted when a dtype is given)."""
    return {name: (v.detach() if dtype is None else v.to(dtype)).requires_grad_() for name, v in problem.items()}


def moved(value: Tensor, device: str) -> Tensor:
    """The same numbers, strides and offset on a device: its whole memory goes there, and the view is made again."""
    memory = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage()).to(device)
    return memory.as_strided(value.shape, value.stride(), value.storage_offset())


def run_scan(problem: dict[str, Tensor], seed: int = 1, **kwargs: Any) -> dict[str, Tensor]:
    """Output, last state and every gradient of a random scalar of both."""
    kwargs = {"delta_softplus": True, "return_last_state": True, **kwargs}
    result = bdam_fast.selective_scan(**problem, **kwargs)
    out, last = result if kwargs["return_last_state"] else (result, None)
    generator = torch.Generator().manual_seed(seed)
    results = {"out": out} if last is None else {"out": out, "last": last}
    upstream = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r) for r in results.values()]
    wanted = {name: value for name, value in problem.items() if value.requires_grad}
    grads = torch.autograd.grad(list(results.values()), list(wanted.values()), upstream, materialize_grads=True)
    results = {name: value.detach() for name, value in results.items()}
    return results | {f"d{name}": g for name, g in zip(wanted, grads, strict=True)}


def check_scan(problem: dict[str, Tensor], backend: str = "cpu", **kwargs: Any) -> dict[str, Tensor]:
    """Kernel against the reference in float64 and in the problem's own dtype, forward and every gradient."""
    exact = run_scan(leaves(problem, torch.float64), backend="reference", **kwargs)
    same = run_scan(leaves(problem), backend="reference", **kwargs)
    got = run_scan(leaves(problem), backend=backend, **kwargs)
    for name, value in got.items():
        assert value.dtype == same[name].dtype, f"{name}: {value.dtype}, expected {same[name].dtype}"
        assert_close(name, value, exact[name], same[name])
    return got
