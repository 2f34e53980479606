"""Providers of a generation by files: one that writes requests, one that knows which have failed; neither has an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from training.describe.batches.request_files import RequestFiles
from training.describe.llm.answer_store import Answer
from training.describe.llm.client import RequestFailedError
from training.describe.llm.limits import UsageMeter
from training.describe.llm.providers import AnswerPendingError, OpenAIProvider, Request
from training.describe.llm.responses import adapt_body

# Enough to read images while another is written.
ITEMS_IN_FLIGHT = 8


class RequestExporter:
    """Writes each request whose answer is not awaited yet."""

    items_in_flight = ITEMS_IN_FLIGHT

    def __init__(self, files: RequestFiles, meter: UsageMeter, model: str, without: Iterable[str]) -> None:
        self.files, self.meter, self.model, self.without = files, meter, model, frozenset(without)

    async def answer(self, request: Request) -> Answer:
        """Raises AnswerPendingError, BudgetExceededError where the request would exceed the budget, and what `RequestFiles.add`
        raises."""
        if request.key not in self.files:
            # Stays in flight: it is paid for later.
            self.meter.admit()
            self.files.add(request, adapt_body(OpenAIProvider.request_body(self.model, request), self.without))
        raise AnswerPendingError


class FailedRequests:
    """Reasons of the requests that have failed for good."""

    items_in_flight = ITEMS_IN_FLIGHT

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = reasons

    async def answer(self, request: Request) -> Answer:
        """Raises RequestFailedError for a failed request, AnswerPendingError for any other."""
        if request.key in self.reasons:
            raise RequestFailedError(self.reasons[request.key])
        raise AnswerPendingError
