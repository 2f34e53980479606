"""Costs of the steps of `make gpu`, counted where there is no GPU; costs.json says how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COSTS: dict[str, Any] = json.loads(Path(__file__).with_name("costs.json").read_text())
