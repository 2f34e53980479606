"""What test_experiment has done in other processes; imports nothing that takes long."""

import os
import signal
import time
from pathlib import Path


def fail(text: str) -> None:
    """Prints, then raises ValueError."""
    print("on the way")
    raise ValueError(text)


def vanish() -> None:
    """Ends as a process that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)


def stay(pipe: Path) -> None:
    """Says that it is here through a named pipe, and holds that open for a minute."""
    with open(pipe, "w") as file:
        print("here", file=file, flush=True)
        time.sleep(60)
