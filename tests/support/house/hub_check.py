"""Checks of kernels that hub_kernel.py has laid out: `TRITON_INTERPRET=1 python hub_check.py FOLDER …`, on a CPU.

Loads each folder with the package `kernels` beside the bdam_fast that is installed, and prints the id of each.
"""

import sys
from pathlib import Path
from types import ModuleType

import torch
from kernels import Metadata, get_local_kernel
from kernels._rust import Digest, DigestAlgorithm

import bdam_fast


def gradients(package: ModuleType, backend: str) -> list[torch.Tensor]:
    """Results and gradients of a scan and a convolution by one copy of the package."""
    torch.manual_seed(0)
    x, steps, weight = torch.randn(1, 4, 9), torch.rand(1, 4, 9), torch.randn(4, 4)
    A, B, C = -torch.rand(4, 8), torch.randn(1, 8, 9), torch.randn(1, 8, 9)
    leaves = [t.requires_grad_() for t in (x, weight, steps, A)]
    out = package.selective_scan(package.causal_conv1d(x, weight, backend=backend), steps, A, B, C, backend=backend)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def namespaces() -> set[str]:
    """Namespaces of this project below torch.ops that hold an operator."""
    return {name.partition("::")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("bdam_fast")}


def main() -> None:
    """Exit code 1 where a copy computes something else or registers operators under a name that is not its own."""
    expected = gradients(bdam_fast, "cpu")
    before = namespaces()
    for folder in map(Path, sys.argv[1:]):
        metadata = Metadata.read_from_file(folder / "metadata.json")
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, folder))
        kernel = get_local_kernel(folder)
        for backend in ("triton", "reference"):
            for ours, theirs in zip(expected, gradients(kernel, backend), strict=True):
                torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
        before |= {metadata.id}
        if namespaces() != before or kernel.__name__ != metadata.id or kernel._native.available():
            sys.exit(f"{folder}: operators in {sorted(namespaces())}, expected {sorted(before)}")
        print(metadata.id)
    for ours, again in zip(expected, gradients(bdam_fast, "cpu"), strict=True):
        if not torch.equal(ours, again):
            sys.exit("bdam_fast computes something else than before a kernel was loaded")
    if bdam_fast.call_counts()["selective_scan.cpu.forward"] != 2:
        sys.exit(f"calls of a kernel count as those of bdam_fast: {bdam_fast.call_counts()}")


if __name__ == "__main__":
    main()
