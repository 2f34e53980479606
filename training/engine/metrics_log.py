"""Metrics of a training run: metrics.jsonl, the same values as TensorBoard events, and nonfinite.json."""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from training.utils.io import atomic, naming_full_disk, parse_json, write_json

METRICS, EVENTS, NONFINITE = "metrics.jsonl", "tensorboard", "nonfinite.json"
# Key of a line's checksum: CRC-32 of its other fields as JSON.
CHECKSUM = "crc32"


class MetricsLog:
    """metrics.jsonl (one line per step and per validation) and tensorboard/ of a run folder, both appended to.

    step: finished steps of the run. TensorBoard drops later points of an interrupted process; `truncate` drops the later
    lines of metrics.jsonl. Use as a context manager. Raises RuntimeError when tensorboard is missing.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RuntimeError(
                f"training writes TensorBoard events and needs the package tensorboard ({error}); install it with "
                "`pip install tensorboard`"
            ) from None
        self.folder = run_dir
        self.lines = open(run_dir / METRICS, "a", encoding="utf-8")
        _wait_for_next_second(run_dir / EVENTS)
        self.events = SummaryWriter(str(run_dir / EVENTS), purge_step=step + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lines.close()
        self.events.close()

    def step(self, line: dict[str, Any]) -> None:
        """Logs a training step: `step`, `epoch`, `loss`, `lr`, `seconds`, `images`, and numbers by task in `losses`, `weights`
        and `norms`; `memory_mb` of a card. Every value is finite."""
        self._append({"kind": "step"} | line)
        scalars: dict[str, float] = {name: line[name] for name in ("loss", "lr", "scale", "memory_mb") if name in line}
        scalars["images_per_second"] = line["images"] / line["seconds"]
        for group in ("losses", "weights", "norms"):
            scalars |= {f"{group}/{name}": value for name, value in line[group].items()}
        self._add_scalars(scalars, line["step"])

    def validation(self, line: dict[str, Any]) -> None:
        """Logs a validation: `step`, `epoch` and its metrics."""
        self._append({"kind": "validation"} | line)
        scalars = {f"validation/{k}": v for k, v in line.items() if k not in ("step", "epoch")}
        self._add_scalars(scalars, line["step"])

    def flush(self) -> None:
        """Writes everything to disk: a checkpoint must not have more steps than the log. Raises OSError for a full disk."""
        with naming_full_disk(self.folder / METRICS):
            os.fsync(self.lines.fileno())
        with naming_full_disk(self.folder / EVENTS):
            self.events.flush()

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, allow_nan=False)
        with naming_full_disk(self.folder / METRICS):
            self.lines.write(f'{text[:-1]}, "{CHECKSUM}": {zlib.crc32(text.encode())}}}\n')
            self.lines.flush()

    def _add_scalars(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.events.add_scalar(name, value, step)


class NoLog(AbstractContextManager["NoLog"]):
    """The log of a process that writes none."""

    def __exit__(self, *exception: object) -> None:
        pass

    def step(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def validation(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


Log = MetricsLog | NoLog


def _wait_for_next_second(folder: Path) -> None:
    """Waits until a new event file gets a different second than the newest one in its name.

    TensorBoard reads event files in the order of their names: the second of creation, then other numbers. Two files of one
    second would be read in any order, and the end of the older could drop points of the newer.
    """
    newest = max((int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")), default=0)
    # A file from further in the future means that the clock was set back: do not wait.
    while newest <= time.time() + 1 and time.time() < newest + 1:
        time.sleep(0.01)


def parse_line(text: str, source: str) -> dict[str, Any]:
    """A line of metrics.jsonl without its checksum. Raises ValueError naming `source` when it is not what was written."""
    line = parse_json(text, source)
    if not isinstance(line, dict):
        raise ValueError(f"{source} must be an object, got {line!r:.200}")
    expected = line.pop(CHECKSUM, None)
    # Lines of early versions have no checksum.
    if expected is not None and zlib.crc32(json.dumps(line).encode()) != expected:
        raise ValueError(f"{source} is damaged: its checksum does not match; restore the file from a copy")
    return line


def kept_lines(run_dir: Path, steps: int) -> list[str]:
    """The lines of metrics.jsonl up to this number of finished steps, without a last one that was cut by a kill.

    Raises ValueError naming a damaged line among them.
    """
    path, kept, last = run_dir / METRICS, list[str](), 0
    texts = path.read_bytes().split(b"\n") if path.exists() else []
    # What follows the last line end was cut by a kill.
    for number, text in enumerate(texts[:-1], 1):
        try:
            line = parse_line(text.decode(errors="replace"), f"{path} line {number}")
        except ValueError:
            if last < steps:
                raise
            break
        if line["step"] > steps:
            break
        last = line["step"]
        kept.append(text.decode())
    return kept


def truncate(run_dir: Path, steps: int) -> None:
    """Drops the lines of metrics.jsonl after this number of finished steps, and a line cut by a kill. Raises as `kept_lines`."""
    if (run_dir / METRICS).exists():
        kept = kept_lines(run_dir, steps)
        with atomic(run_dir / METRICS) as file:
            file.write("".join(text + "\n" for text in kept).encode())


def write_nonfinite(run_dir: Path, step: int, epoch: int, values: dict[str, float], paths: tuple[str, ...]) -> Path:
    """Writes nonfinite.json: current step and epoch, the values (as text if not finite) and the files of the batch."""
    shown = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
    path = run_dir / NONFINITE
    write_json(path, {"step": step, "epoch": epoch, "values": shown, "files": list(paths)})
    return path
