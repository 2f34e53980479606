"""The autograd pattern of every operator: one Function per operator, also registered for its raw forward.

A raw operator has no C++ autograd (the stable ABI has none). Its public function calls the kernel below autograd when
no gradient is asked for, and its Function otherwise; the same choice is registered as the raw operator's Autograd
kernel, so that `torch.compile` and direct calls meet the same formula. What kernels would silently get wrong (they would
drop forward-mode tangents, and a second derivative would take the backward for a constant) public functions leave to the
reference, which says so once; a raw operator raises.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _backend, _native

_below_autograd = torch._C._AutoDispatchBelowAutograd
_libraries: list[torch.library.Library] = []  # a registration lives as long as its Library object


@_native.constant_in_graphs
def _in_transform() -> bool:
    # A constant since torch.compile, which has the transforms of a graph on the same stack while it traces them, takes no
    # answer of this function for None. The graph is guarded by the stack.
    return torch._C._functorch.peek_interpreter_stack() is not None


def transform(args: Sequence[Any]) -> str:
    """The name of what no kernel sees: a `torch.func` transform (vmap, grad, jvp, …) or a forward-mode tangent; else ""."""
    if _in_transform():
        return "torch.func transforms need"
    if forward_ad._current_level < 0:
        return ""
    for value in args:
        if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            return "forward-mode differentiation needs"
    return ""


def is_batched(value: Tensor) -> bool:
    """True for a tensor that stands for several under `torch.func.vmap`, whatever other transforms are around it."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(value):
        if functorch.is_batchedtensor(value):
            return True
        value = functorch.get_unwrapped(value)
    return False


def refuse_transforms(op: str, args: Sequence[Any]) -> None:
    """Raises in a raw operator under `torch.func` transforms and for a forward-mode tangent."""
    if needs := transform(args):
        raise RuntimeError(f'{op}: {needs} backend="reference"')


@_native.constant_in_graphs
def warn_reference(op: str, why: str) -> bool:
    """`_backend.warn_reference`, also from within a graph, when it is traced."""
    _backend.warn_reference(op, why)
    return True


def needs_grad(args: Sequence[Any]) -> bool:
    """True where autograd would record a call with these arguments."""
    if torch.is_grad_enabled():
        for value in args:  # any() and a generator take 1 us more
            if value is not None and getattr(value, "requires_grad", False):
                return True
    return False


def below_autograd(raw: Callable[..., Any], args: Sequence[Any]) -> Any:
    """Calls a raw operator without autograd's dispatch."""
    with _below_autograd():
        return raw(*args)


def mark_written(value: Tensor) -> None:
    """Notes that a kernel wrote into `value`: a backward that saved its old contents then raises instead of using them."""
    if not value.is_inference():
        torch._C._increment_version([value])


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off in a reference: sums and states are float32 whatever the caller's autocast says."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def recorded_backward(
    op: str,
    reference: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Any],
    needed: Sequence[bool],
    upstream: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of those `tensors` that need one, in a backward that is itself recorded (create_graph).

    No kernel has a second derivative, so that they come from plain autograd through `reference(*tensors)`.
    """
    _backend.warn_reference(op, "a gradient of gradients, which the kernels do not have")
    with torch.enable_grad():
        # Aliases: one argument may be computed from another, through which no gradient must come here.
        own = [t.view_as(t) if need else t for t, need in zip(tensors, needed, strict=True)]
        results = reference(*own)
    wanted = [t for t, need in zip(own, needed, strict=True) if need]
    pairs = [(r, g) for r, g in zip(results, upstream, strict=False) if g is not None and r.requires_grad]
    if not pairs:
        return [None] * len(own)
    outputs, grads = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]


def register(namespace: str, name: str, kernel: Callable[..., Any]) -> None:
    """Makes `kernel` the Autograd kernel of the raw operator `namespace::name`."""
    library = torch.library.Library(namespace, "IMPL")
    library.impl(name, kernel, "Autograd")
    _libraries.append(library)


def register_once_differentiable(op: str, namespace: str, name: str) -> None:
    """Gives the raw backward operator a derivative that raises: there is no second-order formula."""
    raw = getattr(getattr(torch.ops, namespace), name).default

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            return below_autograd(raw, args)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError(f'{op}: double backward is not implemented by the kernels; use backend="reference"')

    def kernel(*args: Any) -> Any:
        refuse_transforms(op, args)
        return Once.apply(*args) if needs_grad(args) else below_autograd(raw, args)

    register(namespace, name, kernel)
