"""Command lines: arguments from dataclasses, tables of commands, and one line for every user error."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from training.utils.machine import launched_ranks
from training.utils.preemption import REQUEUE_STATUS, Preempted

# Set to 1 to see the traceback behind an "error: ..." line.
TRACEBACK = "TRAINING_TRACEBACK"
# Set to 1 by a process that starts a command: the command ends with its standard input, so it does not outlive that process.
END_WITH_INPUT = "TRAINING_END_WITH_INPUT"

# Option of commands that read a run: the root of its data set, if that was moved since.
ROOT_HELP = "root of the data set, if it was moved since the run was trained"
DataRoot = Annotated[Path | None, tyro.conf.arg(name="data.root", metavar="FOLDER", help=ROOT_HELP)]
# Option of commands that run a model.
DEVICE_HELP = "auto (the first CUDA device where there is one, else the CPU), cpu, cuda or cuda:N"
Device = Annotated[str, tyro.conf.arg(metavar="DEVICE", help=DEVICE_HELP)]

T = TypeVar("T")


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Exit status of main(argv): 0; 2 after a user error, 75 after a SIGTERM, 130 after Ctrl-C, each one line on stderr.

    User errors are the ValueError, OSError and RuntimeError that the stages raise; any other exception is a defect and
    passes through with its traceback.
    """
    if os.environ.get(END_WITH_INPUT) == "1":
        threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        return REQUEUE_STATUS
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def require_one_process(program: str) -> None:
    """Raises ValueError for a command that several processes would each do as a whole, to the same files."""
    if (size := launched_ranks()) > 1:
        raise ValueError(f"python -m {program} is the work of one process, not of {size}: start it without torchrun")


def parse(arguments: type[T], argv: Sequence[str], program: str, description: str | None, *, shared: bool = False) -> T:
    """An `arguments` (a dataclass; the comment above a field is its help) from the words of a command line.

    The fields of nested dataclasses are options without a prefix. Help and wrong arguments end the process (status 0, 2).
    shared: several processes of torchrun can do the command together; raises ValueError for them otherwise.
    """
    if not shared:
        require_one_process(program)
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    return tyro.cli(arguments, args=argv, prog=f"python -m {program}", description=description, config=flat)


def dispatch(
    commands: Mapping[str, tuple[str, str]], argv: Sequence[str], program: str, description: str | None
) -> None:
    """Runs the command that the first word names with the other words, or lists the commands without one.

    commands: (module that has its main(argv), what it does) of each name. Raises ValueError for an unknown name.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: python -m {program} COMMAND ...\n\n{description}\n")
        for name, (_, summary) in commands.items():
            print(f"  {name:<{max(map(len, commands))}}  {summary}")
        print(f"\n`python -m {program} COMMAND --help` lists the arguments of a command.")
    elif argv[0] in commands:
        importlib.import_module(commands[argv[0]][0]).main(argv[1:])
    else:
        raise ValueError(f"unknown command {argv[0]!r}, expected one of {', '.join(commands)}")


def _end_with_input() -> None:
    # Not sys.stdin: a thread that waits in its buffer blocks the end of the interpreter.
    while os.read(0, 4096):
        pass
    os._exit(1)
