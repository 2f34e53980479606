"""Checks of an installed wheel, run from anywhere: which library was loaded, and the operators against their references."""

import sys
from pathlib import Path

import torch

import bdam_fast
from bdam_fast import _native


def main() -> None:
    """Prints the place of the library and the largest error; exit code 1 where a result is wrong."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 24, 33), torch.randn(24, 4)
    steps, A, B, C = torch.rand(2, 24, 33), -torch.rand(24, 16), torch.randn(2, 16, 33), torch.randn(2, 16, 33)
    calls = {
        "causal_conv1d": lambda backend: bdam_fast.causal_conv1d(x, weight, backend=backend),
        "selective_scan": lambda backend: bdam_fast.selective_scan(x, steps, A, B, C, backend=backend),
        "hsic": lambda backend: bdam_fast.hsic(x[0], x[1], kernel="rbf", backend=backend),
    }
    worst = max((call("cpu") - call("reference")).abs().max().item() for call in calls.values())
    library = Path(_native.extension().__file__)
    print(
        f"{library.name} in {library.parent}, torch {torch.__version__}, Python {sys.version.split()[0]}: error {worst:.1e}"
    )
    if not worst < 1e-4:
        sys.exit("bdam_fast: the operators of this wheel differ from their references")


if __name__ == "__main__":
    main()
