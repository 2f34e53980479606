"""Commands that test_scheduler runs in other processes; imports nothing that takes long."""

import os
import resource
import signal
import sys
import time
from collections.abc import Sequence

from training.utils import cli


def main(argv: Sequence[str]) -> None:
    """Ends as the first word says."""
    if argv[0] == "sleep":
        print("threads", os.environ.get("OMP_NUM_THREADS"))
        time.sleep(float(argv[1]))
    elif argv[0] == "fail":
        raise ValueError(argv[1])
    elif argv[0] == "defect":
        raise TypeError(argv[1])
    elif argv[0] == "allocate":
        for _ in range(20):
            [b"x" * (24 << 20) for _ in range(3)]
        print("page faults", resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    elif argv[0] == "exit":
        os._exit(int(argv[1]))
    elif argv[0] == "vanish":
        # As a process that the system kills.
        os.kill(os.getpid(), signal.SIGKILL)
    elif argv[0] == "stay":
        # Says that it is here through a named pipe, and holds that open for a minute.
        with open(argv[1], "w") as file:
            print("here", file=file, flush=True)
            time.sleep(60)


if __name__ == "__main__":
    sys.exit(cli.run(main))
