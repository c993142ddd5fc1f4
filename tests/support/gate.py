"""An upstream that waits until a test opens its gate."""

import asyncio

from aiohttp import web

from tests.support.scripted import Call, Reply, ScriptedUpstream


class Gate:
    """Holds the upstream's answers until it is opened; ``arrived`` counts the calls that wait."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._open = asyncio.Event()
        self._changed = asyncio.Condition()
        self.arrived = 0
        self.answer: Reply = upstream.embed  # what each call gets, once it is open
        upstream.reply = self._reply

    async def _reply(self, call: Call) -> web.StreamResponse:
        async with self._changed:
            self.arrived += 1
            self._changed.notify_all()
        await self._open.wait()
        answered = self.answer(call)
        return answered if isinstance(answered, web.StreamResponse) else await answered

    async def calls(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.arrived >= count)

    def open(self) -> None:
        self._open.set()
