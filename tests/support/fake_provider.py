"""What stands in for a model: a provider that follows a script, and a server in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from bench.pipeline.fake_openai import Behaviour, serve
from training.describe.llm.answer_store import Answer
from training.describe.llm.providers import Ask

KEY = "sk-secret-0123456789abcdef"


class Scripted:
    """A provider that answers what a function of the ask says; an exception is raised."""

    window = 3

    def __init__(self, script: Any) -> None:
        self.script, self.asks = script, list[Ask]()

    async def answer(self, ask: Ask) -> Answer:
        self.asks.append(ask)
        await asyncio.sleep(0.001)
        value = self.script(ask)
        if isinstance(value, BaseException):
            raise value
        return value


class Background:
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
        """Ends answers that nobody waits for any more too: left to the garbage collector they break whatever runs then."""

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
