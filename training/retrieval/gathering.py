"""Calls of many threads, gathered: what waits while a call runs is answered by one call after it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


@dataclass(eq=False)
class _Call(Generic[A, B]):
    argument: A
    result: B | None = None
    error: BaseException | None = None
    is_done: bool = False


class Gathered(Generic[A, B]):
    """A function of one argument for any number of threads, made of one that takes several arguments and costs less so.

    Nothing waits for more to come: an argument that finds no call in progress is a call of its own. `most`: arguments of one
    call at most. An error of several is repeated with one at a time, so that each caller has the error of its own argument.
    """

    def __init__(self, function: Callable[[list[A]], Sequence[B]], most: int) -> None:
        self._function, self._most = function, most
        self._waiting: deque[_Call[A, B]] = deque()
        self._turn = threading.Lock()

    def __call__(self, argument: A) -> B:
        """The result for an argument. Raises what the function raises for it."""
        call: _Call[A, B] = _Call(argument)
        self._waiting.append(call)
        with self._turn:
            # Done by another thread's call, or still waiting: who takes calls completes them before the next one's turn.
            while not call.is_done:
                self._complete([self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))])
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value]

    def _complete(self, calls: list[_Call[A, B]]) -> None:
        try:
            results = self._function([call.argument for call in calls])
        except BaseException as error:
            if len(calls) > 1:
                for call in calls:
                    self._complete([call])
            else:
                calls[0].error, calls[0].is_done = error, True
            return
        for call, result in zip(calls, results, strict=True):
            call.result, call.is_done = result, True
