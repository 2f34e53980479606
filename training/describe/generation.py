"""Generation of two texts per image: requested from a provider, checked, requested again on a failure, and recorded.

An image gets exactly one record: "ok", "rejected" (its texts failed a check in every allowed attempt) or "failed" (no answer,
or no readable image); none yet where an answer is pending (batches).
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

from training.describe.llm.answer_store import AnswerStore, DescriptionStore, answer_key
from training.describe.llm.client import RequestFailedError
from training.describe.llm.executor import CachedProvider, Sampling, extract_text, run_concurrently
from training.describe.llm.limits import StopSignal, UsageMeter
from training.describe.llm.providers import AnswerPendingError, EncodedImage, Provider, load_image
from training.describe.text.prompts import Prompt
from training.describe.text.schema import KINDS, Kind, Schema
from training.describe.text.text_checks import Limits, NearDuplicates, check_text

# Threads that read image files, which would block the event loop.
READERS = 4


@dataclass(frozen=True)
class ImageItem:
    """An image to be described, with its person and the style of its texts."""

    file_path: str
    path: Path
    person: int
    style: int


@dataclass
class TextChecker:
    """Checks of the texts of an image; near-duplicates only where an index is given."""

    schema: Schema
    limits: Limits
    near_duplicates: NearDuplicates | None = None

    def check(self, item: ImageItem, texts: Mapping[Kind, str], problems: Mapping[Kind, str]) -> dict[str, str]:
        """Maps each check to "" where it passed, else to the reason; problems: reason why an answer was unusable, or ""."""
        checks = {f"{kind}.answer": problems[kind] for kind in KINDS}
        for kind in KINDS:
            if not problems[kind]:
                found = check_text(kind, texts[kind], self.schema, self.limits)
                checks |= {f"{kind}.{name}": reason for name, reason in found.items()}
        if self.near_duplicates is not None and not any(checks.values()):
            other = self.near_duplicates.add(item.file_path, f"{texts['identity']} {texts['clothing']}", item.person)
            checks["near_duplicate"] = f"near-duplicate of {other}" if other else ""
        return checks


@dataclass
class GenerationTask:
    """Everything that the texts depend on besides the image."""

    model: str
    # JSON values that the answers depend on, beside those of `sampling` and the prompts.
    params: dict[str, Any]
    sampling: Sampling
    # Prompt of a kind of text in a style.
    prompts: Callable[[Kind, int], Prompt]
    checker: TextChecker

    def __post_init__(self) -> None:
        sampling = self.sampling
        self.params = self.params | {
            name: getattr(sampling, name) for name in ("temperature", "temperature_step", "seed", "max_tokens")
        }

    def prompt_hash(self, style: int) -> str:
        """Hash of both prompts of a style, 16 hexadecimal digits."""
        both = "/".join(self.prompts(kind, style).hash for kind in KINDS)
        return hashlib.sha256(both.encode()).hexdigest()[:16]


@dataclass
class StatusCounts:
    """Counts of records by status, and of those that are not "ok" by reason."""

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts one record."""
        self.statuses[row["status"]] += 1
        if row["status"] != "ok":
            self.reasons[reason_group(str(row.get("reason", "")))] += 1


def reason_group(reason: str) -> str:
    """Reason of a status without the part that differs from image to image."""
    return reason.partition(":")[0]


class DescriptionGenerator:
    """Describes images with one provider and writes to the two stores. One object per event loop."""

    def __init__(
        self,
        task: GenerationTask,
        provider: Provider,
        answers: AnswerStore,
        descriptions: DescriptionStore,
        meter: UsageMeter,
        stop_signal: StopSignal,
        on_record: Callable[[dict[str, Any]], None],
    ) -> None:
        """on_record: called with every new record."""
        self.task, self.provider = task, CachedProvider(provider, answers, meter)
        self.descriptions, self.stop_signal = descriptions, stop_signal
        self._on_record = on_record
        self._readers = ThreadPoolExecutor(READERS)

    async def run(self, items: Iterable[ImageItem]) -> None:
        """Records every item until all are done or the stop signal is set; see `run_concurrently`."""
        files = self.provider.store.lines, self.descriptions.lines
        await run_concurrently(items, self._describe, self.provider.items_in_flight, self.stop_signal, files)

    async def _describe(self, item: ImageItem) -> None:
        loop = asyncio.get_running_loop()
        try:
            image = await loop.run_in_executor(self._readers, load_image, item.path)
        except OSError as error:
            return self._record(item, "failed", f"unreadable image: {error}", {}, {}, {})
        texts: dict[Kind, str] = {}
        problems: dict[Kind, str] = {}
        attempts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        wanted: list[Kind] = list(KINDS)
        while True:
            requests = [self._request_text(item, image, kind, attempts[kind]) for kind in wanted]
            # Awaits both: an answer still in flight when the other request fails must be stored.
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            known = (RequestFailedError, AnswerPendingError)
            fatal = next((error for error in errors if not isinstance(error, known)), None)
            if fatal is not None:
                raise fatal
            failed = [error for error in errors if isinstance(error, RequestFailedError)]
            if failed:
                return self._record(item, "failed", f"no answer: {failed[0]}", texts, {}, attempts)
            if errors:
                return None
            for kind, outcome in zip(wanted, outcomes, strict=True):
                assert not isinstance(outcome, BaseException)
                texts[kind], problems[kind] = outcome
                attempts[kind] += 1
            checks = self.task.checker.check(item, texts, problems)
            failing = [name for name, reason in checks.items() if reason]
            if not failing:
                return self._record(item, "ok", "", texts, checks, attempts)
            wanted = [kind for kind in KINDS if any(name.split(".")[0] in (kind, "near_duplicate") for name in failing)]
            if any(attempts[kind] >= self.task.sampling.attempts for kind in wanted):
                return self._record(item, "rejected", ", ".join(failing), texts, checks, attempts)

    async def _request_text(self, item: ImageItem, image: EncodedImage, kind: Kind, attempt: int) -> tuple[str, str]:
        """Requests one text and returns it as `extract_text` does."""
        task, prompt = self.task, self.task.prompts(kind, item.style)
        key = answer_key(
            image=image.digest, prompt=prompt.hash, model=task.model, params=task.params, kind=kind, attempt=attempt
        )
        request = task.sampling.request(key, prompt, attempt, image, item.file_path, item.style)
        return extract_text(await self.provider.answer(request), prompt)

    def _record(
        self,
        item: ImageItem,
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
        self.descriptions.add(row)
        self._on_record(row)
