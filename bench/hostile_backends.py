"""What is behind a proxy that is attacked: an upstream, which `bench.hostile` starts with a hidden flag as a process of
its own, and a Redis that lies."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from aiohttp import web

from bench.hostile_load import BATCH, step_aside
from tests.support.scripted import Call, ScriptedUpstream

_NOT_FOR_HITS = ("bodies", "unread", "batches", "message")  # in these rows the healthy client's items are cached
WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


class Discard:
    """A parser to which everything is of no interest."""

    def feed_data(self, _: bytes) -> tuple[bool, bytes]:
        return False, b""

    def feed_eof(self) -> None: ...


async def swallow(request: web.BaseRequest) -> web.StreamResponse:
    """Take a WebSocket handshake, and whatever follows."""
    key = request.headers["Sec-WebSocket-Key"] + WEBSOCKET_GUID
    accept = base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest())
    fields = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept.decode()}
    response = web.StreamResponse(status=101, headers=fields)
    await response.prepare(request)
    request.protocol.set_parser(Discard())  # type: ignore[arg-type] # of which it calls just these methods
    await asyncio.Event().wait()
    return response


async def serve_upstream(name: str) -> None:
    """The upstream of an attack, which spends no time on making numbers or on reading large bodies."""
    if name in _NOT_FOR_HITS:
        step_aside()
    upstream = ScriptedUpstream(dimensions={"unread": 3072, "batches": 1536}.get(name, 256))
    made = {
        count: orjson.dumps(upstream.answer_to({"model": "m", "input": [f"{n}" for n in range(count)]}))
        for count in (1, *([BATCH] if name == "batches" else []))
    }

    async def reply(call: Call) -> web.StreamResponse:
        if "Upgrade" in call.headers:
            return await swallow(call.request)
        if "made-up" in call.headers.get("Authorization", ""):
            return web.Response(status=401)
        if b'"hangs"' in call.body:
            await asyncio.Event().wait()
        count = 1 if len(call.body) < 200 else BATCH
        return web.Response(body=made[count], content_type="application/json")

    upstream.reply = reply
    async with upstream.serving():
        print(upstream.base_url, flush=True)
        await asyncio.Event().wait()


@asynccontextmanager
async def relaying(port: int, lies: asyncio.Event) -> AsyncIterator[str]:
    """The URL of a Redis that passes everything on to the one at ``port``, until it ``lies``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_behind = await asyncio.open_connection("127.0.0.1", port)
        answering = asyncio.create_task(copy(behind, writer))
        while data := await reader.read(65536):
            (writer if lies.is_set() else to_behind).write(b"*1000000000\r\n" if lies.is_set() else data)
        answering.cancel()
        to_behind.close()
        writer.close()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
