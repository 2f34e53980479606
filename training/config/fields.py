"""Checks of the fields of a configuration stage when it is built."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, NamedTuple


class Within(NamedTuple):
    """Lowest and highest allowed value of a number, or of each number of a tuple."""

    low: float
    high: float = math.inf


@dataclass(frozen=True)
class Stage:
    """Base of all stages: checks every Literal field, scalar type, and number annotated with `Within`.

    Raises ValueError naming the field.
    """

    def __post_init__(self) -> None:
        for key, hint in typing.get_type_hints(type(self), include_extras=True).items():
            value, metadata = getattr(self, key), getattr(hint, "__metadata__", ())
            if typing.get_origin(hint) is Literal:
                self.require(
                    value in typing.get_args(hint), key, "one of " + ", ".join(map(repr, typing.get_args(hint)))
                )
            elif (kind := typing.get_args(hint)[0] if metadata else hint) in (int, float, bool, str):
                accepted = (int, float) if kind is float else kind
                ok = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
                self.require(ok, key, f"of type {kind.__name__}")
                if kind is float:
                    self.require(math.isfinite(value), key, "a finite number")
            elif isinstance(value, tuple):
                # JSON, in which every configuration is stored, has no other ones.
                self.require(all(math.isfinite(v) for v in value if isinstance(v, float)), key, "finite numbers")
            for limit in metadata:
                numbers = value if isinstance(value, tuple) else (value,)
                ok = bool(numbers) and all(limit.low <= v <= limit.high for v in numbers)
                self.require(ok, key, f"within [{limit.low}, {limit.high}]")
        self.check()

    def check(self) -> None:
        """Checks conditions between fields; overridden by stages that have any."""

    def require(self, ok: bool, key: str, expected: str) -> None:
        """Raises ValueError for the field `key`, which may be dotted, unless `ok`."""
        if not ok:
            raise ValueError(f"{type(self).__name__}.{key} must be {expected}, got {attrgetter(key)(self)!r}")
