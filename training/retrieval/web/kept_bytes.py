"""Values that a server has made and may be asked for again, as many as fit into a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable


class KeptBytes:
    """Values by key, of at most `most` bytes in all; those that were asked for longest ago make room."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self._values: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], bytes | None]) -> bytes | None:
        """The value of a key, made where it is not kept. What cannot be made (None) is tried again the next time."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        # Two threads may make the same: neither waits for the other, nor for other keys.
        value = make()
        with self._lock:
            if value is not None and key not in self._values:
                self._values[key] = value
                self.size += len(value)
                while self.size > self.most:
                    self.size -= len(self._values.popitem(last=False)[1])
        return value
