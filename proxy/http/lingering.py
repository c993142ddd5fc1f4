"""Closing a connection so that the client can read the last response (RFC 9112 §9.6).

Closing a socket with unread input resets the connection, and a reset can destroy data that the client has not read yet.
So the proxy first shuts down only the writing side, and discards what the client still sends, up to a limit of time and
size.
"""

import asyncio
from contextlib import suppress

_MAX_DISCARDED_BYTES = 1024 * 1024


class Lingering:
    """The state of a connection from its last response until it is closed."""

    __slots__ = ("discarded_bytes", "over")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.over: asyncio.Future[None] = loop.create_future()
        self.discarded_bytes = 0

    def discard(self, data: bytes) -> bool:
        """Whether the client may send more than this."""
        self.discarded_bytes += len(data)
        return self.discarded_bytes <= _MAX_DISCARDED_BYTES

    def end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


def shut_down(transport: asyncio.Transport) -> None:
    """Close the writing side only, if the transport can."""
    if transport.can_write_eof():
        with suppress(OSError):  # the peer has reset the connection; the transport finds out next
            transport.write_eof()
