"""Failures of ranks: each says in the store of the launcher why it ends, so that the first rank can name it and its reason."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from training.utils.preemption import REQUEUE_STATUS, Preempted, Preemption

# Seconds between two looks into the store.
POLL = 0.05
# Seconds in which every rank that still runs says so, after an exchange has failed.
ROLL_CALL = 5.0
# Seconds that a rank waits for another after a SIGTERM: torchrun kills 30 s after it.
GRACE = 15.0
# Status of a user error, as of all commands.
FAILED_STATUS = 2


class RankLost(RuntimeError):
    """Raised where an exchange fails: another rank has ended, or does not answer."""


class Register:
    """Names, words and failures of the ranks of a group."""

    def __init__(self, store: Any, rank: int, size: int, signals: Preemption) -> None:
        self.store, self.rank, self.size, self.signals = store, rank, size, signals

    def enter(self) -> None:
        """Leaves the name of this rank."""
        self.store.set(f"name/{self.rank}", f"rank {self.rank} ({socket.gethostname()}, process {os.getpid()})")

    def name(self, rank: int) -> str:
        """Name of a rank, with machine and process once it has left them."""
        return self._read(f"name/{rank}") or f"rank {rank}"

    def wait(self, key: str, seconds: float = float("inf")) -> bytes:
        """The value of a key, once it exists. Raises RankLost when a rank has failed, or does not answer in time."""
        end = time.monotonic() + seconds
        try:
            while not self.store.check([key]):
                if self.store.check(["failed"]):
                    raise RankLost("another rank has failed")
                if self.signals.requested:
                    end = min(end, time.monotonic() + GRACE)
                if time.monotonic() > end:
                    raise RankLost(f"no answer in {seconds:g} s")
                time.sleep(POLL)
            return self.store.get(key)
        except RuntimeError as error:
            raise RankLost(str(error)) from error

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Reports what ends the block to the other ranks. What all ranks raise alike, and what another one has reported, ends
        this one without a second line, unless it is the first."""
        try:
            yield
        except Preempted as stopped:
            with self.signals.deferring():
                silent = self._silent_ranks()
            if self.rank:
                raise SystemExit(REQUEUE_STATUS) from None
            if silent:
                raise Preempted(f"{stopped}; no answer from {silent}: killed, out of memory, or busy") from stopped
            raise
        except RankLost as error:
            with self.signals.deferring():
                reason, speaker = self._find(error)
            if not speaker:
                raise SystemExit(FAILED_STATUS) from None
            raise RuntimeError(reason) from error
        except Exception as error:
            with self.signals.deferring():
                self._report(error)
                known = self.rank and self._says_the_same(error)
            if known:
                raise SystemExit(FAILED_STATUS) from None
            raise

    def _report(self, error: Exception) -> None:
        try:
            self.store.set(f"failed/{self.rank}", _words(error))
            self.store.set("failed", "")
        except RuntimeError:
            # The store went with the rank that kept it.
            pass

    def _says_the_same(self, error: Exception) -> bool:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            if (said := self._read("failed/0")) is not None:
                return said == _words(error)
            time.sleep(POLL)
        return False

    def _silent_ranks(self) -> str:
        """Names of the ranks that do not answer after a SIGTERM, for the first one: torchrun sends it to all if one has died."""
        try:
            self.store.set(f"alive/{self.rank}", "")
            return "" if self.rank else ", ".join(map(self.name, sorted(self._roll_call()[1])))
        except RuntimeError:
            return ""

    def _roll_call(self) -> tuple[dict[int, str], set[int]]:
        """(reason of each rank that has failed, ranks that do not answer)."""
        failed, silent = dict[int, str](), set(range(self.size)) - {self.rank}
        end = time.monotonic() + ROLL_CALL
        self.store.set(f"alive/{self.rank}", "")
        while silent and time.monotonic() < end:
            for rank in sorted(silent):
                if (reason := self._read(f"failed/{rank}")) is not None:
                    failed[rank] = reason
                if rank in failed or self.store.check([f"alive/{rank}"]):
                    silent.discard(rank)
            time.sleep(POLL)
        return failed, silent

    def _find(self, error: RankLost) -> tuple[str, bool]:
        """(words about the rank that ended, True if this rank is the first of those that are left)."""
        try:
            failed, silent = self._roll_call()
        except RuntimeError:
            return f"{self.name(0)} has ended, and its store with it ({error})", self.rank == 1
        left = set(range(self.size)) - silent - failed.keys()
        if failed:
            return "; ".join(f"{self.name(rank)} failed: {reason}" for rank, reason in failed.items()), self.rank == 0
        if silent:
            names = ", ".join(self.name(rank) for rank in sorted(silent))
            text = f"{names} ended without a word: killed, or out of memory ({error})"
            return text, self.rank == min(left)
        return f"an exchange between the ranks failed, though all of them run: {error}", self.rank == 0

    def _read(self, key: str) -> str | None:
        try:
            return self.store.get(key).decode() if self.store.check([key]) else None
        except RuntimeError:
            return None


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
