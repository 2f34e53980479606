"""The benchmark's own code: peers against the reference, arithmetic by hand, rows on disk, the report."""

import time

import pytest
import torch

from bench import run
from bench.harness import machine, measure, results
from bench.harness.case import Case, Variant, Work, relative_error
from bench.harness.machine import Machine
from bench.ops import causal_conv1d, hsic, peers, selective_scan

MACHINE = Machine(bandwidth=1e9, flops=1e9, threads=2, rates={"exp2": 1e6, "softplus": 1e5, "sigmoid": 2e5})
SCANS = ["lean_loop", "blocked_loop", "compilable_loop", "chunked_cumsum", "mambapy", "transformers_scan"]
DIFFERENTIABLE = SCANS[2:]


def needs(name: str) -> None:
    module = {"mambapy": ("mambapy.pscan", "pscan")}
    module["transformers_scan"] = (peers.TRANSFORMERS_MODULE, "mamba_selective_scan")
    why = peers.missing(*module[name]) if name in module else ""
    if why:
        pytest.skip(why)


@pytest.mark.parametrize("order", ["BLD", "BDL"])
@pytest.mark.parametrize("name", SCANS)
def test_scan_peers_compute_the_scan(name, order):
    needs(name)
    problem = selective_scan.Problem((2, 6, 37, 5), order)
    direction = "forward+backward" if name in DIFFERENTIABLE else "forward"
    result = problem.run(direction, getattr(peers, name))()
    assert relative_error(result, problem.exact[: len(result)]) < 1e-5


def test_chunk_of_the_log_space_form_does_not_overflow_at_the_benchmarks_inputs():
    problem = selective_scan.Problem((1, 512, 273, 16))
    assert relative_error(problem.run("forward", peers.chunked_cumsum)(), problem.exact[:1]) < 1e-5


def test_both_orders_hold_the_same_numbers():
    one, other = (selective_scan.Problem((2, 3, 5, 4), order).inputs for order in ("BLD", "BDL"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["u"].stride() != other["u"].stride()


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_conv_peer_computes_the_convolution(direction):
    problem = causal_conv1d.Problem((2, 6, 11, 4), "BLD")
    result = problem.variant("", direction, causal_conv1d.torch_conv).call()
    assert relative_error(result, problem.exact[: len(result)]) < 1e-6


@pytest.mark.parametrize("sigma", [None, 3.0])
@pytest.mark.parametrize("formula", ["textbook", "centred_sum"])
def test_hsic_formulas_compute_hsic(formula, sigma):
    results_by = []
    for function, dtype in ((getattr(hsic, formula), torch.float32), (hsic.ours, torch.float64)):
        results_by.append(hsic.runner(function, hsic.inputs((3, 12, 20), dtype), sigma, "forward+backward")())
    assert relative_error(*results_by) < 1e-5


def test_error_is_relative_to_the_largest_entry_of_each_result():
    exact = [torch.tensor([1.0, -4.0]), torch.tensor([100.0])]
    assert relative_error([torch.tensor([1.0, -3.0]), torch.tensor([101.0])], exact) == pytest.approx(0.25)
    assert relative_error([torch.tensor([1.0, float("nan")]), torch.tensor([100.0])], exact) == float("inf")
    zero = [torch.zeros(2), torch.tensor([10.0])]
    assert relative_error([torch.full((2,), 1e-3), torch.tensor([10.0])], zero) == pytest.approx(1e-4)
    with pytest.raises(ValueError, match=r"results must have shapes \[\(2,\), \(1,\)\], got \[\(3,\)\]"):
        relative_error(torch.zeros(3), exact)


def test_limit_is_the_largest_of_bytes_functions_and_products():
    # 4e6 bytes at 1e9/s: 4 ms. 1e4 exp2 at 2 * 1e6/s: 5 ms, 1e3 softplus at 2 * 1e5/s: 5 ms. 2e6 operations: 2 ms.
    work = Work(bytes=4e6, exp2=1e4, softplus=1e3, flops=2e6)
    assert machine.limit_seconds(work, MACHINE) == pytest.approx(0.010)
    assert machine.limit_seconds(Work(bytes=4e7, exp2=1e4), MACHINE) == pytest.approx(0.040)
    unknown = Machine(1e9, 1e9, 2, reason="no elementary_rate")
    assert machine.limit_seconds(work, unknown) is None
    assert machine.limit_seconds(Work(bytes=1e6, flops=2e6), unknown) == pytest.approx(0.002)


def test_scan_work_by_hand():
    # B 1, D 2, L 3, N 4: 6 elements, 24 element-states, 12 entries of B and of C.
    forward = selective_scan.work((1, 2, 3, 4), "forward")
    assert forward == Work(bytes=4 * (4 * 6 + 2 * 12), exp2=24, softplus=6, sigmoid=6)
    both = selective_scan.work((1, 2, 3, 4), "forward+backward")
    assert both == Work(bytes=4 * (11 * 6 + 6 * 12), exp2=48, softplus=12, sigmoid=18)


def test_hsic_work_takes_the_cheaper_form():
    few, many = hsic.work((1, 64, 768), "linear", "forward"), hsic.work((1, 4096, 256), "linear", "forward")
    assert few.flops == 2 * 64 * 64 * 768 and many.flops == 2 * 4096 * 256 * 256


def test_timing_takes_measured_percentiles():
    assert measure.timing([5, 1, 3, 2, 4]) == measure.Timing(3, 2, 4, 5)
    assert measure.timing([1.0, 2.0]).median == 1.5


def fake_case(**peer_results: float) -> Case:
    """Ours returns 1; each peer returns its own number."""

    def result(value: float):  # noqa: ANN202
        return lambda: torch.tensor([value])

    variants = [Variant("bdam_fast", result(1.0), "ours", elements=10, states=20)]
    variants += [Variant(name, result(value)) for name, value in peer_results.items()]
    variants.append(Variant("main", result(7.0), "anchor", elements=5, states=20, checked=False))
    work = Work(bytes=1e3)
    return Case("op", "shape", "forward", variants, lambda: [torch.ones(1)], work, skipped={"gone": "not installed"})


def test_wrong_and_failing_peers_are_reported_and_not_timed():
    case = fake_case(right=1.0, wrong=1.5)
    broken = Variant("broken", lambda: torch.zeros(0).item())
    made = measure.measure_case(Case(**{**vars(case), "variants": [*case.variants, broken]}), MACHINE, rounds=3)
    rows = {row["variant"]: row for row in made}
    assert rows["right"]["error"] == "0.0e+00" and rows["right"]["rounds"] == "3"
    assert rows["wrong"]["note"] == "wrong: error 5.0e-01, allowed 2e-04" and "median_ms" not in rows["wrong"]
    assert rows["broken"]["note"].startswith("failed: RuntimeError") and "median_ms" not in rows["broken"]
    assert rows["gone"] == rows["gone"] | {"note": "not installed", "kind": "skipped"}


def test_ours_being_wrong_stops_the_run():
    case = fake_case()
    wrong = Case(**{**vars(case), "exact": lambda: [torch.tensor([2.0])]})
    with pytest.raises(RuntimeError, match="bench: op shape forward: ours is wrong: error 5.0e-01"):
        measure.measure_case(wrong, MACHINE)


def test_speed_against_the_anchor_and_shares_by_hand():
    own, anchor = Variant("a", list, "ours", elements=10, states=20), Variant("b", list, elements=5, states=20)
    # Ours: 10 elements in 2 ms, the anchor 5 in 0.5 ms: half of its speed; per state 20 in 2 against 20 in 0.5.
    assert measure.speeds(own, 2.0, anchor, 0.5) == {"speed_per_element": "0.500", "speed_per_state": "0.250"}
    case = Case("op", "s", "forward", [], work=Work(bytes=1e6, exp2=4e3))
    assert measure.shares(case, MACHINE, 4.0) == {"share_of_bandwidth": "0.250", "share_of_limit": "0.500"}


def test_slow_peer_gets_fewer_rounds_unless_it_is_the_fastest(monkeypatch):
    monkeypatch.setattr(measure, "SLOW_SECONDS", -1.0)  # every peer counts as slow
    made = measure.measure_case(fake_case(only=1.0), MACHINE)
    rounds = {row["variant"]: row.get("rounds") for row in made}
    assert rounds["only"] == str(measure.MIN_ROUNDS) and int(rounds["bdam_fast"]) >= measure.ROUNDS


def test_time_to_compile_is_no_round(monkeypatch):
    calls = []

    def compiles_first() -> torch.Tensor:
        calls.append(1)
        if len(calls) == 1:
            time.sleep(0.2)
        return torch.ones(1)

    monkeypatch.setattr(measure, "VERY_SLOW_SECONDS", 0.1)
    case = fake_case()
    variants = [*case.variants, Variant("compiled", compiles_first, "compiled")]
    made = measure.measure_case(Case(**{**vars(case), "variants": variants}), MACHINE, rounds=3)
    row = next(row for row in made if row["variant"] == "compiled")
    assert row["rounds"] == "3" and float(row["p80_ms"]) < 100


def test_missing_peer_says_why():
    assert "bench" in peers.missing("no_such_module", "x") and "no_such_module" in peers.missing("no_such_module", "x")
    assert peers.missing("math", "no_such_name") == "math of this version has no no_such_name"


def test_operator_without_tests_is_not_measured():
    with pytest.raises(RuntimeError, match="bench: there are no tests of nothing_like_it"):
        measure.require_tests("nothing_like_it")


@pytest.mark.parametrize("op", [*run.OPS, "loading"])
def test_every_operator_has_cases_and_tests_of_its_own(op):
    """Paths and module names are text here, which a move of files leaves behind."""
    assert all((results.ROOT / path).exists() for path in measure.find_tests(op))
    assert op == "loading" or callable(run.import_op(op).cases)


def test_malloc_setting():
    assert results.malloc_setting({}) == "default"
    assert results.malloc_setting({"MALLOC_TRIM_THRESHOLD_": "9"}) == "MALLOC_TRIM_THRESHOLD_=9"


@pytest.mark.parametrize(
    ("machine_name", "name"),
    [("AMD EPYC", "amd-epyc-2t"), ("Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", "intel-core-i7-1165g7-2-80ghz-2t")],
)
def test_rows_are_kept_by_processor(machine_name: str, name: str) -> None:
    assert results.machine_file({"machine": machine_name, "threads": "2"}).name == f"{name}.csv"
    assert results.machine_file({"machine": machine_name, "threads": "2", "gpu": "A (R) card"}).name == "a-card.csv"
