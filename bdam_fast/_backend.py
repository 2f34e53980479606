"""Chooses who computes an operator: the same rule and the same words for all of them."""

import os
import sys
import warnings
from functools import lru_cache

import torch

from . import _native

BACKENDS = ("auto", "cuda", "triton", "cpu", "reference")
_warned: set[str] = set()
# Folder of this package, as frames name its files.
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


@_native.constant_in_graphs
def resolve(op: str, backend: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """`"cuda"`, `"triton"`, `"cpu"` or `"reference"` for an operator whose first tensor lies on `device`.

    `auto` takes the best kernel that is there, and says once (a warning with the remedy) when only the reference is
    left. An explicit choice that cannot be met is an error.

    Raises:
        TypeError: float64 with `cuda` or `triton`.
        ValueError: unknown backend, or one whose kernels run on another device.
        RuntimeError: a backend whose kernels are not built or not installed, or that has none for this operator.
    """
    if backend == "auto":
        chosen = automatic(op, device, dtype)
        if chosen == "reference":
            _warn_once(op, device, dtype)
        return chosen
    if backend == "reference":
        return "reference"
    if backend == "cpu":
        if device.type != "cpu":
            raise ValueError(f'{op}: backend="cpu" needs tensors on the CPU, got {device}')
        _native.extension()
        return "cpu"
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    _require_gpu_kernel(op, backend, device, dtype)
    return backend


def _require_gpu_kernel(op: str, backend: str, device: torch.device, dtype: torch.dtype | None) -> None:
    if backend == "cuda" and op not in _native.CUDA_OPERATORS:
        raise RuntimeError(f'{op}: there is no CUDA C++ kernel; use backend="triton"')
    if not runs_on(backend, device):
        note = " (or TRITON_INTERPRET=1, for tests)" if backend == "triton" else ""
        raise ValueError(f'{op}: backend="{backend}" needs tensors on a GPU{note}, got {device}')
    if dtype == torch.float64:
        raise TypeError(
            f'{op}: backend="{backend}" takes float32, bfloat16 or float16, got float64; use backend="reference"'
        )
    if backend == "cuda":
        _native.cuda_extension()
        if not holds_kernels_for(device):
            raise RuntimeError(
                f"{op}: the CUDA kernels are built for {architectures()}, and this GPU is {_capability(device)}; build them "
                'on this machine, or use backend="triton"'
            )
    elif not _native.triton_available():
        raise RuntimeError(f'{op}: backend="triton" needs the package triton; install it with `pip install triton`')


def runs_on(backend: str, device: torch.device) -> bool:
    """True if the kernels of `cuda` or `triton` can read tensors on `device`. Triton's interpreter reads the CPU's."""
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    return device.type == ("cpu" if interpreted else "cuda")


def automatic(op: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """The backend that `auto` takes for tensors on `device`."""
    if device.type == "cpu":
        return "cpu" if _native.available() else "reference"
    if device.type != "cuda" or dtype == torch.float64:
        return "reference"
    compiled = op in _native.CUDA_OPERATORS and torch.version.hip is None and _native.cuda_available()
    if compiled and holds_kernels_for(device):
        return "cuda"
    return "triton" if _native.triton_available() else "reference"


def architectures() -> str:
    """Compute capabilities that the CUDA library is built for, such as `8.0,9.0+PTX`; empty if it does not say."""
    return getattr(_native._attempt_cuda()[0], "architectures", str)()


def holds_kernels_for(device: torch.device) -> bool:
    """True if the CUDA library holds code that the GPU `device` runs, and where there is no GPU to ask."""
    return _holds(architectures(), _capability(device))


def _capability(device: torch.device) -> str:
    """Compute capability of a GPU, such as `9.0`; empty where there is none."""
    if device.index is not None:
        return _capability_of(device.index)
    return _capability_of(torch.cuda.current_device()) if torch.cuda.is_available() else ""


@lru_cache(maxsize=16)
def _capability_of(index: int) -> str:
    # Asked for each GPU once: a call of an operator has no time for it.
    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability(index)
    return f"{major}.{minor}"


@lru_cache(maxsize=16)
def _holds(built: str, capability: str) -> bool:
    """True if a GPU of this compute capability runs code for one of the architectures `built`.

    Machine code runs on GPUs of the same major version and of no smaller minor one, of an architecture with the suffix `a`
    on that one only; PTX runs on every newer GPU. Without an answer to either, it is taken to run.
    """
    if not built or not capability:
        return True
    major, minor = map(int, capability.split("."))
    for name in built.split(","):
        number, _, ptx = name.partition("+")
        own = number.rstrip("af").split(".")
        built_major, built_minor = int(own[0]), int(own[1])
        exact = (major, minor) == (built_major, built_minor)
        same = exact or (major == built_major and minor >= built_minor and not number.endswith("a"))
        if same or (ptx and number[-1].isdigit() and (major, minor) >= (built_major, built_minor)):
            return True
    return False


def refusal(op: str, backend: str, device: torch.device) -> str:
    """The reason why `backend` cannot run `op` on `device`; an empty string if it can."""
    try:
        resolve(op, backend, device)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def warn_reference(op: str, why: str) -> None:
    """Says once for each operator and reason that a call that asked for kernels runs on the reference."""
    warn_once(f"{op} {why}", f"{op}: running the slow reference: {why}")


def warn_once(key: str, text: str) -> None:
    """A warning at the caller's line, once in a process for each key."""
    if key in _warned:
        return
    _warned.add(key)
    # `skip_file_prefixes` of Python 3.12.
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, RuntimeWarning, stacklevel=level)


def _warn_once(op: str, device: torch.device, dtype: torch.dtype | None) -> None:
    if device.type == "cpu":
        why = f"the compiled extension is not available ({_native.why_missing()}); {_native.REMEDY}"
    elif device.type == "cuda" and dtype == torch.float64:
        why = 'the GPU kernels do not take float64; pass float32, or backend="reference" if that is what you want'
    elif device.type == "cuda":
        why = "neither the CUDA kernels nor triton are available; install triton with `pip install triton`"
    else:
        why = f'there is no kernel for {device.type} tensors; pass backend="reference" if that is what you want'
    warn_reference(op, why)
