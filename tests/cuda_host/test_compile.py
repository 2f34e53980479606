"""The CUDA sources compile, without a GPU; what each kernel needs stays within its budget (tests/cuda_host/budget.json)."""

import json
import subprocess
import sysconfig
from collections import Counter

import pytest
import torch.utils.cpp_extension as cpp_extension

from bench.gpu import sass
from tests.support.cuda_host import build, flow, nvcc

needs_nvcc = pytest.mark.skipif(nvcc.nvcc() is None, reason="nvcc was not found: install the CUDA toolkit to compile")
needs_disassembler = pytest.mark.skipif(
    sass.disassembler() is None, reason="nvdisasm comes with triton, which is absent"
)
ARCHES = ["90", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("80", "100", "120"))]
BINDINGS = build.cuda_sources(suffixes=[".cpp"])


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    "source", nvcc.sources(), ids=lambda p: "-".join(p.relative_to(build.ROOT / "csrc").with_suffix("").parts)
)
def test_device_code_compiles_without_warnings(source, arch):
    """Spilled registers are a matter of the budget on every architecture, the other numbers on one."""
    cubin, resources = nvcc.compile_cubin(source, arch)
    budget = json.loads(nvcc.BUDGET.read_text())
    assert cubin.stat().st_size > 0 and resources
    assert {name: r.spill for name, r in resources.items() if r.spill > nvcc.spill_budget(budget[name], arch)} == {}


@pytest.mark.skipif(nvcc.nvcc() is None, reason="the bindings are compiled against a CUDA toolkit, which is not there")
@pytest.mark.parametrize(
    "source", BINDINGS, ids=lambda p: "-".join(p.relative_to(build.ROOT / "csrc").with_suffix("").parts)
)
def test_bindings_compile_for_a_gpu(source):
    """As in the real build, against whatever torch is installed: nothing in them needs more than its stable headers."""
    include = [f"-isystem{p}" for p in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"])]
    flags = ["-std=c++17", "-fvisibility=hidden", "-Wall", "-DUSE_CUDA", "-DBDAM_OPS=bdam_fast"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command = ["g++", "-fsyntax-only", *flags, f"-I{build.ROOT / 'csrc'}", *include, source]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and "warning" not in run.stderr, run.stderr


@needs_nvcc
@needs_disassembler
def test_every_kernel_stays_within_its_budget():
    """After a change that is meant: `python -m tests.support.cuda_host.nvcc`, and say in the commit why."""
    budget, measured = json.loads(nvcc.BUDGET.read_text()), nvcc.measure()
    assert sorted(budget) == sorted(measured), "a kernel without a budget, or a budget without a kernel"
    over = [
        f"{name}: {what} {row[what]}, at most {budget[name][what]}"
        for name, row in measured.items()
        for what in row
        if (row[what] or 0) > (budget[name][what] or 0)
    ]
    assert over == []


def test_the_budget_of_whole_scans():
    """Instructions for an element-state at vision models' lengths, in any memory order, and of the passes over chunks."""
    most = {"forward": 11, "backward": 25, "state": 6.1, "carry": 8, "half": 29, "narrow": 27, "narrow, half": 31}
    found = Counter()
    for name, row in json.loads(nvcc.BUDGET.read_text()).items():
        for what, value in row.items():
            if what.startswith("whole_"):
                kind = kind_of_scan(name)
                found[kind] += 1
                assert value <= most[kind], f"{name}: {what} {value}"
    # Four lengths; by channels and by rows, the backward with all states also by vectors of steps, the narrow one by channels.
    assert found == {
        **{"forward": 8, "backward": 12, "state": 2, "carry": 2},
        **{"half": 8, "narrow": 4, "narrow, half": 4},
    }


def kind_of_scan(name: str) -> str:
    """The forward's pass, or the variant of the backward: with 2 channels a thread, half of the saved states, or both."""
    if "backward" not in name:
        return ("forward", "state", "carry")[int(name.split("Pass)")[1][0])]
    variant = ["narrow"] * ("__nv_bfloat16, 2," in name) + ["half"] * name.endswith(", 2>")
    return ", ".join(variant) or "backward"


# The usual scan in bfloat16 with 16 states: element-states of a thread in a tile of 8 steps (of 1 channel with 16 states,
# of 4 or 2 with 4), turns of the innermost loop in it, most instructions for one state, fewest warps of a multiprocessor.
# Without the element-by-element code at the edges, which whole tiles branch over, the backward takes 20.9 instead of 21.4.
USUAL = {
    "device::scan_forward<__nv_bfloat16, 16, 1, (device::Access)0, (device::Pass)0, (device::Case)0>": (128, 2, 10, 16),
    "device::scan_backward<__nv_bfloat16, 4, 4, 4, 4, (device::Access)0, (device::Case)0, 1>": (128, 1, 21.5, 8),
    "device::scan_backward<__nv_bfloat16, 2, 4, 4, 2, (device::Access)0, (device::Case)0, 1>": (64, 1, 25, 12),
}


@needs_nvcc
@needs_disassembler
def test_the_usual_scan_is_lean():
    """At a length that the tile divides, such as 192, where every element-state is a useful one."""
    found = {}
    for source in nvcc.sources():
        cubin, resources = nvcc.compile_cubin(source, nvcc.BUDGET_ARCH)
        for name, kernel in sass.kernels(cubin).items() if USUAL.keys() & resources.keys() else ():
            found[name] = (kernel, resources[name])
    for name, (states, turns, most, warps) in USUAL.items():
        kernel, used = found[name]
        inner = kernel.main_loop("MUFU.EX2")
        assert inner is not None
        outer = [o for o in kernel.loops if o[0] <= inner[0] and inner[1] <= o[1]]
        tile = max(outer, key=lambda loop: loop[1] - loop[0])
        assert (tile == inner) == (turns == 1)
        executed = kernel.count(*tile).total() + (turns - 1) * kernel.count(*inner).total()
        assert 0 < executed / states <= most, f"{name}: {executed / states} instructions an element-state"
        assert kernel.hot_path("MUFU.EX2").total() * turns / states <= most - 0.5
        assert used.spill <= 2 * 66, f"{name}: {used.spill} bytes stored and loaded again, at most 66 each"
        # 65536 registers of a multiprocessor, given out to warps of 32 threads in eights; blocks of 4 warps.
        assert 65536 // (-(-used.registers // 8) * 8 * 128) * 4 >= warps, f"{name}: {used.registers} registers"


SASS = """
//--------------------- .text._Z1fILi4EEvi --------------------------
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E R2, [R4] ;
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/                   IADD3 R2, R2, R3, RZ ;
        /*0040*/                   MUFU.EX2 R3, R2 ;
        /*0050*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0060*/                   FFMA R3, R2, R2, R2 ;
        /*0070*/                   FFMA R3, R2, R2, R3 ;
        /*0080*/                   FFMA R3, R2, R2, R3 ;
.L_x_2:
        /*0090*/              @!P1 BRA `(.L_x_3) ;
        /*00a0*/                   STG.E.64 [R4], R3 ;
.L_x_3:
        /*00b0*/               @P2 BRA `(.L_x_0) ;
        /*00c0*/                   EXIT ;
.L_x_4:
        /*00d0*/                   BRA `(.L_x_4);
"""


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """Reads the kernels of a listing, which a disassembler of this test prints."""

    def read(listing):
        tool = tmp_path / "nvdisasm"
        tool.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\nEND\n")
        tool.chmod(0o755)
        monkeypatch.setattr(sass, "disassembler", lambda: tool)
        return sass.kernels(tmp_path / "any.cubin")

    return read


def test_instruction_counts(kernels):
    """The path with the exponential, past the store that a branch leaves out; not the longer way round it."""
    ((name, kernel),) = kernels(SASS).items()
    assert name == "f<4>" and len(kernel.instructions) == 14 and kernel.loops == [(1, 11)]
    assert kernel.hot_path("MUFU.EX2") == Counter({"LDG": 1, "BRA": 4, "IADD3": 1, "MUFU.EX2": 1})
    assert kernel.hot_path("MUFU.RCP") == Counter()


LOOPS = """
//--------------------- .text.scan        --------------------------
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/               @P3 BRA `(.L_x_5) ;
        /*0020*/                   LDG.E R9, [R4] ;
        /*0030*/                   LDG.E R9, [R4] ;
.L_x_5:
        /*0040*/                   NOP ;
.L_x_0:
        /*0050*/                   MOV R2, R3 ;
.L_x_1:
        /*0060*/                   MUFU.EX2 R3, R2 ;
        /*0070*/               @P0 BRA `(.L_x_1) ;
        /*0080*/               @P1 BRA `(.L_x_2) ;
        /*0090*/                   LDGSTS.E [R4], [R6.64] ;
        /*00a0*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*00b0*/                   LDG.E R2, [R4] ;
        /*00c0*/                   STS [R4], R2 ;
        /*00d0*/                   STS [R4], R2 ;
        /*00e0*/                   STS [R4], R2 ;
.L_x_3:
        /*00f0*/               @P2 BRA `(.L_x_0) ;
        /*0100*/                   EXIT ;
.L_x_4:
        /*0110*/                   BRA `(.L_x_4);
"""


def test_counts_of_whole_kernels(kernels):
    """A loop in a loop: copies rather than the longer way, and the longest way outside."""
    (kernel,) = kernels(LOOPS).values()
    found = flow.Flow(kernel)
    tile, inner = found.main
    assert (len(tile.nodes), len(inner.nodes)) == (11, 2)
    # In a tile MOV, two turns of MUFU and BRA, and BRA, LDGSTS, BRA, BRA.
    assert found.way({inner: 2}, flow.shortest, tile) == flow.Way(2, 1, 9)
    # Outside MOV, BRA, two LDG, NOP and EXIT, or without the LDG.
    assert found.way({tile: 3, inner: 2}, flow.longest) == flow.Way(6, 3, 33)
    assert found.way({tile: 3, inner: 2}, flow.shortest) == flow.Way(6, 3, 31)
    # Two tiles of 8 steps, in each the inner loop turns twice.
    assert flow.whole_count(kernel, 16) == (6 + 2 * 9) / (16 * 16)
    assert flow.scan_counts("scan", kernel) == {} and flow.Flow(sass.Kernel(("EXIT",), {})).main == []


REPLAY = """
//--------------------- .text.scan        --------------------------
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/               @P0 BRA `(.L_x_1) ;
        /*0020*/                   MUFU.EX2 R3, R2 ;
        /*0030*/                   LDGSTS.E [R4], [R6.64] ;
        /*0040*/                   MUFU.EX2 R3, R3 ;
.L_x_1:
        /*0050*/                   MUFU.EX2 R3, R2 ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
        /*0070*/                   LDGSTS.E [R4], [R6.64] ;
.L_x_2:
        /*0080*/               @P3 BRA `(.L_x_3) ;
        /*0090*/                   FADD R3, R3, R3 ;
.L_x_3:
        /*00a0*/               @P2 BRA `(.L_x_0) ;
        /*00b0*/                   EXIT ;
.L_x_4:
        /*00c0*/                   BRA `(.L_x_4);
"""


def test_counts_of_a_backward_that_saved_every_second_state(kernels):
    """The tiles with an odd number walk the one before again: 9 instructions instead of 6, and one more of the last tile."""
    (kernel,) = kernels(REPLAY).values()
    found = flow.Flow(kernel)
    (tile,) = found.main
    assert found.way({}, flow.shortest, tile) == flow.Way(3, 2, 9)
    assert found.way({}, flow.shortest_without_replay, tile) == flow.Way(1, 1, 6)
    assert found.way({}, flow.longest_without_replay, tile) == flow.Way(1, 1, 7)
    counts = {n: flow.whole_count(kernel, n, 8, 2) * n * 8 for n in (8, 16, 24, 30)}
    assert counts == {8: 2 + 6, 16: 2 + 6 + 9, 24: 2 + 6 + 9 + 6, 30: 2 + 6 + 9 + 6 + 10}
    assert flow.whole_count(kernel, 17, 8, 2) * 17 * 8 == pytest.approx(2 + 6 + 9 + 7)


PTXAS = """ptxas info    : Compiling entry function '_Z1fILi4EEvi' for 'sm_90'
ptxas info    : Function properties for _Z1fILi4EEvi
    0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 26 registers, used 1 barriers, 1024 bytes smem
"""


def test_resources_are_read():
    assert nvcc.read_resources(PTXAS) == {"f<4>": nvcc.Resources(26, 20, 1024)}
