"""A forward proxy: CONNECT and absolute-form requests, optional credentials, and several failure modes."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_END = b"\r\n\r\n"


@dataclass
class ForwardProxy:
    """``reply`` is what every request gets, if it is not None: an answer, nonsense or nothing, and then the end."""

    login: str | None = None  # the value of Proxy-Authorization to ask for
    reply: bytes | None = None
    hangs: bool = False
    port: int = 0
    heads: list[str] = field(default_factory=list)  # of every request it got, as they came
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def lines(self) -> list[str]:
        return [head.split("\r\n")[0] for head in self.heads]

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["ForwardProxy"]:
        tasks: set[asyncio.Task[None]] = set()

        async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.wait([task])

        server = await asyncio.start_server(on_connection, "127.0.0.1", self.port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; returns whether another may follow on this connection."""
        head = (await reader.readuntil(_END)).decode()
        self.heads.append(head)
        line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = line.split(" ")
        given = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        if self.hangs:
            await asyncio.Event().wait()
        if self.reply is not None:
            writer.write(self.reply)
            await writer.drain()
            return False
        if self.login is not None and given.get("proxy-authorization") != self.login:
            writer.write(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
            )
            await writer.drain()
            return False
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            there = await self._open(host, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            parts = urlsplit(target)
            assert parts.hostname is not None, f"not in absolute form: {line}"
            there = await self._open(parts.hostname, parts.port or 80)
            path = target.removeprefix(f"{parts.scheme}://{parts.netloc}")
            kept = [field for field in fields if not field.lower().startswith("proxy-")]
            # One request to a connection: the server's answer ends it, unless it becomes a WebSocket.
            end = [] if "upgrade" in given else ["Connection: close"]
            there[1].write("\r\n".join([f"{method} {path} HTTP/1.1", *kept, *end]).encode() + _END)
        await _join((reader, writer), there)
        return False

    async def _open(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(host, port)
        self._writers.add(writer)
        return reader, writer


_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _join(one: _Ends, other: _Ends) -> None:
    pumps = [asyncio.ensure_future(_pump(one[0], other[1])), asyncio.ensure_future(_pump(other[0], one[1]))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        other[1].close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
