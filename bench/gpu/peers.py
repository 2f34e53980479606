"""Existing CUDA kernels of the scan and the convolution, built if necessary, and called as their packages do.

An installed `mamba-ssm` or `causal-conv1d` is used as it is. Otherwise the folder BDAM_FAST_PEERS may hold their sources,
`*.tar.gz` as `pip download --no-binary :all:` fetches them or unpacked: their `csrc` is compiled for the GPU at hand.
`python -m bench.gpu.peers` builds them beforehand, side by side.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils import cpp_extension

from bench.harness.results import ROOT

BUILD = ROOT / "build" / "peers"
# What both packages' own setup passes to nvcc; the last one compiles the instantiations of a file on all cores.
NVCC = ["-O3", "--use_fast_math", "--expt-relaxed-constexpr", "--expt-extended-lambda"]
NVCC += [f"-U__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS")]
NVCC += [f"-U__CUDA_NO_BFLOAT16{two}_{what}__" for two in ("", "2") for what in ("OPERATORS", "CONVERSIONS")]
NVCC += ["-split-compile", "0"]


@dataclass(frozen=True)
class Peer:
    """A package with a compiled module."""

    package: str
    module: str
    # The folder of its sources inside the package's.
    sources: str
    # How its folder and its archive begin.
    prefix: str


SCAN = Peer("mamba-ssm", "selective_scan_cuda", "csrc/selective_scan", "mamba")
CONV = Peer("causal-conv1d", "causal_conv1d_cuda", "csrc", "causal")
PEERS = {"selective_scan": SCAN, "causal_conv1d": CONV}


def folder() -> Path | None:
    """Folder with the peers' sources, None where BDAM_FAST_PEERS is not set."""
    value = os.environ.get("BDAM_FAST_PEERS")
    return Path(value) if value else None


def unpack(where: Path, into: Path) -> None:
    """Unpacks the peers' archives in `where`, and no others, each once."""
    for archive in sorted(where.glob("*.tar.gz")):
        name = archive.name.removesuffix(".tar.gz")
        if name.startswith(tuple(peer.prefix for peer in PEERS.values())) and not (into / name).exists():
            with tarfile.open(archive) as opened:
                opened.extractall(into, filter="data")


def sources(peer: Peer, where: Path, into: Path = BUILD) -> list[Path]:
    """C++ and CUDA files of a peer, from a folder or an archive in `where`; of several versions the last by name.

    Raises:
        RuntimeError: there are none.
    """
    if not where.is_dir():
        raise RuntimeError(f"BDAM_FAST_PEERS must be a folder, got {where}")
    into.mkdir(parents=True, exist_ok=True)
    unpack(where, into)
    for place in (where, into):
        for candidate in sorted(place.glob(f"{peer.prefix}*"), reverse=True):
            found = sorted(p for p in (candidate / peer.sources).glob("*") if p.suffix in (".cpp", ".cu"))
            if found:
                return found
    raise RuntimeError(
        f"no sources of {peer.package} in {where} (neither {peer.prefix}*.tar.gz nor a folder {peer.prefix}*)"
    )


def build(peer: Peer, where: Path) -> ModuleType:
    """Compiles a peer's sources for this GPU, or loads the module that an earlier call compiled."""
    files = sources(peer, where)
    output = BUILD / peer.module
    output.mkdir(parents=True, exist_ok=True)
    # A build that was killed leaves its lock, and the next one would wait for it forever.
    (output / "lock").unlink(missing_ok=True)
    # The same flags in every process, or ninja would compile again.
    os.environ["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
    return cpp_extension.load(
        peer.module,
        [str(f) for f in files],
        extra_cflags=["-O3"],
        extra_cuda_cflags=NVCC,
        extra_include_paths=[str(files[0].parent)],
        build_directory=str(output),
        verbose=False,
    )


@cache
def module(peer: Peer) -> ModuleType:
    """The compiled module of a peer.

    Raises:
        RuntimeError: it is neither installed nor among the sources, or it does not compile; the message says which.
    """
    try:
        return importlib.import_module(peer.module)
    except ImportError as problem:
        where = folder()
        if where is None:
            raise RuntimeError(
                f"{peer.package} is not installed ({problem}); install it, or put its source archive into a folder and "
                "set BDAM_FAST_PEERS to that"
            ) from None
    return build(peer, where)


@cache
def missing_peer(op: str) -> str:
    """Builds the peer of an operator; returns the reason why it cannot be measured, or an empty string."""
    try:
        module(PEERS[op])
    except Exception as problem:  # of the compiler or the loader: the row carries the message
        return f"{type(problem).__name__}: {str(problem).splitlines()[0][:200]}"
    return ""


def _steps_adjacent(t: Tensor) -> Tensor:
    """Copies an operand whose last dimension is not contiguous, as mamba-ssm's wrapper does."""
    return t if t.stride(-1) == 1 else t.contiguous()


class _MambaScan(torch.autograd.Function):
    """Calls and copies that mamba-ssm makes around its kernels (softplus on, gate and bias given, one group)."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias):  # noqa: ANN001, ANN205
        u, delta, B, C, z = (_steps_adjacent(t) for t in (u, delta, B, C, z))
        tensors = (u, delta, A, B.unsqueeze(1), C.unsqueeze(1), D, z, delta_bias)
        out, states, gated = module(SCAN).fwd(*tensors, True)
        ctx.save_for_backward(*tensors, states, out)
        return gated

    @staticmethod
    def backward(ctx, dout):  # noqa: ANN001, ANN205
        *tensors, states, out = ctx.saved_tensors
        dout = _steps_adjacent(dout)
        du, ddelta, dA, dB, dC, dD, dbias, dz = module(SCAN).bwd(*tensors, dout, states, out, None, True, False)
        return du, ddelta, dA, dB.squeeze(1), dC.squeeze(1), dD, dz, dbias


def mamba_scan(*tensors: Tensor) -> Tensor:
    """selective_scan of (u, delta, A, B, C, D, z, delta_bias) by mamba-ssm."""
    return _MambaScan.apply(*tensors)


def _one_adjacent(t: Tensor) -> Tensor:
    return t if 1 in (t.stride(1), t.stride(2)) else t.contiguous()


class _CausalConv(torch.autograd.Function):
    """Calls and copies that causal-conv1d makes around its kernels (bias given, SiLU)."""

    @staticmethod
    def forward(ctx, x, weight, bias):  # noqa: ANN001, ANN205
        x = _one_adjacent(x)
        out = torch.empty_like(x)
        module(CONV).causal_conv1d_fwd(x, weight, bias, None, None, out, None, True)
        ctx.save_for_backward(x, weight, bias)
        return out

    @staticmethod
    def backward(ctx, dout):  # noqa: ANN001, ANN205
        x, weight, bias = ctx.saved_tensors
        dx = torch.empty_like(x)
        dweight, dbias = (torch.zeros_like(t, dtype=torch.float32) for t in (weight, bias))
        dout = _one_adjacent(dout)
        module(CONV).causal_conv1d_bwd(x, weight, bias, dout, None, None, None, dx, dweight, dbias, None, True)
        return dx, dweight.type_as(weight), dbias.type_as(bias)


def causal_conv(*tensors: Tensor) -> Tensor:
    """causal_conv1d with SiLU of (x, weight, bias) by causal-conv1d."""
    return _CausalConv.apply(*tensors)


CALLS: dict[str, Callable[..., Tensor]] = {"selective_scan": mamba_scan, "causal_conv1d": causal_conv}


def main() -> None:
    """Builds the peers of the operators named, by default of all side by side; absent peers are no error."""
    ops = sys.argv[1:]
    if not ops:
        processes = [subprocess.Popen([sys.executable, "-m", "bench.gpu.peers", op], cwd=ROOT) for op in PEERS]
        sys.exit(max(process.wait() for process in processes))
    for peer in (PEERS[op] for op in ops):
        try:
            result = f"ready, {module(peer).__file__}"
        except Exception as problem:  # the compiler's whole message belongs into this log
            result = str(problem)
        sys.stdout.write(f"{peer.package}: {result}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
