"""A function in a process of its own: memory and crashes of one run are not those of another."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Tick = Callable[[], None]


def isolated(
    function: Callable[..., Any], *arguments: Any, log: Path, tick: Tick = lambda: None, threads: int | None = None
) -> Any:
    """function(*arguments) in a new process, whose output goes to the end of `log`; tick() is called while it runs.
    threads: how many torch computes with there; as many as it likes without.

    Function, arguments and result must be picklable. The new process does not outlive this one. Raises RuntimeError with
    the error's own words when the function raises, and with how the process ended when it was killed; the traceback is in
    the log.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, log, threads, function, arguments))
    process.start()
    sender.close()
    try:
        while not receiver.poll(0.5):
            tick()
        kind, value = receiver.recv()
    except EOFError:
        process.join()
        status = process.exitcode or 0
        how = f"was ended by signal {-status}" if status < 0 else "ended without a result"
        raise RuntimeError(f"its process {how} (out of memory?); what it printed is in {log}") from None
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    if kind == "error":
        raise RuntimeError(f"{value}; what it printed is in {log}")
    return value


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _serve(
    sender: Connection, log: Path, threads: int | None, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            sender.send(("result", function(*arguments)))
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except Exception as error:
            traceback.print_exc()
            sender.send(("error", " ".join(str(error).split()) or type(error).__name__))
