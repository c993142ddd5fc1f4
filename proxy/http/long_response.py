"""Responses to requests that were not parsed, written at once, or in turns with everything else on the event loop."""

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Self

from aiohttp import web
from aiohttp.web import StreamResponse

from proxy.http.limited_connection import ConnectionContext, LimitedConnection
from proxy.http.plain_response import head_of
from proxy.http.streamed import Streamed
from proxy.turns import turn

Response = list[bytes]  # in parts
MAX_LONG_BYTES = 4 * 1024**2  # a client that does not read its response ties up so much of the proxy's memory
_FEW_PARTS, _SMALL_BYTES = 16, 64 * 1024
_TURN_BYTES = 256 * 1024  # to write so much takes a tenth of a millisecond, and so does to make it of vectors


class LongResponse(NamedTuple):
    """A response that takes too long to be made and written at once. ``rest`` makes what follows the ``first`` parts,
    each time for one turn. It must not raise."""

    first: Response
    rest: Iterator[Response]

    @classmethod
    def of(cls, first: Response, parts: Iterable[bytes], *, part_bytes: int) -> Self:
        """One that writes some of ``parts`` in each turn. Their average size is ``part_bytes``."""
        return cls(first, _in_turns(iter(parts), 1 + _TURN_BYTES // part_bytes))


def _in_turns(parts: Iterator[bytes], parts_a_turn: int) -> Iterator[Response]:
    while some := list(islice(parts, parts_a_turn)):
        yield some


def long_response_of(response: StreamResponse) -> LongResponse | None:
    """A response to an HTTP/1.1 request as the bytes that aiohttp would write. None unless it is one that may be
    written in turns, and `proxy.http.plain_response.head_of` makes its head."""
    if type(response) is not Streamed or response.part_bytes is None:
        return None
    length = response.content_length
    head = head_of(response, length) if length is not None and length <= MAX_LONG_BYTES else None
    return None if head is None else LongResponse.of([head], response.parts, part_bytes=response.part_bytes)


class WritingConnection(LimitedConnection):
    """A connection that writes responses of which aiohttp knows nothing."""

    __slots__ = ("_rest", "_writing")

    def __init__(self, server: web.Server, context: ConnectionContext, **options: Any) -> None:
        super().__init__(server, context, **options)
        self._rest: Iterator[Response] | None = None  # of a long response that has begun
        self._writing: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self._request is not None or self._rest is not None

    def respond(self, response: Response | LongResponse) -> None:
        """Write the response to a request that has been counted."""
        if isinstance(response, LongResponse):
            self._rest = response.rest
            self._write(response.first)
            self._writing = self._context.loop.create_task(self._write_in_turns())
        else:
            self._timer.request_ended(self._now())
            self._write(response)

    async def _write_in_turns(self) -> None:
        while self._rest is not None:
            await turn()
            self._write_next()

    def finish_writing(self) -> None:
        """Write what is left of a long response at once, because something else has to follow."""
        while self._rest is not None:
            self._write_next()

    def _write_next(self) -> None:
        """The response goes on, however slowly the client reads: it is no larger than what a connection may hold."""
        if self._rest is None:  # finished, or the connection was lost
            return
        parts = next(self._rest, None)
        if parts is not None:
            self._write(parts)
            return
        self._rest = None
        self._timer.request_ended(self._now())
        if self.writing_paused:
            self.reserve_unread()

    def _write(self, parts: Response) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            self._rest = None
        # Joining large or many parts would copy all of them, but writing a few small ones separately takes longer.
        elif len(parts) <= _FEW_PARTS and len(parts[-1]) <= _SMALL_BYTES:
            transport.write(b"".join(parts))
        else:
            transport.writelines(parts)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._rest = None
        super().connection_lost(exc)
