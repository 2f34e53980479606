"""What test_experiment has done in other processes; imports nothing that takes long."""

import os
import signal


def fail(text: str) -> None:
    """Prints, then raises ValueError."""
    print("on the way")
    raise ValueError(text)


def vanish() -> None:
    """Ends as a process that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)
