"""A search as the parameters of a URL: read strictly, and written back for links."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from training.retrieval.engines.engine import Filter
from training.retrieval.finder import MOST_RESULTS
from training.retrieval.image_names import parse_time
from training.retrieval.reranking import MOST_RERANKED
from training.retrieval.scoring import require_beta

PAGE_SIZE, MOST_PAGES = 24, 200
# Largest number by which an image can be asked for; SQLite's integers end soon after it.
MOST_ID = 2**62
ORDERS = ("score", "time")


@dataclass(frozen=True)
class Search:
    """One search, of whatever parts it has."""

    text: str = ""
    beta: float = 0.0
    cameras: tuple[str, ...] = ()
    start: str = ""
    end: str = ""
    # Lowest score that is shown.
    least: float | None = None
    # Show images also where none scores as the best ones of the validation split do.
    weak: bool = False
    # Results of one text that the fusion orders again.
    rerank: int = 0
    order: Literal["score", "time"] = "score"
    # Id of an image of the gallery to search for, and key of an uploaded one.
    like: int | None = None
    upload: str = ""
    # Name of the open case; refine: its marks are part of the query.
    case: str = ""
    refine: bool = False
    page: int = 1
    k: int = PAGE_SIZE

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to search for."""
        return not self.text.strip() and self.like is None and not self.upload and not self.refine

    @property
    def first(self) -> int:
        """Place of the first result of the page among all, from 0."""
        return (self.page - 1) * self.k

    def filter(self, without: Sequence[int]) -> Filter:
        """Conditions on metadata. Raises ValueError for a time that is none."""
        values = {"camera": self.cameras} if self.cameras else {}
        return Filter(values, parse_time(self.start, "from"), parse_time(self.end, "to"), frozenset(without))

    def url(self, **changes: object) -> str:
        """Parameters of this search with changes, as in a URL."""
        changed = replace(self, **changes)  # type: ignore[arg-type]
        pairs: list[tuple[str, str]] = [("q", changed.text), ("beta", _short(changed.beta))]
        pairs += [("camera", camera) for camera in changed.cameras]
        pairs += [("from", changed.start), ("to", changed.end), ("upload", changed.upload), ("case", changed.case)]
        pairs += [("least", "" if changed.least is None else _short(changed.least))]
        pairs += [("order", "" if changed.order == "score" else changed.order)]
        pairs += [
            ("like", "" if changed.like is None else str(changed.like)),
            ("refine", "1" if changed.refine else ""),
            ("weak", "1" if changed.weak else ""),
            ("rerank", str(changed.rerank or "")),
        ]
        pairs += [("k", "" if changed.k == PAGE_SIZE else str(changed.k))]
        pairs += [("page", "" if changed.page == 1 else str(changed.page))]
        return urlencode([(name, value) for name, value in pairs if value])


def read_search(query: QueryParams, beta: float) -> Search:
    """The search of a URL; `beta` where it names none. Raises ValueError naming a parameter that is wrong."""
    order = query.get("order") or "score"
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r:.40}")
    beta = _number(query, "beta", beta)
    require_beta(beta)
    least = _number(query, "least", math.nan)
    asked = Search(
        text=query.get("q", ""),
        beta=beta,
        cameras=tuple(camera for camera in query.getlist("camera") if camera),
        start=query.get("from", ""),
        end=query.get("to", ""),
        least=None if math.isnan(least) else least,
        weak=query.get("weak") == "1",
        rerank=_whole(query, "rerank", 0, MOST_RERANKED, 0) or 0,
        order="time" if order == "time" else "score",
        like=_whole(query, "like", 0, MOST_ID, None),
        upload=query.get("upload", ""),
        case=query.get("case", ""),
        refine=query.get("refine") == "1",
        page=_whole(query, "page", 1, MOST_PAGES, 1) or 1,
        k=_whole(query, "k", 1, 1000, PAGE_SIZE) or PAGE_SIZE,
    )
    if asked.first >= MOST_RESULTS:
        last = -(-MOST_RESULTS // asked.k)
        raise ValueError(f"page must be at most {last} for {asked.k} results a page: {MOST_RESULTS} can be seen")
    return asked


def image_id(text: str) -> int | None:
    """Number of an image in an address; None for a text that is no number, or one that no image has."""
    return _within(text, 0, MOST_ID)


def _short(value: float) -> str:
    """The shortest text that is read as the same number: the next page must not be of another search."""
    return repr(value).removesuffix(".0")


def _number(query: QueryParams, name: str, default: float) -> float:
    text = query.get(name) or ""
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.inf
    if math.isinf(value) or (text and math.isnan(value)):
        raise ValueError(f"{name} must be a finite number, got {text!r:.40}")
    return value


def _whole(query: QueryParams, name: str, least: int, most: int, default: int | None) -> int | None:
    text = query.get(name) or ""
    if not text:
        return default
    value = _within(text, least, most)
    if value is None:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {text!r:.40}")
    return value


def _within(text: str, least: int, most: int) -> int | None:
    """Whole number of a text of digits; None for another text and out of bounds."""
    digits = text.lstrip("0") or text[:1]
    # Python refuses to read thousands of digits.
    if not digits.isascii() or not digits.isdigit() or len(digits) > 20:
        return None
    return int(digits) if least <= int(digits) <= most else None
