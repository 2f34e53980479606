"""Checks an installed bdam_fast whose CUDA library was built on a machine that may have no GPU.

`PYTHON -I tests/support/cuda_check.py` (isolated, so that the installed package is imported and not the checkout): loads
both libraries, imports every module, and compares what the CUDA library registered with the operators that it should hold.
Needs nothing but torch; exits with 1 and one line for each fault.
"""

import importlib
import os
import pkgutil
import re
import sys
import time
from pathlib import Path


def faults() -> list[str]:
    """Lists all that is wrong, one line each."""
    import torch

    import bdam_fast
    from bdam_fast import _native

    found = []
    begun = time.perf_counter()
    try:
        cuda = _native.cuda_extension()
    except RuntimeError as error:
        return [str(error)]
    size = Path(cuda.__file__).stat().st_size / 1e6
    print(f"{cuda.__file__}: {size:.1f} MB, loaded in {time.perf_counter() - begun:.2f} s, torch {torch.__version__}")
    for module in pkgutil.walk_packages(bdam_fast.__path__, "bdam_fast."):
        if not re.search(r"\._C|integrations|triton", module.name):
            importlib.import_module(module.name)
    held = cuda.architectures()
    print(f"built for {held}")
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", held).replace(";", ",").replace(" ", ",")
    if held != asked:
        found.append(f"the library says that it is built for {held!r}, expected {asked!r}")
    for op in _native.CUDA_OPERATORS:
        names = [op] if op.endswith("_update") else [f"{op}_forward", f"{op}_backward"]
        for name in names:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"bdam_fast::{name}", "CUDA"):
                found.append(f"bdam_fast::{name} has no CUDA kernel")
            print(getattr(torch.ops.bdam_fast, name).default._schema)
    return found


if __name__ == "__main__":
    wrong = faults()
    print("\n".join(wrong) or "the CUDA library holds what it should")
    sys.exit(1 if wrong else 0)
