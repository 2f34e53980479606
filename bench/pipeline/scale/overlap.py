"""Share of the reduction of gradients that runs beside computing, from traces: `python -m bench.pipeline.scale.overlap`.

torchrun starts ranks that make a few steps of the recipe `synthetic` on noise, by gloo on the CPU, under torch's profiler. The
gradients of the heads are added up while the encoders' backward pass runs, those of the encoders in parts that begin during it.
The traces (FOLDER/rank0.json, …, for chrome://tracing too) say when each sum ran, and when each backward pass.
"""

from __future__ import annotations

import json
import math
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch.profiler import ProfilerActivity, profile, record_function

from bench.harness.gpu_table import markdown
from bench.pipeline.full_size_step import random_batch
from bench.pipeline.scale.kills import finish, torchrun
from training.config.recipes import get_recipe
from training.data.loader import Batch
from training.engine.device import CPU
from training.engine.distributed.group import joined
from training.engine.distributed.rank_rows import own_rows
from training.engine.distributed.ranks import Ranks
from training.engine.train_step import Stepper
from training.models.model import Model
from training.utils.preemption import preemption

VOCABULARY = 400
BACKWARD, SUM = "backward pass of the encoders", "gloo:all_reduce"
# Numbers of the smallest sum of gradients, relative to the largest.
SMALL = 0.001
# Steps before those that are traced: the first ones connect the ranks and make the moments.
WARM_UP = 2


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Processes.
    ranks: int = 2
    # Steps of each process that are traced.
    steps: int = 4
    # Images of a batch; 0: those of the recipe.
    images: int = 0
    # Folder of the traces; empty: none are kept.
    out: str = ""
    # Of a rank that torchrun has started.
    worker: bool = False


class Interval(NamedTuple):
    """Part of a trace, microseconds."""

    start: float
    end: float

    def common(self, other: Interval) -> float:
        """Microseconds that both have."""
        return max(0.0, min(self.end, other.end) - max(self.start, other.start))


class Shares(NamedTuple):
    """Sums of gradients in the trace of a rank: share of their numbers that are the heads', and shares of the time of both sums,
    and of that of the encoders' gradients, that are hidden beside a backward pass of the encoders."""

    heads: float
    hidden: float
    encoders_hidden: float


class _TracedStep(Stepper):
    def _backward(self, *args: Any) -> None:
        with record_function(BACKWARD):
            super()._backward(*args)


def work(arguments: Arguments) -> None:
    """Steps of one rank, whose trace goes to the folder."""
    config = get_recipe("synthetic")
    if arguments.images:
        data = replace(config.data, ids_per_batch=arguments.images // config.data.images_per_id)
        config = replace(config, data=data)
    data = config.data
    torch.set_num_threads(1)
    with preemption() as signals, joined(lambda local_rank: CPU, signals) as (ranks, _), ExitStack() as stack:
        torch.manual_seed(0)
        model = Model(config.model, config.loss, data.image_size, VOCABULARY, 0, data.text_length)
        stepper = _TracedStep(config, model.train(), ranks)
        batch = _own(random_batch(config, VOCABULARY, data.ids_per_batch * data.images_per_id), ranks)
        for step in range(WARM_UP + arguments.steps):
            if step == WARM_UP:
                trace = stack.enter_context(profile(activities=[ProfilerActivity.CPU], record_shapes=True))
            stepper.run(batch, measure=True)
        stack.close()
        trace.export_chrome_trace(str(Path(arguments.out) / f"rank{ranks.rank}.json"))


def _own(batch: Batch, ranks: Ranks) -> Batch:
    rows = own_rows(len(batch.paths), 1, ranks.rank, ranks.size)
    return replace(batch.part(slice(rows[0], rows[-1] + 1)), whole=batch.labels)


def shares(path: Path) -> Shares:
    """Shares of a trace. Raises ValueError where it has no sums of gradients, or no backward passes."""
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("ph") == "X"]
    passes = [_interval(event) for event in events if event["name"] == BACKWARD]
    sums = [event for event in events if event["name"] == SUM]
    if not passes or not sums:
        raise ValueError(f"{path}: {len(passes)} backward passes and {len(sums)} sums of gradients, expected both")
    sizes = [sum(map(math.prod, event["args"]["Input Dims"])) for event in sums]
    # The others, batch statistics and norms, are much smaller.
    gradients = sorted((_interval(e), size) for e, size in zip(sums, sizes, strict=True) if size > SMALL * max(sizes))
    intervals = [interval for interval, _ in gradients]
    # Every step begins that of the heads first.
    each = len(gradients) // len(passes)
    return Shares(
        heads=sum(size for _, size in gradients[::each]) / sum(size for _, size in gradients),
        hidden=_hidden(intervals, passes),
        encoders_hidden=_hidden([interval for i, interval in enumerate(intervals) if i % each], passes),
    )


def _hidden(sums: list[Interval], passes: list[Interval]) -> float:
    """Share of the time in which sums run, one or several at once, that is in a pass."""
    whole = hidden = end = 0.0
    for interval in sorted(sums):
        rest = Interval(max(interval.start, end), max(interval.end, end))
        end = rest.end
        whole += rest.end - rest.start
        hidden += sum(rest.common(one) for one in passes)
    return hidden / whole


def _interval(event: dict[str, Any]) -> Interval:
    return Interval(float(event["ts"]), float(event["ts"]) + float(event["dur"]))


def main() -> None:
    """Entry point."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.worker:
        work(arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.out or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        words = ["--standalone", "--nproc-per-node", str(arguments.ranks), "-m", "bench.pipeline.scale.overlap"]
        words += ["--worker", "--steps", str(arguments.steps), "--images", str(arguments.images), "--out", str(folder)]
        finish(torchrun(*words))
        found = [shares(folder / f"rank{rank}.json") for rank in range(arguments.ranks)]
    head = ["rank", "steps", "heads' share of the gradients", "time of all sums that is hidden", "of the encoders'"]
    rows = [[str(rank), str(arguments.steps), *(f"{value:.0%}" for value in x)] for rank, x in enumerate(found)]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
