"""Guard that keeps the protocol `paired-audit` out of every table of results; imports nothing."""

from __future__ import annotations

from typing import Any


def refuse_audit(values: Any, source: str) -> None:
    """Raises ValueError naming `source` when `values`, parsed JSON, are results of `paired-audit`."""
    if isinstance(values, dict) and (values.get("audit") or "metrics_audit" in values):
        raise ValueError(
            f"{source} is of the protocol paired-audit, whose queries see the image they look for: it is not a "
            "text-to-image result and enters no table"
        )
