"""One process of GPU tests, started again after a test that took the device or the process with it.

`python -m bench.gpu.testing PYTEST ARGUMENTS`, with BDAM_FAST_GPU_OUTCOMES set: tests that were begun, as tests/gpu/conftest.py
has noted there, are not run again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Times that pytest is started: a kernel that is wrong everywhere would take the device at every test.
ROUNDS = 6
# Exit codes of pytest after which there is nothing left to run: all passed, some failed, no tests.
FINISHED = (0, 1, 5)


def run(arguments: list[str], notes: Path) -> int:
    """Runs pytest until all tests were begun, or nothing new was, or ROUNDS times; 0 if every round was well."""
    codes: list[int] = []
    size = -1
    while len(codes) < ROUNDS and (not codes or codes[-1] not in FINISHED) and _size(notes) > size:
        size = _size(notes)
        codes.append(subprocess.run([sys.executable, "-m", "pytest", *arguments]).returncode)
    return 0 if set(codes) <= {0} else 1


def _size(notes: Path) -> int:
    return notes.stat().st_size if notes.exists() else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], Path(os.environ["BDAM_FAST_GPU_OUTCOMES"])))
