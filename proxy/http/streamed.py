"""Responses that are written part by part, as fast as the client reads them."""

import asyncio
from collections.abc import Iterable

from aiohttp.web import BaseRequest, StreamResponse
from multidict import CIMultiDict

# What is made at a time: an event loop that is busy with more than that keeps everybody else waiting.
_PIECE_BYTES = 128 * 1024


class Streamed(StreamResponse):
    """``parts`` are the body's; they are asked for when their turn comes. ``length`` is theirs, if it is known."""

    def __init__(
        self,
        parts: Iterable[bytes],
        *,
        status: int,
        headers: CIMultiDict[str],
        reason: str | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__(status=status, reason=reason, headers=headers)
        self._parts = parts
        self.content_length = length

    async def send(self, request: BaseRequest) -> None:
        """Raises `ConnectionError` when the client leaves."""
        await self.prepare(request)
        piece: list[bytes] = []
        size = 0
        for part in self._parts:
            piece.append(part)
            size += len(part)
            if size >= _PIECE_BYTES:
                await self.write(b"".join(piece))
                await asyncio.sleep(0)  # a client that reads fast must not have the event loop to itself
                piece, size = [], 0
        await self.write_eof(b"".join(piece))


def in_pieces(body: bytes) -> Iterable[bytes]:
    """A body that is in memory as a whole, as parts."""
    view = memoryview(body)
    return (bytes(view[start : start + _PIECE_BYTES]) for start in range(0, len(body), _PIECE_BYTES))
