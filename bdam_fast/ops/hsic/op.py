"""hsic: the public function, its checks, and the operator's fake and autograd formulas.

N samples, Dx and Dy features.
"""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ... import _autograd, _backend, _checks, _operators
from .reference import hsic_reference

OP = "hsic"
KERNELS = ("linear", "rbf")
ESTIMATORS = ("biased", "unbiased")
NUMBERS = (int, float, torch.SymInt, torch.SymFloat)  # the last two where a graph has them from a shape
ROW = 16  # kHsicRow in csrc/hsic/hsic.h


def hsic(
    x: Tensor,
    y: Tensor,
    *,
    kernel: str = "linear",
    sigma_x: float | Tensor | None = None,
    sigma_y: float | Tensor | None = None,
    estimator: str = "biased",
    backend: str = "auto",
) -> Tensor:
    """Hilbert-Schmidt independence criterion of N paired samples, zero in the limit if x and y are independent.

    Biased (Gretton et al. 2005; equation 2 of the BDAM paper): tr(K H L H) / (N - 1)^2 with the kernel matrices K of x
    and L of y and H = I - 1/N. For the linear kernel that is |Xc^T Yc|_F^2 / (N - 1)^2 with centred X, Y.
    Unbiased (Song et al. 2012), with zero diagonals:
    (tr(K L) + (1'K1)(1'L1) / ((N-1)(N-2)) - 2 (1'KL1) / (N-2)) / (N (N-3)).

    Args:
        x: (..., N, Dx), y: (..., N, Dy), of one dtype (under autocast the wider one of both); the leading
            dimensions are a batch of separate problems.
        kernel: `linear`, <a, b>, or `rbf`, exp(-|a - b|^2 / (2 sigma^2)).
        sigma_x, sigma_y: widths of the rbf kernel, numbers > 0 or tensors that broadcast to (...), without gradient.
            None is the median heuristic for each problem: sqrt(m / 2), where m is the median of |x_i - x_j|^2 over
            i < j (the lower of the two in the middle; their mean where the median is zero, and sigma = 1 where all
            rows are equal). It is exact for any N, and taken as a constant in the gradient.
        estimator: `biased` (N >= 2) or `unbiased` (N >= 4).
        backend: `auto`, `triton`, `cpu` or `reference`.

    Inputs may be float32, bfloat16, float16 or float64; sums are float32 (float64 for float64). Both have gradients.
    The kernels never hold an N x N matrix for the rbf kernel (above 512 samples: up to there the distances are
    gathered for their median), and for the linear one only where N is below the harmonic mean of Dx and Dy. Results
    are the same bits at every call and for any number of threads.

    Returns:
        (...), float32, or float64 for float64 inputs: 16-bit types would overflow at values of ordinary size.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, too few samples, a width that is not positive, or an unknown kernel, estimator or
            backend.
        RuntimeError: a backend that is not available.

    Second derivatives, forward-mode AD and `torch.func` transforms run on the reference, which says so once.
    """
    x, y = checked_pair(x, y, kernel, estimator)
    if x.dim() > 3 and not torch.compiler.is_compiling():
        _warn_of_images(x)
    gaussian, unbiased = kernel == "rbf", estimator == "unbiased"
    width_x = _width("sigma_x", sigma_x, gaussian, x)
    width_y = _width("sigma_y", sigma_y, gaussian, x)
    chosen = _backend.resolve(OP, backend, x.device, x.dtype)
    if chosen == "reference":
        return hsic_reference(x, y, width_x, width_y, gaussian, unbiased)
    batch = x.shape[:-2]
    if len(batch) != 1:
        x, y = (t.reshape(batch.numel(), *t.shape[-2:]) for t in (x, y))
        width_x, width_y = (None if t is None else t.reshape(batch.numel()) for t in (width_x, width_y))
    value = OPERATOR.call(chosen, (x, y, width_x, width_y), (gaussian, unbiased))[0]
    return value if len(batch) == 1 else value.reshape(batch)


def checked_pair(x: Tensor, y: Tensor, kernel: str, estimator: str) -> tuple[Tensor, Tensor]:
    """x (..., N, Dx) and y (..., N, Dy) in one dtype. Raises as `hsic` for them, the kernel and the estimator."""
    if not isinstance(x, Tensor):
        _checks.check_tensor(OP, "x", x)
    if kernel not in KERNELS:
        raise ValueError(f"{OP}: kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"{OP}: estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    if isinstance(y, Tensor) and x.dtype != y.dtype and torch.is_autocast_enabled(x.device.type):
        x, y = _promoted(x, y)
    _check(x, y, estimator)
    return x, y


def _promoted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes: under autocast one may come out of a matrix product and the other not."""
    if x.dtype in _checks.FLOATING and y.dtype in _checks.FLOATING:
        dtype = torch.promote_types(x.dtype, y.dtype)
        return x.to(dtype), y.to(dtype)
    return x, y


def _warn_of_images(x: Tensor) -> None:
    """Says once what feature maps (N, C, H, W) would be taken for."""
    shape, batch = (_checks.shape_text(s) for s in (x.shape, x.shape[:-2]))
    _backend.warn_once(
        f"{OP} {x.dim()}",
        f"{OP}: x of shape {shape} is a batch of {batch} problems with {x.shape[-2]} samples each; for N images "
        "(N, C, H, W) pass x.flatten(1)",
    )


def _check(x: Tensor, y: Tensor, estimator: str) -> None:
    _checks.check_tensor(OP, "x", x)
    _checks.check_tensor(OP, "y", y, x.device)
    for name, value, text in (("x", x, "(..., N, Dx)"), ("y", y, "(..., N, Dy)")):
        if value.dim() < 2:
            raise ValueError(f"{OP}: {name} must have shape {text}, got {_checks.shape_text(value.shape)}")
        if value.shape[-1] < 1:
            raise ValueError(f"{OP}: {name} must have a feature, got shape {_checks.shape_text(value.shape)}")
    if y.dtype != x.dtype:
        raise TypeError(f"{OP}: y must be {x.dtype} like x, got {y.dtype}")
    if x.shape[:-1] != y.shape[:-1]:
        expected = f"{_checks.shape_text(x.shape[:-1])[:-1].rstrip(',')}, Dy)"
        raise ValueError(f"{OP}: y must have shape {expected} like x, got {_checks.shape_text(y.shape)}")
    least = 2 if estimator == "biased" else 4
    if x.shape[-2] < least:
        raise ValueError(f"{OP}: the {estimator} estimator needs at least {least} samples, got {x.shape[-2]}")


def _check_has_width(name: str, gaussian: bool) -> None:
    if not gaussian:
        raise ValueError(f'{OP}: {name} is for kernel="rbf" only, got it with kernel="linear"')


def _width(name: str, sigma: float | Tensor | None, gaussian: bool, x: Tensor) -> Tensor | None:
    """A given width as a tensor of the batch's shape in the type of the sums."""
    if sigma is None:
        return None
    _check_has_width(name, gaussian)
    batch, dtype = x.shape[:-2], _checks.sums_dtype(x)
    if isinstance(sigma, Real) and not isinstance(sigma, NUMBERS):
        sigma = float(sigma)  # of numpy
    if isinstance(sigma, NUMBERS) and not isinstance(sigma, bool):
        if not 0 < sigma < float("inf"):
            raise ValueError(f"{OP}: {name} must be positive and finite, got {sigma}")
        return x.new_full(batch, sigma, dtype=dtype)
    if not isinstance(sigma, Tensor):
        raise TypeError(f"{OP}: {name} must be None, a number or a tensor, got {type(sigma).__name__}")
    _checks.check_tensor(OP, name, sigma, x.device)
    if sigma.requires_grad:
        raise ValueError(f"{OP}: {name} must not require a gradient: it is a constant; pass {name}.detach()")
    try:
        width = sigma.to(dtype).expand(batch)
    except RuntimeError:
        raise ValueError(
            f"{OP}: {name} must broadcast to {_checks.shape_text(batch)}, got {_checks.shape_text(sigma.shape)}"
        ) from None
    # In a graph, and for those that vmap takes one each, values cannot decide what runs.
    is_known = not torch.compiler.is_compiling() and not _autograd.is_batched(sigma)
    if is_known and not ((width > 0) & width.isfinite()).all():
        raise ValueError(f"{OP}: {name} must be positive and finite in every entry")
    return width


def _check_raw(
    x: Tensor, y: Tensor, sigma_x: Tensor | None, sigma_y: Tensor | None, gaussian: bool, unbiased: bool
) -> None:
    _check(x, y, ESTIMATORS[int(unbiased)])
    _checks.check_dim(OP, "x", x, "(batch, N, Dx)", 3)
    for name, sigma in (("sigma_x", sigma_x), ("sigma_y", sigma_y)):
        if sigma is not None:
            _check_has_width(name, gaussian)
            _checks.check_sums(OP, name, sigma, (x.shape[0],), x)


def _check_backward(dvalue: Tensor, x: Tensor, y: Tensor, saved: Tensor, gaussian: bool, unbiased: bool) -> None:
    _check_raw(x, y, None, None, gaussian, unbiased)
    _checks.check_sums(OP, "dvalue", dvalue, (x.shape[0],), x)
    shape = (x.shape[0], *_saved_shape(_operators.NAMESPACES["triton"], x, y, gaussian))
    _checks.check_saved(OP, "saved", saved, shape, x)


class _Hsic(torch.autograd.Function):
    """`apply((namespace, raw, gaussian, unbiased), x, y, sigma_x, sigma_y)`, as `Operator` records a call."""

    @staticmethod
    def forward(ctx: Any, options: tuple[Any, ...], *tensors: Any) -> Any:
        namespace, raw, *flags = options
        if any(ctx.needs_input_grad[3:]):
            raise RuntimeError(f"{OP}: a width is a constant and has no gradient")
        value, saved = _autograd.below_autograd(_operators.raw(namespace, "hsic_forward"), (*tensors, *flags))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, saved)
        ctx.namespace, ctx.flags = namespace, flags
        if raw:
            ctx.mark_non_differentiable(saved)
            return value, saved
        return (value,)

    @staticmethod
    def backward(ctx: Any, dvalue: Tensor | None, *_: Any) -> Any:
        if dvalue is None:
            return (None,) * 5
        raw = _operators.raw(ctx.namespace, "hsic_backward")
        *tensors, saved = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            call = _autograd.recorded_backward(
                OP, lambda *own: _reference(*own, *ctx.flags), tensors, needed[1:], (dvalue,)
            )
            return (None, *call)
        grads = _autograd.below_autograd(raw, (dvalue, *tensors[:2], saved, *ctx.flags))
        return (None, *(g if need else None for g, need in zip(grads, needed[1:3], strict=True)), None, None)


def _saved_shape(namespace: str, x: Tensor, y: Tensor, gaussian: bool) -> tuple[int, ...]:
    """The shape of what a forward saves for each problem; in C++ the rule of form_of and saved_size in hsic.cpp."""
    samples, width_x, width_y = x.shape[1], x.shape[2], y.shape[2]
    if namespace == _operators.NAMESPACES["triton"]:
        from .triton_impl import saved_shape

        return saved_shape(samples, width_x, width_y, gaussian)
    if gaussian:
        return (4 + 2 * samples,)
    if samples * (width_x + width_y) <= 2 * width_x * width_y:
        return (2 * samples * samples,)
    return (width_x * ((width_y + ROW - 1) // ROW // 2 * 2 + 1) * ROW,)


def _fake_forward(namespace: str) -> Any:
    """The forward's shapes, whose saved values differ between the kernels."""

    def fake(
        x: Tensor,
        y: Tensor,
        sigma_x: Tensor | None,
        sigma_y: Tensor | None,
        gaussian: bool,
        unbiased: bool,
    ) -> tuple[Tensor, Tensor]:
        _checks.check_devices(OP, x, (y, sigma_x, sigma_y))
        batch, dtype = x.shape[0], _checks.sums_dtype(x)
        saved = _saved_shape(namespace, x, y, gaussian)
        return x.new_empty((batch,), dtype=dtype), x.new_empty((batch, *saved), dtype=dtype)

    return fake


def _fake_backward(
    dvalue: Tensor, x: Tensor, y: Tensor, saved: Tensor, gaussian: bool, unbiased: bool
) -> tuple[Tensor, Tensor]:
    _checks.check_devices(OP, x, (dvalue, y, saved))
    return torch.empty_like(x), torch.empty_like(y)


def _reference(*arguments: Any) -> tuple[Tensor]:
    """The value of the raw operator's arguments."""
    return (hsic_reference(*arguments),)


OPERATOR = _operators.Operator(
    OP,
    _Hsic.apply,
    _operators.Raw(_fake_forward, _check_raw, by_namespace=True),
    _operators.Raw(_fake_backward, _check_backward),
    reference=_reference,
)
