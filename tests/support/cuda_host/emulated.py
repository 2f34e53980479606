"""The CUDA C++ kernels as operators on CPU tensors: `torch.ops.bdam_fast_emulated.<operator>(…)`, through the emulation.

Launchers, launch configurations and device code are the real ones; schemas are those of `torch.ops.bdam_fast`.
"""

import importlib.util
import os
from functools import lru_cache
from types import ModuleType

import torch
from torch.library import Library

from bdam_fast import _native
from tests.support.cuda_host import build

_KERNELS = ("selective_scan", "causal_conv1d")
OPERATORS = [f"{op}_{direction}" for op in _KERNELS for direction in ("forward", "backward")]
OPERATORS += ["selective_state_update", "causal_conv1d_update"]


@lru_cache(maxsize=1)
def module() -> ModuleType:
    """The emulated `_C_cuda`, built if need be and loaded; the operators exist from then on.

    It is the sanitized one in a process that `build.run_sanitized` has started.
    """
    _native.extension()
    _define()
    path = build.library(sanitize=os.environ.get(build.SANITIZED, ""))
    spec = importlib.util.spec_from_file_location("_C_cuda", path)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


@lru_cache(maxsize=1)
def _define() -> Library:
    """The schemas; the library object has to stay alive with them."""
    library = Library(build.NAMESPACE, "FRAGMENT")
    for name in OPERATORS:
        schema = str(getattr(torch.ops.bdam_fast, name).default._schema)
        library.define(schema.removeprefix("bdam_fast::"))
    return library
