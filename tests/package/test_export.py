"""A graph that holds for every length: export with parameters that require grad, and compilation with dynamic shapes."""

import subprocess
import sys

import pytest
import torch

import bdam_fast
from bdam_fast.nn import Mamba
from bdam_fast.ops.selective_scan import fake
from tests.support import ROOT
from tests.support.operators.selective_scan import scan_problem

pytestmark = pytest.mark.usefixtures("kernels")
Dim = torch.export.Dim


@pytest.mark.parametrize("example", [12, 33, 70])
@pytest.mark.parametrize("length", [Dim("l", min=2, max=512), Dim("l", min=1, max=4096), Dim.AUTO], ids=str)
@pytest.mark.parametrize("options", [{}, {"d_state": 1, "expand": 1}], ids=str)
def test_export_of_a_block(example, length, options):
    block = Mamba(16, backend="cpu", **options).eval()
    assert all(p.requires_grad for p in block.parameters())
    program = torch.export.export(block, (torch.randn(2, example, 16),), dynamic_shapes=({0: Dim.AUTO, 1: length},))
    for batch, steps in ((2, 2), (3, 32), (2, 33), (5, 65), (2, 300)):
        hidden = torch.randn(batch, steps, 16)
        torch.testing.assert_close(program.module()(hidden), block(hidden), rtol=0, atol=0)


@pytest.mark.parametrize("example", [9, 40])
def test_export_with_states(example):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Mamba(16, backend="cpu")

        def forward(self, hidden):
            return self.block(hidden, return_states=True, reverse=True)

    block = Block()
    program = torch.export.export(
        block, (torch.randn(2, example, 16),), dynamic_shapes=({1: Dim("l", min=2, max=999)},)
    )
    hidden = torch.randn(2, 100, 16)
    torch.testing.assert_close(program.module()(hidden), block(hidden), rtol=0, atol=0)


def test_export_of_the_scan_alone():
    class Scan(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.A = torch.nn.Parameter(-torch.ones(5, 3))

        def forward(self, u, B):
            return bdam_fast.selective_scan(u, u, self.A, B, B, delta_softplus=True, backend="cpu")

    length = Dim("l", min=2, max=4096)
    problem = scan_problem(2, 5, 20, 3)
    shapes = ({2: length}, {2: length})
    program = torch.export.export(Scan(), (problem["u"], problem["B"]), dynamic_shapes=shapes)
    again = scan_problem(2, 5, 500, 3)
    torch.testing.assert_close(program.module()(again["u"], again["B"]), Scan()(again["u"], again["B"]))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """File of a program, as another process finds it."""
    path = tmp_path_factory.mktemp("program") / "block.pt2"
    torch.export.save(torch.export.export(Mamba(16, backend="cpu"), (torch.randn(2, 5, 16),)), path)
    return path


# What loads the library, and must not leave operators without derivatives or shapes.
LOADING = ("register_operators()", "register_flop_formulas()", "call_counts()", "_native.available()")


@pytest.mark.parametrize("first", LOADING)
def test_a_stored_program_has_derivatives_and_shapes(first, stored):
    code = f"""
import sys, torch, bdam_fast
bdam_fast.{first}
program = torch.export.load(sys.argv[1])
block = program.module()
block(torch.randn(2, 5, 16)).sum().backward()
without = [name for name, value in block.named_parameters() if value.grad is None]
assert not without, without
program.run_decompositions()
"""
    done = subprocess.run([sys.executable, "-c", code, str(stored)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_operator_is_registered():
    """By Triton too where it is installed; it is an error only where there are no kernels at all."""
    code = """
import sys
if "no kernels" in sys.argv:
    sys.modules["bdam_fast._C"] = sys.modules["triton"] = None
import torch, bdam_fast
from bdam_fast import _native, _operators
bdam_fast.register_operators(), bdam_fast.register_operators()
spaces = ["bdam_fast"] + ["bdam_fast_triton"] * _native.triton_available()
for space in spaces:
    for operator in _operators.OPERATORS.values():
        for name in operator.raws:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{space}::{name}", "Autograd"), (space, name)
"""
    for arguments, error in (([], ""), (["no kernels"], "the compiled extension is not available")):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode == 0) == (not error) and error in done.stderr, done.stderr


@pytest.mark.parametrize("lengths", [(7, 31, 32, 33, 64, 65, 100, 200), (40, 12, 300)])
def test_one_graph_for_all_lengths(lengths):
    """Forward and backward of a block that trains."""
    torch._dynamo.reset()
    block = Mamba(16, d_state=4, backend="cpu")
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=count)
    for length in lengths:
        hidden = torch.randn(2, length, 16)
        torch.testing.assert_close(compiled(hidden), block(hidden))
    assert len(graphs) == 1


@pytest.mark.parametrize("namespace", ["bdam_fast", "bdam_fast_triton"])
@pytest.mark.parametrize("states", [1, 16])
def test_saved_states_are_never_empty_nor_one_from_two_steps_on(namespace, states):
    if namespace == "bdam_fast_triton":
        pytest.importorskip("triton")
    for length in range(2, 100):
        problem = scan_problem(1, 2, length, states)
        batch, size = fake.saved_shape(namespace, *(problem[n] for n in ("u", "A", "B", "C")))
        assert batch == 1 and size >= 2
        needed = {"bdam_fast": (length - 1) // 32, "bdam_fast_triton": (length - 1) // 8}[namespace]
        assert size >= needed * 2 * states
