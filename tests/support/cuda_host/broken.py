"""`python -m tests.support.cuda_host.broken LIBRARY NAME`: one kernel of probe.cu on 256 numbers, in a process it may kill."""

import ctypes
import sys

COUNT = 256


def run(path: str, name: str, values: list[float], count: int, n: int) -> list[float]:
    """The `count` floats that kernel `name` writes, -1 where it writes none.

    Raises:
        RuntimeError: the kernel was refused.
    """
    library = ctypes.CDLL(path)
    library.probe_error.restype = ctypes.c_char_p
    source, result = (ctypes.c_float * len(values))(*values), (ctypes.c_float * count)(*[-1.0] * count)
    if library.probe(name.encode(), source, result, n) != 0:
        raise RuntimeError(library.probe_error().decode())
    return list(result)


if __name__ == "__main__":
    print(run(sys.argv[1], sys.argv[2], [float(i) for i in range(COUNT)], COUNT, COUNT))
