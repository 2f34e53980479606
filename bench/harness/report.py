"""Tables and plots of the newest rows: `python -m bench.harness.report [--folder DIR] [--page FILE] [--figure FILE]`.

Writes DIR/MACHINE.md and DIR/MACHINE.png for every DIR/MACHINE.csv, replaces the section between the markers of the page by a
summary of the machine measured last among those with all cases of the README's plot, and draws that plot.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench.harness import gpu_table, measure, plot, results, targets
from bench.harness.gpu_table import markdown
from bench.harness.results import CASE, Row, milliseconds
from bench.harness.targets import CONV, MAIN, MODEL

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
Case = list[Row]
# The cases of the README's plot: its title, then the columns of results.CASE.
SPEED_CASES = {
    "selective scan, forward": ("selective_scan", MAIN, "BLD", "float32", "forward"),
    "selective scan, forward + backward": ("selective_scan", MAIN, "BLD", "float32", "forward+backward"),
    "causal convolution, forward": ("causal_conv1d", CONV, "BDL", "float32", "forward"),
    "causal convolution, forward + backward": ("causal_conv1d", CONV, "BDL", "float32", "forward+backward"),
    "transformers' Mamba, forward": ("transformers", f"{MODEL}, B 2 L 512", "", "float32", "forward"),
    "transformers' Mamba, forward + backward": (
        "transformers",
        f"{MODEL}, B 2 L 512",
        "",
        "float32",
        "forward+backward",
    ),
}


@dataclass(frozen=True)
class Arguments:
    """Folder of the rows, and the files to write."""

    # Folder of the rows.
    folder: Path = results.RESULTS
    # Page with the markers.
    page: Path = results.ROOT / "docs" / "benchmarks.md"
    # Plot of six cases.
    figure: Path = results.ROOT / "docs" / "speed.png"
    # Report rows measured under this malloc setting; by default that of the newest full run of an operator.
    malloc: str = ""


def name(case: Case) -> str:
    """Shape, order and dtype of a case."""
    row = case[0]
    order = {"BLD": "(B, L, D) order", "BDL": "(B, D, L) order"}.get(row["order"], row["order"])
    dtype = "" if row["dtype"] == "float32" else row["dtype"]
    return ", ".join(part for part in (row["shape"], order, dtype) if part)


def times(value: float | None) -> str:
    """Formats a ratio of times, or nothing."""
    return "" if value is None else f"{value:.3g} ×"


def percent(text: str) -> str:
    """Formats a fraction as a percentage, or nothing."""
    return f"{float(text):.0%}" if text else ""


def peers_cell(case: Case) -> str:
    """All timed peers with their ratio to ours, the fastest first, with the number of rounds where these are few."""
    timed = [row for row in case if row["median_ms"] and row["kind"] in ("eager", "compiled")]
    timed.sort(key=lambda row: float(row["median_ms"]))
    few = {row["variant"]: f" ({row['rounds']} rounds)" for row in timed if int(row["rounds"]) < measure.MIN_ROUNDS}
    return ", ".join(f"{row['variant']} {float(row['times_ours']):.3g} ×{few.get(row['variant'], '')}" for row in timed)


def speed_cell(case: Case, own: Row) -> str:
    """Our speed relative to the anchor measured in turn with it."""
    anchor = next((row["variant"].partition(", ")[2] for row in case if row["kind"] == "anchor"), "")
    if not anchor or not own["speed_per_element"]:
        return ""
    text = f"{float(own['speed_per_element']):.2f} of {anchor}"
    if own["speed_per_state"] not in ("", own["speed_per_element"]):
        text += f" ({float(own['speed_per_state']):.2f} per element-state)"
    return text


def time_lines(cases: Sequence[Case]) -> list[list[str]]:
    """One line per case with a time."""
    lines = []
    for case in cases:
        own = results.ours(case)
        if own is None:
            continue
        spread = f"{milliseconds(own['median_ms'])} ({milliseconds(own['p20_ms'])}–{milliseconds(own['p80_ms'])})"
        shares = [percent(own["share_of_bandwidth"]), percent(own["share_of_limit"])]
        lines.append([name(case), case[0]["direction"], spread, peers_cell(case), *shares, speed_cell(case, own)])
    return lines


def memory_lines(cases: Sequence[Case]) -> list[list[str]]:
    """One line per case with peak memory."""
    lines = []
    for case in cases:
        sizes = {row["variant"]: float(row["peak_mib"]) for row in case if row["peak_mib"]}
        if sizes:
            lines.append([name(case), case[0]["direction"], ", ".join(f"{k} {v:.1f} MiB" for k, v in sizes.items())])
    return lines


def note_lines(cases: Sequence[Case]) -> list[str]:
    """Peers that were not timed, each reason once with its cases."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for case in cases:
        for row in case:
            if row["note"] and not row["median_ms"]:
                reasons.setdefault((row["op"], row["variant"], row["note"]), []).append(
                    f"{name(case)} {row['direction']}"
                )
    return [f"* {op}, {variant}: {note} ({'; '.join(where)})" for (op, variant, note), where in reasons.items()]


def provenance(cases: Sequence[Case]) -> str:
    """Machine, versions, commits and dates of the rows."""
    first = cases[0][0]
    runs = sorted({(case[0]["date"], case[0]["commit"], case[0]["mode"]) for case in cases})
    listed = ", ".join(f"{commit} ({date}{'' if mode == 'full' else ', ' + mode})" for date, commit, mode in runs)
    return (
        f"{first['machine']}, {first['threads']} threads, {first['isa']}, torch {first['torch']}, Python "
        f"{first['python']}, bdam_fast {first['bdam_fast']}, malloc {first['malloc']}; measured at {listed}."
    )


def omitted_rows(rows: Sequence[Row], cases: Sequence[Case]) -> str:
    """Note about rows under other malloc settings than the one shown; empty if there are none."""
    others = sorted({row["malloc"] for row in rows} - {cases[0][0]["malloc"]})
    return f"Not shown: rows under other malloc settings ({'; '.join(others)}); `--malloc` chooses." if others else ""


def make_page(cases: Sequence[Case], figure: str, remark: str = "") -> str:
    """Page of one machine."""
    head = [
        "case",
        "direction",
        "ours, median (p20–p80)",
        "peers, times ours",
        "of bandwidth",
        "of limit",
        "speed per element",
    ]
    parts = [
        f"# {cases[0][0]['machine']}, {cases[0][0]['threads']} threads",
        provenance(cases),
        *([remark] if remark else []),
    ]
    parts.append(f"![bars]({figure})")
    for op in dict.fromkeys(case[0]["op"] for case in cases):
        chosen = [case for case in cases if case[0]["op"] == op]
        parts.append(f"## {op}")
        lines = time_lines(chosen)
        if lines:
            parts.append(markdown(head, lines))
        memory = memory_lines(chosen)
        if memory:
            parts.append(markdown(["case", "direction", "peak beyond the inputs"], memory))
    notes = note_lines(cases)
    if notes:
        parts += ["## Not timed", "\n".join(notes)]
    parts.append(
        "Limit: the largest of bytes / copy bandwidth, elementary functions at the measured speed of our own on all threads, "
        "and matrix products. Generated by `python -m bench.harness.report`."
    )
    return "\n\n".join(parts) + "\n"


def headline(cases: Sequence[Case]) -> list[Case]:
    """Cases with a target against a peer: those of the summary and the plot."""
    wanted = {
        (t.op, t.shape, t.order, t.dtype, t.direction)
        for t in targets.targets()
        if not t.measure.startswith(("share", "speed", "median"))
    }
    return [c for c in cases if tuple(c[0][key] for key in CASE) in wanted and results.ours(c) is not None]


def summary(cases: Sequence[Case], page: str, figure: str) -> str:
    """The section between the markers; page, figure: relative links."""
    head = ["operator", "case", "direction", "ours", "fastest eager peer", "it takes", "compiled takes"]
    lines = []
    for case in headline(cases):
        own, peer = results.ours(case), results.fastest(case, "eager")
        assert own is not None  # headline() keeps timed cases only
        said = "" if peer is None else f"{peer['variant']}, {milliseconds(peer['median_ms'])}"
        ratios = [times(results.ratio(case, kind)) for kind in ("eager", "compiled")]
        lines.append([case[0]["op"], name(case), case[0]["direction"], milliseconds(own["median_ms"]), said, *ratios])
    table = markdown(head, lines)
    link = f"Every case, every peer, and the share of the machine's limit: [{Path(page).name}]({page})."
    return "\n\n".join([f"![ours and the peers, log scale]({figure})", table, provenance(cases), link])


def update_page(page: Path, text: str) -> None:
    """Replaces the section between the markers. Raises ValueError when the page has none."""
    whole = page.read_text()
    if BEGIN not in whole or END not in whole:
        raise ValueError(f"bench: {page} has no {BEGIN} … {END}")
    before, rest = whole.split(BEGIN, 1)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


def speed_pairs(cases: Sequence[Case]) -> list[tuple[str, Row, Row]]:
    """Title, own row and that of the fastest peer of SPEED_CASES; empty where one of them was not measured."""
    by_key = {tuple(case[0][key] for key in CASE): case for case in cases}
    pairs = []
    for title, key in SPEED_CASES.items():
        case = by_key.get(key, [])
        own, peer = results.ours(case), results.fastest(case, "eager", "compiled")
        if own is None or peer is None:
            return []
        pairs.append((title, own, peer))
    return pairs


def write_page(csv: Path, malloc: str = "") -> list[Case]:
    """Writes the page and the plot beside a CSV and returns their cases."""
    rows = results.read(csv)
    cases = results.newest(rows, malloc)
    if not cases:
        return []
    figure = csv.with_suffix(".png")
    shown = headline(cases)
    if shown:
        plot.bars([(f"{c[0]['op']}, {name(c)}", c[0]["direction"], c) for c in shown], figure)
    csv.with_suffix(".md").write_text(make_page(cases, figure.name, omitted_rows(rows, cases)))
    return cases


def shown_first(cases: Sequence[Case]) -> tuple[bool, str]:
    """Order of machines for the page: those with all cases of the README's plot, then those measured last."""
    return bool(speed_pairs(cases)), max(case[0]["date"] for case in cases)


def main() -> None:
    """Reports every processor (`bench.harness.gpu_table` the GPUs); the page shows one, chosen by `shown_first`."""
    arguments = tyro.cli(Arguments, description=__doc__)
    paths = [path for path in sorted(arguments.folder.glob("*.csv")) if not gpu_table.has_gpu_rows(path)]
    written = {path: write_page(path, arguments.malloc) for path in paths}
    written = {path: cases for path, cases in written.items() if cases}
    if not written:
        sys.exit(f"bench: no rows in {arguments.folder}; measure first: python -m bench.run")
    chosen = max(written, key=lambda path: shown_first(written[path]))
    page, figure = (
        Path(os.path.relpath(chosen.with_suffix(suffix), arguments.page.parent)).as_posix()
        for suffix in (".md", ".png")
    )
    update_page(arguments.page, summary(written[chosen], page, figure))
    files = [*(path.with_suffix(".md") for path in written), arguments.page]
    if pairs := speed_pairs(written[chosen]):
        plot.ratios(pairs, arguments.figure)
        files.append(arguments.figure)
    print(f"wrote {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
