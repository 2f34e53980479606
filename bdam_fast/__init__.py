"""Selective scan (Mamba-1), causal convolution and HSIC as PyTorch operators.

Importing the package loads neither the compiled extension nor Triton nor CUDA; an operator loads what it needs when it
is first called. `python -m bdam_fast` prints what is built and what would be chosen.
"""

from ._native import call_counts, reset_call_counts
from ._operators import register_operators
from .flops import register_flop_formulas
from .ops.causal_conv1d.op import causal_conv1d
from .ops.causal_conv1d_update.op import causal_conv1d_update
from .ops.hsic.cka import cka
from .ops.hsic.op import hsic
from .ops.selective_scan.op import selective_scan
from .ops.selective_state_update.op import selective_state_update

from . import compat, nn  # isort: skip  # both call the operators above

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
    "register_operators",
    "reset_call_counts",
    "selective_scan",
    "selective_state_update",
]
