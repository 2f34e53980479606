"""The GPU benchmark's cases and peers, measured on a CPU with stand-ins for the peers' extensions."""

import io
import tarfile
import time
from dataclasses import replace

import pytest
import torch

from bench.gpu import cases, peers, run, timer
from bench.harness import gpu_table, results
from bench.harness.case import Case
from bench.ops import selective_scan
from tests.bench.test_gpu import FACTS, NO_GPU, stopwatch


def archive(path, files):
    """A .tar.gz with these files, as a source archive."""
    with tarfile.open(path, "w:gz") as made:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            made.addfile(info, io.BytesIO(text.encode()))


def test_peers_sources_from_archives_and_folders(tmp_path):
    scan = "mamba_ssm-2.0/csrc/selective_scan"
    archive(tmp_path / "mamba_ssm-2.0.tar.gz", {f"{scan}/a.cpp": "1", f"{scan}/b.cu": "2", f"{scan}/c.cuh": "3"})
    archive(tmp_path / "other-1.0.tar.gz", {"other-1.0/csrc/x.cu": "1"})
    into = tmp_path / "build"
    found = peers.sources(peers.SCAN, tmp_path, into)
    assert [f.name for f in found] == ["a.cpp", "b.cu"] and not (into / "other-1.0").exists()
    assert peers.sources(peers.SCAN, tmp_path, into) == found
    with pytest.raises(RuntimeError, match="no sources of causal-conv1d in"):
        peers.sources(peers.CONV, tmp_path, into)
    unpacked = tmp_path / "causal-conv1d-main" / "csrc"
    unpacked.mkdir(parents=True)
    (unpacked / "conv.cu").write_text("")
    assert peers.sources(peers.CONV, tmp_path, into) == [unpacked / "conv.cu"]
    with pytest.raises(RuntimeError, match="BDAM_FAST_PEERS must be a folder"):
        peers.sources(peers.CONV, tmp_path / "nowhere", into)


@NO_GPU
def test_absent_peers_say_why(monkeypatch, tmp_path):
    peers.missing_peer.cache_clear()
    monkeypatch.delenv("BDAM_FAST_PEERS", raising=False)
    assert "mamba-ssm is not installed" in peers.missing_peer("selective_scan")
    assert "set BDAM_FAST_PEERS" in peers.missing_peer("causal_conv1d")
    peers.missing_peer.cache_clear()
    monkeypatch.setenv("BDAM_FAST_PEERS", str(tmp_path / "nowhere"))
    assert "must be a folder" in peers.missing_peer("causal_conv1d")
    peers.missing_peer.cache_clear()


class FakeScan:
    """mamba-ssm's extension as its C++ declares it, by this package's CPU kernels; it insists on adjacent steps."""

    @staticmethod
    def _scan(u, delta, A, B, C, D, z, bias):
        assert all(t.stride(-1) == 1 for t in (u, delta, B, C, z)) and B.dim() == C.dim() == 4
        return selective_scan.ours(u, delta, A, B, C, D, z, bias)

    def fwd(self, *args):
        *tensors, softplus = args
        assert softplus
        u, delta = tensors[:2]
        return torch.empty_like(delta), torch.empty(*u.shape[:2], 1, 2), self._scan(*tensors)

    def bwd(self, *args):
        *tensors, dout, _states, _out, dz, softplus, recompute = args
        assert dz is None and softplus and not recompute and dout.stride(-1) == 1
        own = [t.detach().requires_grad_() for t in tensors]
        with torch.enable_grad():
            du, ddelta, dA, dB, dC, dD, dz, dbias = torch.autograd.grad(self._scan(*own), own, dout)
        return du, ddelta, dA, dB, dC, dD, dbias, dz


class FakeConv:
    """causal-conv1d's extension as its C++ declares it: results are written into arguments."""

    def causal_conv1d_fwd(self, x, weight, bias, seq_idx, initial, out, final, silu):
        assert (seq_idx, initial, final, silu) == (None, None, None, True)
        out.copy_(torch.nn.functional.silu(self._conv(x, weight, bias)))

    def causal_conv1d_bwd(self, x, weight, bias, dout, seq_idx, initial, dfinal, dx, dweight, dbias, dinitial, silu):
        assert (seq_idx, initial, dfinal, dinitial, silu) == (None, None, None, None, True)
        own = [t.detach().requires_grad_() for t in (x, weight, bias)]
        with torch.enable_grad():
            grads = torch.autograd.grad(torch.nn.functional.silu(self._conv(*own)), own, dout)
        for target, value in zip((dx, dweight, dbias), grads, strict=True):
            target.copy_(value)

    @staticmethod
    def _conv(x, weight, bias):
        width = weight.shape[1]
        return torch.nn.functional.conv1d(x, weight[:, None], bias, padding=width - 1, groups=x.shape[1])[
            ..., : x.shape[2]
        ]


@pytest.fixture
def fake_peers(monkeypatch):
    modules = {peers.SCAN: FakeScan(), peers.CONV: FakeConv()}
    peers.missing_peer.cache_clear()
    monkeypatch.setattr(peers, "module", lambda peer: modules[peer])
    yield
    peers.missing_peer.cache_clear()


@pytest.fixture
def small_shapes(monkeypatch):
    monkeypatch.setattr(cases, "STREAMS", [(1, (2, 16, 9), ("BLD", "BDL"), torch.float32)])
    monkeypatch.setattr(cases, "PAIRS", [(0, (2, 16, 20), ("linear", "rbf"), torch.float32)])


CHOSEN = {"selective_scan": ["cpu", "reference"], "causal_conv1d": ["cpu"], "hsic": ["cpu"]}


def test_groups_are_measured_and_kept(fake_peers, small_shapes, tmp_path, capsys):
    """The whole way on a CPU: cases, peers round their copies, checks, times, rows, table."""
    kept = []
    groups = list(cases.groups(CHOSEN, "cpu"))
    assert [group.op for group in groups] == ["hsic"] * 2 + ["selective_scan"] * 2 + ["causal_conv1d"] * 2
    limits = timer.gpu_machine(1e9, 1e9, 1e9)
    assert run.measure_groups(groups, 300, limits, stopwatch(), kept.append) == []
    assert len(kept) == 12
    scan = {row["variant"]: row for row in kept[5]}
    assert list(scan) == ["bdam_fast, cpu", "bdam_fast, reference", "mamba-ssm"]
    assert [row["kind"] for row in scan.values()] == ["ours", "other", "eager"]
    assert all(int(r["rounds"]) == timer.SAMPLES and float(r["error"]) < 1e-4 for r in scan.values())
    assert scan["bdam_fast, cpu"]["share_of_limit"] and scan["bdam_fast, cpu"]["direction"] == "forward+backward"
    assert "causal-conv1d" in {row["variant"] for row in kept[-1]}
    for rows in kept:
        path = results.append(rows, tmp_path, **FACTS)
    assert path.name == "nvidia-x100-80gb.csv" and gpu_table.has_gpu_rows(path)
    page = gpu_table.write_page(path)
    assert page == path.with_suffix(".md").read_text() and page.startswith("# NVIDIA X100 80GB, 80 GiB")
    assert page.count("selective_scan B 2 D 16 L 9 N 16 (B, L, D) float32 | forward") == 2
    assert "copy 4300 GB/s" in page and "reference " in page


def test_wrong_kernel_fails_its_group_only(monkeypatch, fake_peers, small_shapes, capsys):
    monkeypatch.setattr(
        cases.causal_conv1d, "run_conv", lambda *t, backend: selective_scan.torch.zeros_like(t[0]) * t[1].sum()
    )
    kept = []
    problems = run.measure_groups(
        cases.groups(CHOSEN, "cpu"), 300, timer.gpu_machine(1e9, 1e9, 1e9), stopwatch(), kept.append
    )
    assert len(problems) == 2 and all("ours is wrong" in problem for problem in problems)
    assert {rows[0]["op"] for rows in kept} == {"selective_scan", "hsic"}


def test_a_device_that_no_longer_answers_ends_the_run(monkeypatch, small_shapes, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(run, "measure_group", broken)
    limits = timer.gpu_machine(1e9, 1e9, 1e9)
    assert len(run.measure_groups(cases.groups(CHOSEN, "cpu"), 300, limits, stopwatch(), list)) == 1


def test_what_a_slower_machine_has_no_time_for_is_cut(small_shapes, monkeypatch, capsys):
    """Estimates of a millisecond each, and groups that take a hundred: the second is expected to take as long as the first."""
    monkeypatch.setattr(run, "measure_group", lambda *a: time.sleep(0.1) or [])
    groups = [replace(group, seconds=1e-3) for group in cases.groups(CHOSEN, "cpu")]
    limits = timer.gpu_machine(1e9, 1e9, 1e9)
    assert run.measure_groups(groups, 0.15, limits, stopwatch(), list) == []
    assert "cut, 5, for this machine takes longer than planned: hsic 2 16 20 rbf float32; " in capsys.readouterr().out


def test_kernels_are_compiled_beforehand(monkeypatch, small_shapes):
    """Each of our variants is called once, peers are not; one that fails is named and hides no other."""
    called = []

    def scan(*tensors, backend):
        called.append(backend)
        if len(called) == 1:
            raise RuntimeError("no such kernel")
        return selective_scan.run_scan_before(*tensors, backend=backend)

    monkeypatch.setattr(selective_scan, "run_scan_before", selective_scan.run_scan, raising=False)
    monkeypatch.setattr(selective_scan, "run_scan", scan)
    groups = cases.groups({"selective_scan": ["cpu", "reference"]}, "cpu")
    assert run.compile_groups(groups) == ["selective_scan 2 16 9 BLD float32: RuntimeError: no such kernel"]
    assert called == ["cpu"] + ["cpu", "reference"] * 2


def test_shapes_that_count_are_there():
    text = [group.title for group in cases.groups({op: ["cuda"] for op in cases.OPS})]
    for length in (77, 192, 193, 197):
        assert {f"selective_scan 64 1536 {length} {o} bfloat16" for o in ("BLD", "BDL")} <= set(text)
    assert {"selective_scan 2 1536 8192 BLD bfloat16", "causal_conv1d 64 512 260 BLD bfloat16"} <= set(text)
    assert len(text) == len(set(text)) and text[0].startswith("selective_scan 64 1536 192")


def test_exact_result_in_parts_is_the_exact_result(monkeypatch):
    torch.manual_seed(0)  # both draw the same upstream gradient
    whole = selective_scan.Problem((5, 4, 7, 3)).exact
    monkeypatch.setattr(selective_scan, "EXACT_STATES", 2 * 4 * 7 * 3)
    torch.manual_seed(0)
    parts = selective_scan.Problem((5, 4, 7, 3)).exact
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_case_without_checks_is_not_possible():
    """Every case of the GPU benchmark has an exact result."""
    case: Case = cases.hsic_cases((1, 8, 4), "linear", torch.float32, ["cpu"], "cpu")[0]
    assert case.exact is not None and all(variant.checked for variant in case.variants)
