"""The pages of an experiment, from a summary of made-up numbers."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_experiment import make_summary
from tests.support.html import Page
from training.config.ablations import ABLATIONS
from training.config.recipes import ROWS
from training.evaluation.experiment_result import Curve, Summary, read_summary
from training.report.__main__ import main
from training.report.experiment_page import PAPER, build_experiment, write_experiment, write_markdown
from training.report.learning_curves import mean_curve, rise
from training.utils import cli
from training.utils.io import decode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "summary.json").write_text(json.dumps(make_summary()))
    return tmp_path


def build(summary: dict[str, Any], name: str) -> str:
    return build_experiment(decode(Summary, summary, "summary.json"), name)


@pytest.fixture(scope="module")
def html() -> str:
    return build(make_summary(), "tables")


def test_page_is_well_formed_and_self_contained(html):
    page = Page(html)
    assert page.open == [] and len(html) < 500_000
    assert all(
        link.startswith("#") for _, a in page.tags for k, link in a.items() if k in ("src", "href", "xlink:href")
    )
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "img")]
    assert not re.search(r"url\((?!#)|@import|#0[123]0[123]0[0-9]", html)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)) and html.count("<svg") == 11
    assert 'name="viewport"' in html and html == build(make_summary(), "tables")


def test_page_names_the_weight_at_which_the_clothing_embedding_decides():
    summary = make_summary()
    run = next(iter(summary["runs"].values()))
    run["beta"] = [0.25, 2, 1e6][: len(run["beta"])]
    text = Page(build(summary, "tables")).words()
    assert "0.25 · 2 · 10⁶, clothing alone" in text and "1000000" not in text


def test_page_has_every_number_and_where_it_comes_from(html):
    text = Page(html).words()
    assert "w/o gate 11.50 ± 0.12 21.50 ± 0.12 31.50 ± 0.12 41.50 ± 0.12 51.50 ± 0.12" in text
    assert "+ BDAM 9.90 · 10.00 · 10.10" in text and "chance 0.75" in text
    cost = "100.0 4.2 2 1,234 700 1,410,212 47,138 90.919 4.922"
    # Speed stands with Fig. 5 only.
    assert text.count(cost) > 3 and 0 < text.count(cost + " 1,200 (1,100–1,300) –") < text.count(cost)
    assert "python -m training.experiment all --seeds 0 1 2" in text and "ab" * 32 in text and "torch 2.13.0" in text
    assert "synthetic-tables/no-gate model.bdam.gate = no" in text and "data.image_size" in text
    assert "Not finished: w/o InfoNCE, seed 0; w/o InfoNCE, seed 2." in text
    assert "Pending: Baseline (w/o BDAM); Shallow (half of the layers)." in text
    assert "two-sided p of a hierarchical bootstrap" in text and "Tables 1 to 4, and 5" in text


def test_directions_are_compared_with_the_paper_s(html):
    text = Page(html).words()
    # Paper: 74.63 - 76.27 and 65.11 - 66.74 w/o gate, 71.39 - 76.27 w/o cross-attention, 66.89 - 69.58 w/o Mamba. Two rows
    # of Table 1 are finished besides the reference, so that Holm's correction doubles p.
    gate = "+1.50 +1.00 … +2.00 0.0125 0.0250 better 3 of 3"
    assert f"w/o gate {gate} -1.64 opposite {gate} -1.63 opposite" in text
    assert "w/o cross-attention -2.00 -2.50 … -1.50 0.0125 0.0250 worse 3 of 3 -4.88 same" in text
    assert "w/o Mamba +0.50 +0.00 … +1.00 0.2500 0.2500 unsure 3 of 3 -2.69 unsure" in text
    assert "Transformer, 4 layers -0.75 -1.25 … -0.25 0.2500 0.5000 unsure 3 of 3 – –" in text
    sentences = re.findall(r"<li>(.*?)</li>", html)
    gate = "w/o gate: R-1 +1.50 here (p 0.0250 after Holm's correction), -1.64 in the paper"
    assert len(sentences) == 2 and sentences[0].replace("&#39;", "'") == f"Table 1: decoupling module, {gate}"
    assert "2 more differences have the opposite sign, none significantly." in text


def test_a_difference_that_does_not_survive_is_unsure_everywhere(folder):
    """With six more rows the same p does not survive; then nothing on a page calls the row better, worse, same or opposite."""
    summary = make_summary()
    for table in summary["tables"].values():
        for row in table["rows"]:
            for test in row.get("verdicts", {}).values():
                test |= {"p": 0.0875, "word": "unsure"}
    (folder / "summary.json").write_text(json.dumps(summary))
    page = write_markdown(read_summary(folder), folder / "page.md")[0].read_text()
    for text in (Page(build(summary, "x")).words(), page):
        tables = text[: text.index("How to read it")].replace("opposite sign", "")
        cells = re.findall(r"\b(better|worse|opposite|same|unsure)\b", tables)
        # The axes of Fig. 5 say which direction is better; "the same run" is in the heading of the noise floor.
        assert cells.count("better") == 6 and not {"worse", "opposite"} & {*cells} and cells.count("unsure") > 12
        assert "In no finished row" in text and "unsure" in text
    # Files of early versions have no verdict: nothing is sure there either.
    for table in summary["tables"].values():
        for row in table["rows"]:
            row.pop("verdicts", None)
    assert "w/o gate +1.50 +1.00 … +2.00 0.0125 – unsure" in Page(build(summary, "x")).words()


def test_noise_floor_stands_beside_the_differences(html):
    text = Page(html).words()
    head = "smallest Δ that 3 seeds distinguish largest Δ of a run to the same run on another machine"
    assert f"{head} R-1 0.50 1.25 0.38 mAP – – –" in text
    assert "(t[1 − 0.05/2] + t[0.8]) · s · √(2/n)" in text
    assert text.index("Difference to the reference row") < text.index(head) < text.index("Cost (times")


def test_runs_of_different_machines_are_flagged():
    summary = make_summary()
    text = build(summary, "x")
    assert text.count("All rows: Some CPU, 2 threads.") == 5 and "from different machines" not in text
    summary["runs"]["no-gate"]["machines"] = ["Some CPU, 2 threads", "Some CPU, 1 thread", "Other CPU, 2 threads"]
    text = build(summary, "x")
    apart = "Some CPU, 1 thread: w/o gate (seed 1); Other CPU, 2 threads: w/o gate (seed 2)."
    assert text.count(apart) == 1 and text.count("All rows: Some CPU, 2 threads.") == 4
    assert f"Some CPU, 2 threads: + BDAM, w/o cross-attention, w/o gate (seed 0); {apart}" in text
    summary["runs"]["no-gate"]["machines"] = ["Some CPU, 2 threads", *["Other CPU, 2 threads"] * 2]
    assert "Other CPU, 2 threads: w/o gate (seeds 1, 2)." in build(summary, "x")
    for run in summary["runs"].values():
        del run["machines"]
    assert build(summary, "x").count("All rows: unknown CPU, 2 threads.") == 5


def test_a_row_that_still_learns_is_not_at_plateau(html):
    """The last fifth of five epochs is the last; the floor is the deviation of the ends, 0.1."""
    text = Page(html).words()
    head = "R-1 at the end rise over the last fifth noise floor plateau"
    assert f"{head} + BDAM 9.10 +0.10 0.10 at plateau" in text
    assert (
        "w/o gate 10.60 +1.60 0.10 not at plateau" in text and "w/o cross-attention 7.10 -1.90 0.10 at plateau" in text
    )
    curve = Curve(epochs=[1.0, 3.0, 5.0, 10.0], R1=[0.0, 4.0, 6.0, 11.0])
    other = Curve(epochs=[1.0, 5.0, 10.0], R1=[2.0, 8.0, 9.0])
    assert mean_curve([curve, other]) == ([1.0, 5.0, 10.0], [1.0, 7.0, 10.0]) and mean_curve([]) is None
    # Epoch 8 of 10 lies on the line between two validations.
    assert rise(mean_curve([curve])) == pytest.approx(11.0 - 9.0)
    alone = Page(build(make_summary((4,)), "one")).words()
    assert "w/o gate 10.50 +1.50 – –" in alone
    summary = make_summary()
    for run in summary["runs"].values():
        del run["curves"]
    assert "plateau" not in (text := Page(build(summary, "x")).words())[: text.index("How to read it")]


def test_fig5_has_measured_values_beside_its_radar(html):
    page = Page(html)
    assert [a["aria-label"] for tag, a in page.tags if tag == "svg"][-1] == "fig5 radar"
    assert "mAP, more is better 40.00 0.988 39.25 0.969 40.50 1.000" in page.words()
    summary = make_summary()
    for run in summary["runs"].values():
        run |= {"flops": None, "speed": {"images": None, "pairs": None}}
        run["parameters"] = {"total": 0, "trained": 0, "fusion": 0}
    text = Page(build(summary, "x")).words()
    assert "Fewer than three axes have a value in every row." in text
    summary["tables"]["fig5"]["rows"] = summary["tables"]["fig5"]["rows"][:1]
    assert "radius in the plot" not in Page(build(summary, "x")).words()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda run: run.update(audit=True), "the run transformer is of the protocol paired-audit"),
        (lambda run: run.pop("speed"), r"summary\.json: runs\.transformer lacks the fields speed"),
        (
            lambda run: run["memory_mb"].pop("training"),
            r"summary\.json: runs\.transformer\.memory_mb lacks the fields training",
        ),
    ],
)
def test_runs_that_are_no_results_are_named(folder, change, match):
    summary = make_summary()
    change(summary["runs"]["transformer"])
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=match):
        read_summary(folder)


def test_numbers_of_the_paper():
    for table, rows in ABLATIONS.items():
        # Without numbers in the paper: Fig. 5 is a drawing, the readings and the matching loss are ours.
        if table not in ("fig5", "readings"):
            assert list(PAPER["tables"][table]) == [name for name, _ in rows if name != "no-clothing-matching"]
    assert PAPER["tables"]["table3"]["full"] == {"mAP": 72.61, "R1": 79.93, "R5": 92.95, "R10": 96.47}
    # Every row that the paper leaves out loses against its full model: what the directions are compared with.
    for table in ("table1", "table2", "table3"):
        full = PAPER["tables"][table]["full"]
        for name, values in PAPER["tables"][table].items():
            assert name in (*ROWS, "full")
            assert all(values[metric] < full[metric] for metric in full) or name == "full"


def test_markdown_has_the_same_tables_and_its_plots(folder):
    page, *plots = write_markdown(read_summary(folder), folder / "results-synthetic.md")
    text = page.read_text()
    assert "| w/o gate | 11.50 ± 0.12 | 21.50 ± 0.12 | 31.50 ± 0.12 | 41.50 ± 0.12 | 51.50 ± 0.12 |" in text
    assert "| unsure |" in text and "ab" * 32 in text and "Where the direction differs" in text
    # No row of Table 4 is finished.
    names = [f"{name}{kind}" for name in ABLATIONS if name != "table4" for kind in ("", "-curves")] + ["fig5-radar"]
    assert [plot.name for plot in plots] == [f"results-synthetic-{name}.png" for name in names]
    assert text.count("![differences of mAP to the reference row](") == 5
    assert "| parameters, less is better | 1,410,212 | 1.000 | 1,410,212 | 1.000 |" in text
    for plot in plots:
        assert f"]({plot.name})" in text
        assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", plot.read_bytes()[16:20])[0] > 600
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    before = {path: path.read_bytes() for path in (page, *plots)}
    write_markdown(read_summary(folder), folder / "results-synthetic.md")
    assert before == {path: path.read_bytes() for path in before}


def test_one_seed_and_nothing_finished():
    text = Page(build(make_summary((4,)), "one")).words()
    assert "w/o gate 11.50 21.50" in text and "1 of 1" in text
    empty = make_summary()
    for table in empty["tables"].values():
        for row in table["rows"]:
            row["run"] = None
    empty |= {"runs": {}, "data": {}, "versions": {}}
    text = Page(build(empty, "none")).words()
    assert "In no finished row that the paper also has" in text and "Pending" in text


def test_data_sets_have_their_own_chance_and_no_common_full_model():
    summary = make_summary()
    runs = {name: summary["runs"][key] for name, key in (("cuhk-pedes", "full"), ("icfg-pedes", "transformer"))}
    for fingerprint, run in zip(("a", "b"), runs.values(), strict=True):
        run |= {"data": fingerprint, "comparison": None, "chance": dict.fromkeys(run["chance"], ord(fingerprint) / 100)}
    rows = [{"name": name, "label": name.upper(), "run": name} for name in runs]
    summary |= {"runs": runs, "tables": {"table5": {"title": "Table 5", "rows": rows}}}
    text = Page(build(summary, "sets")).words()
    chances = ("chance, CUHK-PEDES 0.97 0.97", "chance, ICFG-PEDES 0.98 0.98")
    assert all(words in text for words in chances) and "Difference to the" not in text


def test_data_that_has_no_validation_split_says_which_it_got():
    summary = make_summary()
    assert "217 images; train, val and test as the file has them" in Page(build(summary, "x")).words()
    (entry,) = summary["data"].values()
    del entry["split"]
    assert "217 images as" not in (text := Page(build(summary, "x")).words()) and "217 images;" not in text


def test_a_single_person_leaves_nothing_to_test():
    summary = make_summary()
    for run in summary["runs"].values():
        for comparison in (run["comparison"] or {}).values():
            comparison |= {"low": None, "high": None, "p": None}
        run["flops"] = None
        run["memory_mb"]["training"] = [None, None, None]
    for row in (row for table in summary["tables"].values() for row in table["rows"]):
        for test in row.get("verdicts", {}).values():
            test |= {"p": None, "word": "unsure"}
    text = Page(build(summary, "x")).words()
    assert "w/o gate +1.50 – – – unsure 3 of 3 -1.64 unsure" in text


def test_command_writes_both_pages(folder, capsys):
    assert cli.run(main, ["--experiment", str(folder), "--markdown", str(folder / "page.md")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line).name for line in lines[:2]] == ["report.html", "page.md"] and len(lines) == 13
    assert write_experiment(folder).read_text() == (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "expected either RUN or --experiment OUT"),
        (["RUN", "--experiment", "OUT"], "expected either RUN or --experiment OUT"),
        (["RUN", "--markdown", "x.md"], "--markdown is the page of an experiment: it needs --experiment OUT"),
        (["--experiment", "OUT"], "summary.json is missing: run `python -m training.experiment` first"),
    ],
)
def test_bad_requests_are_named(words, text, tmp_path, capsys):
    assert cli.run(main, [str(tmp_path) if word == "OUT" else word for word in words]) == 2
    assert text in capsys.readouterr().err


def test_another_file_is_not_taken_for_a_summary(folder):
    (folder / "summary.json").write_text('{"recipe": "x", "seeds": [0]}')
    with pytest.raises(
        ValueError, match=r"summary\.json lacks the fields command, config, test, data, versions, missing, tables, runs"
    ):
        read_summary(folder)
