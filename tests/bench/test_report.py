"""Rows on disk, targets, tables and plots of the benchmark."""

import csv
import shutil
import sys

import pytest
import torch
from PIL import Image

from bench.harness import gpu_table, report, results, targets
from bench.harness.machine import Machine
from bench.pipeline import training

MACHINE = Machine(bandwidth=1e9, flops=1e9, threads=2, rates={"exp2": 1e6, "softplus": 1e5, "sigmoid": 2e5})
SCANS = ["lean_loop", "blocked_loop", "compilable_loop", "chunked_cumsum", "mambapy", "transformers_scan"]
DIFFERENTIABLE = SCANS[2:]


def row(variant: str, milliseconds: float | str, kind: str = "eager", **changes: str) -> dict[str, str]:
    """A row as it is read back from a CSV."""
    first = targets.targets()[0]
    base = dict.fromkeys(results.COLUMNS, "") | {"date": "2020-01-01T00:00:00Z", "mode": "full", "malloc": "default"}
    base |= {"op": first.op, "shape": first.shape, "order": first.order, "dtype": first.dtype, "direction": "forward"}
    base |= {"variant": variant, "kind": kind, "median_ms": str(milliseconds), "machine": "a CPU", "threads": "2"}
    base |= {"p20_ms": str(milliseconds), "p80_ms": str(milliseconds), "times_ours": "1", "rounds": "9"}
    return base | changes


def test_rows_are_appended_and_never_edited(tmp_path):
    path = results.append([{"op": "x", "variant": "a"}], tmp_path)
    first = path.read_text()
    assert results.append([{"op": "x", "variant": "b"}], tmp_path, mode="quick") == path
    assert path.read_text().startswith(first)
    read = results.read(path)
    assert [(r["variant"], r["mode"]) for r in read] == [("a", "full"), ("b", "quick")]
    assert all(r["commit"] and r["torch"] == torch.__version__ and r["threads"] and r["load"] for r in read)
    with pytest.raises(ValueError, match="dict contains fields not in fieldnames"):
        results.append([{"colour": "red"}], tmp_path)
    path.write_text("date,op\n")
    with pytest.raises(RuntimeError, match="has other columns than this version writes"):
        results.append([{"op": "x"}], tmp_path)


def test_rows_of_training_runs_fit_the_columns():
    curve = [{"seconds": 0.1}, {"seconds": 0.3}, {"seconds": 0.2}]
    made = training._row(training.Arguments(), "reference", curve, {"cpu": 0.2, "reference": 0.6})
    assert set(made) <= set(results.COLUMNS)
    assert (made["median_ms"], made["times_ours"], made["rounds"]) == ("200", "3", "3")


def test_newest_full_run_of_one_malloc_setting_wins():
    rows = [row("a", 1), row("a", 2, date="2021"), row("a", 3, date="2022", mode="quick")]
    rows += [row("a", 4, date="2019", malloc="kept"), row("q", 5, shape="only quick", mode="quick")]
    assert [[r["median_ms"] for r in case] for case in results.newest(rows)] == [["2"], ["5"]]
    assert [[r["median_ms"] for r in case] for case in results.newest(rows, "kept")] == [["4"]]
    # Training runs under the environment's setting, which says nothing about how the operators were measured.
    rows.append(row("t", 6, op="training", date="2030", malloc="another"))
    assert [[r["median_ms"] for r in case] for case in results.newest(rows)] == [["2"], ["5"]]


def test_ratio_to_the_fastest_peer_of_a_kind():
    case = [
        row("o", 2, "ours"),
        row("a", 50),
        row("b", 40),
        row("c", 10, "compiled"),
        row("d", "", "eager", note="wrong"),
    ]
    assert results.ratio(case, "eager") == 20 and results.ratio(case, "compiled") == 5
    assert results.ratio(case[:1], "eager") is None
    first, second = targets.targets()[:2]
    assert first.reached(first.value([case])) and second.reached(second.value([case]))
    assert targets.targets()[2].value([case]) is None


def test_share_above_the_limit_is_no_success():
    target = next(t for t in targets.targets() if t.measure == "share_of_limit")
    words = [targets.verdict(target, value) for value in (None, 0.1, 0.99, 1.35)]
    assert words == ["not measured", "not reached", "reached", "impossible: the limit is measured too low"]


def test_memory_target_is_a_share_of_the_formula():
    target = next(t for t in targets.targets() if "peak" in t.direction)
    same = {"op": target.op, "shape": target.shape, "order": "", "direction": target.direction, "times_ours": ""}
    case = [row("bdam_fast", "", "ours", peak_mib="10", **same), row("textbook", "", peak_mib="400", **same)]
    assert target.value([case]) == 0.025 and target.reached(0.025) and not target.reached(0.06)


def test_report_into_a_folder(tmp_path):
    rows = [row("bdam_fast", 2, "ours", share_of_limit="0.61"), row("lean loop", 40, times_ours="20", rounds="3")]
    rows += [row("mambapy", "", "skipped", note="not installed"), row("bdam_fast", 9, "ours", malloc="kept", date="1")]
    path = tmp_path / "a-cpu-2t.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=results.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    whole = tmp_path / "benchmarks.md"
    whole.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    cases = report.write_page(path)
    page = path.with_suffix(".md").read_text()
    assert "lean loop 20 × (3 rounds)" in page and "61%" in page and "mambapy: not installed" in page
    assert "Not shown: rows under other malloc settings (kept)" in page
    assert path.with_suffix(".png").stat().st_size > 1000
    report.update_page(whole, report.summary(cases, "results/a-cpu-2t.md", "results/a-cpu-2t.png"))
    text = whole.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "lean loop, 40 ms | 20 ×" in text and "(results/a-cpu-2t.png)" in text
    whole.write_text("nothing here")
    with pytest.raises(ValueError, match="has no <!-- bench:begin -->"):
        report.update_page(whole, "")


def test_committed_pages_and_plot_are_those_of_the_committed_rows(tmp_path, monkeypatch):
    rows = sorted(results.RESULTS.glob("*.csv"))
    for path in rows:
        shutil.copy(path, tmp_path)
    page, figure = tmp_path / "benchmarks.md", tmp_path / "speed.png"
    page.write_text(f"{report.BEGIN}\n{report.END}\n")
    words = ["--folder", str(tmp_path), "--page", str(page), "--figure", str(figure)]
    monkeypatch.setattr(sys, "argv", ["report", *words])
    report.main()
    for path in rows:
        if gpu_table.has_gpu_rows(path):
            gpu_table.write_page(tmp_path / path.name)
        assert (tmp_path / path.name).with_suffix(".md").read_text() == path.with_suffix(".md").read_text()
    section = (results.ROOT / "docs/benchmarks.md").read_text().partition(report.BEGIN)[2].partition(report.END)[0]
    assert (
        section.replace("../bench/results/", "") == page.read_text().partition(report.BEGIN)[2].partition(report.END)[0]
    )
    with Image.open(figure) as drawn:
        assert drawn.width == 1400


def test_page_shows_the_newest_machine_with_all_cases_of_the_plot():
    whole = []
    for op, shape, order, dtype, direction in report.SPEED_CASES.values():
        case = {"op": op, "shape": shape, "order": order, "dtype": dtype, "direction": direction}
        whole.append([row("bdam_fast", 2, "ours", **case), row("lean loop", 40, **case)])
    assert [(title, own["median_ms"], peer["median_ms"]) for title, own, peer in report.speed_pairs(whole)] == [
        (title, "2", "40") for title in report.SPEED_CASES
    ]
    later = [[{**line, "date": "2030-01-01T00:00:00Z"} for line in case] for case in whole]
    part, no_peer = later[:-1], [*later[:-1], later[-1][:1]]
    assert report.speed_pairs(part) == report.speed_pairs(no_peer) == []
    assert max([part, whole, no_peer], key=report.shown_first) is whole
    assert max([whole, later], key=report.shown_first) is later


@pytest.mark.parametrize(
    ("text", "shown"), [("0.0123", "12.3 µs"), ("0.1", "0.1 ms"), ("12.345", "12.3 ms"), ("18400", "18.4 s")]
)
def test_times_have_a_unit_that_fits(text, shown):
    assert results.milliseconds(text) == shown
