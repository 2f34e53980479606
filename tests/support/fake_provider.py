"""Substitutes for a model: a provider that follows a script, and a server in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from bench.pipeline.fake_openai import Behaviour, serve
from training.describe.llm.answer_store import Answer
from training.describe.llm.providers import Request

KEY = "sk-secret-0123456789abcdef"


class ScriptedProvider:
    """Provider that returns the script's answer to a request, or raises it if it is an exception."""

    items_in_flight = 3

    def __init__(self, script: Any) -> None:
        self.script, self.requests = script, list[Request]()

    async def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        await asyncio.sleep(0.001)
        value = self.script(request)
        if isinstance(value, BaseException):
            raise value
        return value


class BackgroundServer:
    """A server in a thread of its own."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        future = asyncio.run_coroutine_threadsafe(serve(self.behaviour), self.loop)
        self.server, self.port = future.result()

    @property
    def requests(self) -> int:
        return sum(self.behaviour.counts.values())

    def stop(self) -> None:
        """Stops the server and cancels pending answers, which would break other tests when garbage-collected later."""

        async def cancel() -> None:
            self.server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
