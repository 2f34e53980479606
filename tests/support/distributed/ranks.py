"""Ranks for tests: a server that has loaded torch once forks the processes of a job, each with the environment of torchrun."""

from __future__ import annotations

import base64
import json
import os
import pickle
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from tests.support import ROOT
from training.config import Config
from training.data.datasets import read_dataset
from training.engine.device import CPU
from training.engine.distributed.group import joined
from training.engine.train_run import build_trainer
from training.train import train
from training.utils import cli
from training.utils.preemption import preemption

SERVER = "from tests.support.distributed.ranks import serve; serve()"


class Job(NamedTuple):
    """A function of this module or of a test that each of `size` processes calls; its results and outputs go to `out`."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    size: int
    out: Path


class Outcome(NamedTuple):
    """Wait status, output and result (None without one) of each rank."""

    statuses: list[int]
    outputs: list[str]
    results: list[Any]


def serve() -> None:
    """Runs the jobs that come on the standard input."""
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        job = pickle.loads(base64.b64decode(line))
        port = _free_port()
        processes = [_fork(job, rank, port) for rank in range(job.size)]
        # After the forks, and kept until all have ended, as the launcher does.
        store = dist.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False) if job.size > 1 else None
        print(json.dumps([os.waitpid(process, 0)[1] for process in processes]), flush=True)
        del store


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _fork(job: Job, rank: int, port: int) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        for number in (1, 2):
            os.dup2(os.open(job.out / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        if job.size > 1:
            found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job.size, "MASTER_PORT": port, "GROUP_RANK": 0}
            os.environ.update({name: str(value) for name, value in found.items()}, MASTER_ADDR="127.0.0.1")
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        torch.save(job.function(*job.arguments), job.out / f"rank{rank}.pt")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Ranks:
    """Client of a server."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, job: Job) -> Outcome:
        """The outcome of a job, whose folder is created."""
        assert self.process.stdin is not None and self.process.stdout is not None
        job.out.mkdir(parents=True)
        self.process.stdin.write(base64.b64encode(pickle.dumps(job)).decode() + "\n")
        statuses = json.loads(self.process.stdout.readline())
        outputs = [(job.out / f"rank{rank}.txt").read_text() for rank in range(job.size)]
        paths = [job.out / f"rank{rank}.pt" for rank in range(job.size)]
        results = [torch.load(path, weights_only=False) if path.exists() else None for path in paths]
        return Outcome([os.waitstatus_to_exitcode(status) for status in statuses], outputs, results)


@contextmanager
def started() -> Iterator[Ranks]:
    """A server in a process of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=environment, cwd=ROOT, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Ranks(process)
        process.stdin.close()


def run_steps(config: Config, run_dir: Path, steps: int) -> dict[str, Any]:
    """Losses, norms, task weights and gradients of some training steps, the model after them, and the bytes sent by purpose."""
    done: list[dict[str, Any]] = []
    with preemption() as signals, joined(lambda local_rank: CPU, signals) as (ranks, device):
        trainer, _ = build_trainer(
            config, read_dataset(config.data), run_dir, lambda *a, **k: {}, ranks=ranks, device=device
        )
        trainer.model.train()
        while len(done) < steps:
            trainer.loader.set_epoch(trainer.progress.epoch)
            for batch in trainer.loader:
                done.append(trainer.train_step(batch)._asdict() | {"images": len(batch.labels.paths)})
            trainer.progress.epoch += 1
        gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        return {
            "steps": done,
            "gradients": gradients,
            "model": trainer.model.state_dict(),
            "sent": dict(getattr(ranks, "sent", {})),
        }


def run_command(config: Config, run_dir: Path, **options: Any) -> None:
    """`training.train.train` with the errors and statuses of the command."""

    def main(argv: Any) -> None:
        train(config, run_dir, **options)

    sys.exit(cli.run(main, []))
