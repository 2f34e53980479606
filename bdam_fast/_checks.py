"""Argument checks in one form of words: the operator, the argument, what was expected, what came."""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def shape_text(shape: Sequence[int]) -> str:
    """A shape as Python writes a tuple."""
    return str(tuple(shape))


def check_tensor(op: str, name: str, value: object, device: torch.device | None = None) -> None:
    """A floating tensor (float32, bfloat16, float16 or float64), on `device` if that is given."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {value.dtype}")
    if device is not None and value.device != device:
        raise ValueError(f"{op}: {name} must be on {device} like the first argument, got {value.device}")


def check_dim(op: str, name: str, value: Tensor, text: str, *dims: int) -> None:
    """One of `dims` dimensions; `text` names them, e.g. `(B, D, L)`."""
    if value.dim() not in dims:
        raise ValueError(f"{op}: {name} must have shape {text}, got {shape_text(value.shape)}")


def check_shape(op: str, name: str, value: Tensor, shape: Sequence[int], like: str = "") -> None:
    """Exactly `shape`; `like` names the argument that decides it."""
    if tuple(value.shape) != tuple(shape):
        source = f" like {like}" if like else ""
        raise ValueError(f"{op}: {name} must have shape {shape_text(shape)}{source}, got {shape_text(value.shape)}")


def check_optional(
    op: str, name: str, value: object, shape: Sequence[int], device: torch.device, like: str = ""
) -> None:
    """None, or a floating tensor on `device` of exactly `shape`."""
    if value is not None:
        check_tensor(op, name, value, device)
        check_shape(op, name, value, shape, like)  # type: ignore[arg-type]


def sums_dtype(first: Tensor) -> torch.dtype:
    """The dtype of sums and states: float64 for a float64 argument, else float32."""
    return torch.float64 if first.dtype == torch.float64 else torch.float32


def check_sums(op: str, name: str, value: object, shape: Sequence[int], first: Tensor) -> None:
    """A tensor of exactly `shape` in the dtype of the sums over `first`, on its device."""
    check_tensor(op, name, value, first.device)
    assert isinstance(value, Tensor)
    if value.dtype != sums_dtype(first):
        raise TypeError(f"{op}: {name} must be {sums_dtype(first)} for these arguments, got {value.dtype}")
    check_shape(op, name, value, shape)


def check_saved(op: str, name: str, value: object, shape: Sequence[int], first: Tensor) -> None:
    """A tensor that the forward saved for the backward: contiguous, of exactly `shape`, in the dtype of the sums."""
    check_sums(op, name, value, shape, first)
    if isinstance(value, Tensor) and not value.is_contiguous():
        strides = shape_text(value.stride())
        raise ValueError(f"{op}: {name} must be contiguous, as the forward saved it, got strides {strides}")


def check_seq_idx(op: str, value: object, shape: Sequence[int], device: torch.device) -> None:
    """An int32 or int64 tensor (B, L)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: seq_idx must be a tensor, got {type(value).__name__}")
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: seq_idx must be int32 or int64, got {value.dtype}")
    check_shape(op, "seq_idx", value, shape)
    if value.device != device:
        raise ValueError(f"{op}: seq_idx must be on {device} like the first argument, got {value.device}")


def narrow_index(seq_idx: Tensor | None) -> Tensor | None:
    """seq_idx as the kernels take it, int32; an int64 one, which `torch.tensor` makes, is converted."""
    return seq_idx.to(torch.int32) if isinstance(seq_idx, Tensor) and seq_idx.dtype == torch.int64 else seq_idx


def check_order(op: str, name: str, value: Tensor, channels: int, like: str) -> None:
    """No (B, L, D) where (B, D, L) is meant, as far as the D channels of `like` can tell."""
    if value.dim() == 3 and value.shape[1] != channels == value.shape[2]:
        raise ValueError(
            f"{op}: {name} must have shape (B, D, L) with D = {channels} like {like}, got {shape_text(value.shape)}, "
            f"which looks like (B, L, D); pass {name}.transpose(1, 2)"
        )


def check_devices(op: str, first: Tensor, others: Sequence[Tensor | None]) -> None:
    """One device for all tensors: one meta tensor among real ones would have the fake function run for the kernel."""
    for value in others:
        if value is not None and value.device != first.device:
            raise ValueError(f"{op}: all tensors must be on {first.device} like the first argument, got {value.device}")


def check_not_expanded(op: str, name: str, value: Tensor) -> None:
    """No two elements of a tensor that will be written share memory."""
    if any([size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride(), strict=True)]):
        raise ValueError(
            f"{op}: {name} is updated in place and must not be expanded, got strides {shape_text(value.stride())}"
        )


def check_not_leaf(op: str, name: str, value: Tensor) -> None:
    """In grad mode, no leaf that requires grad: autograd has no history to record its update in."""
    if torch.is_grad_enabled() and value.requires_grad and value.is_leaf:
        raise RuntimeError(
            f"{op}: {name} is updated in place and must not be a leaf that requires grad, got one; pass {name}.clone() "
            "or call under torch.no_grad()"
        )
