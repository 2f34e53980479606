"""What a run writes down while it trains: metrics.jsonl, the same as TensorBoard events, nonfinite.json."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from training.utils.io import atomic, write_json

METRICS, EVENTS, NONFINITE = "metrics.jsonl", "tensorboard", "nonfinite.json"


class Journal:
    """metrics.jsonl (one line per step and per validation) and tensorboard/ of a run folder, both appended to.

    step: finished steps of the run. TensorBoard drops the points behind it that an interrupted process wrote; the lines
    of metrics.jsonl are dropped by `keep`. Use as a context manager. Raises RuntimeError when tensorboard is missing.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RuntimeError(
                f"training writes TensorBoard events and needs the package tensorboard ({error}); install it with "
                "`pip install tensorboard`"
            ) from None
        self.lines = open(run_dir / METRICS, "a", encoding="utf-8")
        _wait_for_another_second(run_dir / EVENTS)
        self.events = SummaryWriter(str(run_dir / EVENTS), purge_step=step + 1)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lines.close()
        self.events.close()

    def step(self, line: dict[str, Any]) -> None:
        """A training step: `step`, `epoch`, `loss`, `lr`, `seconds`, `images`, and numbers by task in `losses`, `weights`
        and `norms`. Every value is finite."""
        self._append({"kind": "step"} | line)
        scalars = {name: line[name] for name in ("loss", "lr", "scale")}
        scalars["images_per_second"] = line["images"] / line["seconds"]
        for group in ("losses", "weights", "norms"):
            scalars |= {f"{group}/{name}": value for name, value in line[group].items()}
        self._add(scalars, line["step"])

    def validation(self, line: dict[str, Any]) -> None:
        """A validation: `step`, `epoch` and its numbers."""
        self._append({"kind": "validation"} | line)
        scalars = {f"validation/{k}": v for k, v in line.items() if k not in ("step", "epoch")}
        self._add(scalars, line["step"])

    def flush(self) -> None:
        """Everything so far is on disk afterwards: a checkpoint must not know more steps than its journal."""
        os.fsync(self.lines.fileno())
        self.events.flush()

    def _append(self, line: dict[str, Any]) -> None:
        self.lines.write(json.dumps(line, allow_nan=False) + "\n")
        self.lines.flush()

    def _add(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.events.add_scalar(name, value, step)


def _wait_for_another_second(folder: Path) -> None:
    """TensorBoard reads event files in the order of their names: the second in which they were begun, then other numbers.

    Two files of one second would come in any order, and the older one's end could drop the newer one's points.
    """
    newest = max((int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")), default=0)
    # A file from further in the future is a clock that was set back: nothing to wait for.
    while newest <= time.time() + 1 and time.time() < newest + 1:
        time.sleep(0.01)


def keep(run_dir: Path, steps: int) -> None:
    """Drops what metrics.jsonl says after so many finished steps, a line that a kill cut short included."""
    path = run_dir / METRICS
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line["step"] > steps:
            break
        kept.append(text)
    with atomic(path) as file:
        file.write("".join(text + "\n" for text in kept).encode())


def write_nonfinite(run_dir: Path, step: int, epoch: int, values: dict[str, float], paths: tuple[str, ...]) -> Path:
    """nonfinite.json: the step and epoch under way, the values (what is not finite as text) and the batch's files."""
    shown = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
    path = run_dir / NONFINITE
    write_json(path, {"step": step, "epoch": epoch, "values": shown, "files": list(paths)})
    return path
