"""Comparison of the data that a finished run was trained on with those of its row."""

from __future__ import annotations

from training.evaluation.result import Evaluation


def require_fingerprint(run: str, evaluation: Evaluation, source: str, expected: str, remedy: str) -> None:
    """Raises ValueError for a run (words for the user) of other data than those of `source`, which have this fingerprint."""
    found = evaluation.data.fingerprint if evaluation.data else "none"
    if found != expected:
        raise ValueError(
            f"{run} was trained on different data than that of {source}: fingerprint {found[:12]}, expected "
            f"{expected[:12]}; use its data, or {remedy}"
        )
