"""Selective scan (Mamba-1), causal convolution and HSIC as PyTorch operators.

Importing the package loads neither the compiled extension nor Triton nor CUDA; an operator loads what it needs when it
is first called. `python -m bdam_fast` prints what is built and what would be chosen.
"""

from bdam_fast._native import call_counts, reset_call_counts
from bdam_fast.flops import register_flop_formulas
from bdam_fast.ops.causal_conv1d.op import causal_conv1d
from bdam_fast.ops.causal_conv1d_update.op import causal_conv1d_update
from bdam_fast.ops.hsic.cka import cka
from bdam_fast.ops.hsic.op import hsic
from bdam_fast.ops.selective_scan.op import selective_scan
from bdam_fast.ops.selective_state_update.op import selective_state_update

from bdam_fast import compat, nn  # isort: skip  # both call the operators above

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "call_counts",
    "causal_conv1d",
    "causal_conv1d_update",
    "cka",
    "compat",
    "hsic",
    "nn",
    "register_flop_formulas",
    "reset_call_counts",
    "selective_scan",
    "selective_state_update",
]
