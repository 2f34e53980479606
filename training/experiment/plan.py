"""Rows of an experiment: those of the paper's tables, or of one configuration; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.config import Config
from training.config.ablations import ABLATIONS, FULL, TITLES, Row, table_rows

# Tables of the experiment "all": those whose rows share one data set and its texts.
ALL = tuple(table for table in ABLATIONS if table != "table4")


def plan(
    experiment: str,
    base: Config,
    data_sets: Path | None = None,
    only: Sequence[str] = (),
    out: Path | None = None,
) -> tuple[dict[str, str], list[Row]]:
    """(title of each table, rows) of an experiment: one of TITLES, "all", or any other name for `base` alone.

    only: names of the rows to keep, in the tables that have one beside the full model. data_sets, out: see
    `ablations.table_rows`. Raises ValueError for a name that no row has, and for names where there is no table.
    """
    if experiment == "all":
        tables = [*ALL]
    elif experiment in TITLES:
        tables = [experiment]
    elif only:
        raise ValueError(f"--rows is for {', '.join(TITLES)} and all, got it with {experiment!r}")
    else:
        return {"recipe": base.recipe}, [Row("recipe", FULL, base.recipe, base)]
    rows = table_rows(tables, base, data_sets, out)
    for name in only:
        if name not in {row.name for row in rows}:
            known = dict.fromkeys(row.name for row in rows)
            raise ValueError(f"--rows: {experiment} has no row {name!r}, expected some of {', '.join(known)}")
    selected = [row for row in rows if not only or row.name in only]
    # The full model belongs to most tables; one that has lost all its other rows says nothing.
    shown = {row.table for row in selected if row.name != FULL} or {*tables}
    return {table: TITLES[table] for table in tables if table in shown}, [r for r in selected if r.table in shown]
