"""An upstream that waits."""

import asyncio

from aiohttp import web

from tests.scripted import Call, Reply, ScriptedUpstream


class Gate:
    """Holds the upstream's answers until it is opened; ``arrived`` counts the calls that wait. ``reply`` makes them."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.reply: Reply | None = None
        self._upstream = upstream
        self._open = asyncio.Event()
        self._changed = asyncio.Condition()
        self.arrived = 0
        upstream.reply = self._reply

    async def _reply(self, call: Call) -> web.StreamResponse:
        async with self._changed:
            self.arrived += 1
            self._changed.notify_all()
        await self._open.wait()
        replied = (self.reply or self._upstream.embed)(call)
        return replied if isinstance(replied, web.StreamResponse) else await replied

    async def calls(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.arrived >= count)

    def open(self) -> None:
        self._open.set()
