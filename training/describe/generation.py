"""Two texts per image from a provider: asked for, checked, asked for again, recorded; many images at a time.

An image gets exactly one record: "ok", "rejected" (its texts failed a check as often as allowed) or "failed" (it got no
answer, or is no image).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.describe.llm.answer_store import Answers, Records, answer_key
from training.describe.llm.client import CallFailed
from training.describe.llm.executor import Asker, Sampling, text_of, work_through
from training.describe.llm.limits import Halt, Meter
from training.describe.llm.providers import Picture, Provider, load_picture
from training.describe.text.prompts import Prompt
from training.describe.text.schema import KINDS, Kind, Schema
from training.describe.text.text_checks import Limits, NearDuplicates, check_text

# Threads that read image files; the loop never does.
READERS = 4


@dataclass(frozen=True)
class Item:
    """An image that is to get texts."""

    file_path: str
    path: Path
    person: int
    style: int


@dataclass
class Judge:
    """Checks of the texts of an image; near-duplicates only where `near` is given."""

    schema: Schema
    limits: Limits
    near: NearDuplicates | None = None

    def verdict(self, item: Item, texts: Mapping[Kind, str], problems: Mapping[Kind, str]) -> dict[str, str]:
        """Check -> "" where it passed, else why not; `problems`: what was wrong with an answer as such, "" for nothing."""
        checks = {f"{kind}.answer": problems[kind] for kind in KINDS}
        for kind in KINDS:
            if not problems[kind]:
                found = check_text(kind, texts[kind], self.schema, self.limits)
                checks |= {f"{kind}.{name}": why for name, why in found.items()}
        if self.near is not None and not any(checks.values()):
            other = self.near.add(item.file_path, f"{texts['identity']} {texts['clothing']}", item.person)
            checks["near_duplicate"] = f"says almost the same as {other}" if other else ""
        return checks


@dataclass
class Task:
    """All that the texts depend on besides the image."""

    model: str
    # JSON values that decide what a model answers, beside those of `sampling` and the prompts.
    params: dict[str, Any]
    sampling: Sampling
    prompts: Callable[[Kind, int], Prompt]
    judge: Judge

    def __post_init__(self) -> None:
        sampling = self.sampling
        self.params = self.params | {
            name: getattr(sampling, name) for name in ("temperature", "temperature_step", "seed", "max_tokens")
        }

    def prompt_hash(self, style: int) -> str:
        """Sixteen hexadecimal digits that name both prompts of a style."""
        both = "/".join(self.prompts(kind, style).hash for kind in KINDS)
        return hashlib.sha256(both.encode()).hexdigest()[:16]


@dataclass
class Tally:
    """Images by status, and those without texts by reason."""

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def count(self, row: Mapping[str, Any]) -> None:
        """Adds one record."""
        self.statuses[row["status"]] += 1
        if row["status"] != "ok":
            self.reasons[short_reason(str(row.get("reason", "")))] += 1


def short_reason(reason: str) -> str:
    """A reason without what differs from image to image."""
    return reason.partition(":")[0]


class Generator:
    """Works through images with one provider and writes to the two stores. One object per event loop."""

    def __init__(
        self,
        task: Task,
        provider: Provider,
        answers: Answers,
        records: Records,
        meter: Meter,
        halt: Halt,
        recorded: Callable[[dict[str, Any]], None],
    ) -> None:
        """recorded: called with every new record."""
        self.task, self.asker, self.records, self.halt = task, Asker(provider, answers, meter), records, halt
        self._recorded = recorded
        self._readers = ThreadPoolExecutor(READERS)

    async def run(self, items: Iterable[Item]) -> None:
        """Records every item; see `work_through`."""
        stores = self.asker.answers.lines, self.records.lines
        await work_through(items, self._image, self.asker.provider.window, self.halt, stores)

    async def _image(self, item: Item) -> None:
        loop = asyncio.get_running_loop()
        try:
            picture = await loop.run_in_executor(self._readers, load_picture, item.path)
        except OSError as error:
            return self._record(item, "failed", f"unreadable image: {error}", {}, {}, {})
        texts: dict[Kind, str] = {}
        problems: dict[Kind, str] = {}
        attempts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        wanted: list[Kind] = list(KINDS)
        while True:
            asked = [self._ask(item, picture, kind, attempts[kind]) for kind in wanted]
            # Both are waited for: an answer that is under way while the other call fails must be stored.
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            raised = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            fatal = next((error for error in raised if not isinstance(error, CallFailed)), None)
            if fatal is not None:
                raise fatal
            if raised:
                return self._record(item, "failed", f"no answer: {raised[0]}", texts, {}, attempts)
            for kind, outcome in zip(wanted, outcomes, strict=True):
                assert not isinstance(outcome, BaseException)
                texts[kind], problems[kind] = outcome
                attempts[kind] += 1
            checks = self.task.judge.verdict(item, texts, problems)
            failing = [name for name, why in checks.items() if why]
            if not failing:
                return self._record(item, "ok", "", texts, checks, attempts)
            wanted = [kind for kind in KINDS if any(name.split(".")[0] in (kind, "near_duplicate") for name in failing)]
            if any(attempts[kind] >= self.task.sampling.attempts for kind in wanted):
                return self._record(item, "rejected", ", ".join(failing), texts, checks, attempts)

    async def _ask(self, item: Item, picture: Picture, kind: Kind, attempt: int) -> tuple[str, str]:
        """See `text_of`."""
        task, prompt = self.task, self.task.prompts(kind, item.style)
        key = answer_key(
            image=picture.digest, prompt=prompt.hash, model=task.model, params=task.params, kind=kind, attempt=attempt
        )
        ask = task.sampling.ask(key, prompt, attempt, picture, item.file_path, item.style)
        return text_of(await self.asker.answer(ask), prompt)

    def _record(
        self,
        item: Item,
        status: str,
        reason: str,
        texts: Mapping[Kind, str],
        checks: dict[str, str],
        attempts: Mapping[Kind, int],
    ) -> None:
        row: dict[str, Any] = {"file_path": item.file_path}
        row |= {kind: texts.get(kind, "") for kind in KINDS}
        row |= {"style": item.style, "model": self.task.model, "prompt_hash": self.task.prompt_hash(item.style)}
        row |= {"params": self.task.params, "status": status}
        row |= {"reason": reason} if reason else {}
        row |= {"checks": checks, "attempts": dict(attempts)}
        self.records.add(row)
        self._recorded(row)
