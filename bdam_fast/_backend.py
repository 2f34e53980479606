"""Chooses who computes an operator: the same rule and the same words for all of them."""

import warnings

from torch import device as Device

from bdam_fast import _native

BACKENDS = ("auto", "cpu", "reference")
LATER = ("cuda", "triton")
_warned: set[str] = set()


@_native.constant_in_graphs
def resolve(op: str, backend: str, device: Device) -> str:
    """`"cpu"` or `"reference"` for an operator whose tensors lie on `device`.

    `auto` takes the kernel where there is one, and says once (a warning with the remedy) when only the reference is
    left. An explicit choice that cannot be met is an error.

    Raises:
        ValueError: unknown backend, or `cpu` with tensors that lie elsewhere.
        RuntimeError: `cpu` without the extension, or a backend that this version does not have.
    """
    if backend == "auto":
        chosen = automatic(device)
        if chosen == "reference":
            _warn_once(op, device)
        return chosen
    if backend == "cpu":
        if device.type != "cpu":
            raise ValueError(f'{op}: backend="cpu" needs tensors on the CPU, got {device}')
        _native.extension()
        return "cpu"
    if backend == "reference":
        return "reference"
    if backend in LATER:
        raise RuntimeError(f'{op}: this version has no "{backend}" backend; choose one of {", ".join(BACKENDS)}')
    raise ValueError(f"{op}: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def automatic(device: Device) -> str:
    """What `auto` takes for tensors on `device`."""
    return "cpu" if device.type == "cpu" and _native.available() else "reference"


def refusal(op: str, backend: str, device: Device) -> str:
    """Why `backend` cannot run `op` on `device`; an empty string if it can."""
    try:
        resolve(op, backend, device)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def _warn_once(op: str, device: Device) -> None:
    key = f"{op} {device.type}"
    if key in _warned:
        return
    _warned.add(key)
    if device.type == "cpu":
        why = f"the compiled extension is not available ({_native.why_missing()}); {_native.REMEDY}"
    else:
        why = f'this version has no kernel for {device.type} tensors; pass backend="reference" if that is what you want'
    warnings.warn(f"{op}: running the slow reference: {why}", RuntimeWarning, stacklevel=4)
