"""Responses that are written in parts, as fast as the client reads them."""

from collections.abc import Iterable

from aiohttp.web import BaseRequest, StreamResponse
from multidict import CIMultiDict

from proxy.turns import turn

# Written at a time. More would block the event loop for other requests.
_PIECE_BYTES = 128 * 1024


class Streamed(StreamResponse):
    """``parts`` of the body are made only as they are written. ``length`` is that of the whole body, if known.

    ``part_bytes`` is the average size of many similar parts, for which `proxy.http.long_response` may be used as well.
    """

    def __init__(
        self,
        parts: Iterable[bytes],
        *,
        status: int,
        headers: CIMultiDict[str],
        reason: str | None = None,
        length: int | None = None,
        part_bytes: int | None = None,
    ) -> None:
        super().__init__(status=status, reason=reason, headers=headers)
        self.parts = parts
        self.part_bytes = part_bytes
        self.content_length = length

    async def send(self, request: BaseRequest) -> None:
        """Raises `ConnectionError` if the client disconnects."""
        await turn()
        await self.prepare(request)
        piece: list[bytes] = []
        size = 0
        for part in self.parts:
            piece.append(part)
            size += len(part)
            if size >= _PIECE_BYTES:
                await self.write(b"".join(piece))
                await turn()  # a client that reads fast must not occupy the event loop
                piece, size = [], 0
        await self.write_eof(b"".join(piece))


def in_pieces(body: bytes) -> Iterable[bytes]:
    """The parts of a body that is in memory."""
    view = memoryview(body)
    return (bytes(view[start : start + _PIECE_BYTES]) for start in range(0, len(body), _PIECE_BYTES))
