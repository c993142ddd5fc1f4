"""Whether a client takes what is written to it, and whether it is still there.

Times are those of the caller's clock.
"""

import fcntl
import select
import struct
import termios
from asyncio import Transport
from contextlib import suppress

# How long a client may take none of what was written.
_UNREAD_TIMEOUT_S = 60.0
# How long nothing may be sent to a client that has closed its side.
_HALF_CLOSED_TIMEOUT_S = 30.0


class Unread:
    """The bytes that a client has yet to take."""

    __slots__ = ("_since_s", "size")

    def __init__(self) -> None:
        self.size = 0
        self._since_s = 0.0  # the last progress

    def look(self, transport: Transport, now: float) -> None:
        """Fewer bytes than before are progress of the client's. More are only the server's."""
        size = transport.get_write_buffer_size()
        if size:
            size += _queued_by_kernel(transport)
        if not size or not self.size or size < self.size:
            self._since_s = now
        self.size = size

    def is_overdue(self, now: float) -> bool:
        return self.size > 0 and now - self._since_s > _UNREAD_TIMEOUT_S


class HalfClosed:
    """A client that has closed its side of the connection.

    It has left, or it waits for its response. Both look alike until something is sent: the kernel of one that has left
    resets the connection then.
    """

    __slots__ = ("_since_s", "_written")

    def __init__(self, now: float) -> None:
        self._since_s = now  # when something was sent
        self._written = 0

    def look(self, now: float, *, written: int, unread: int) -> None:
        """``written`` is the size of the response so far, of which the client has yet to take ``unread`` bytes."""
        if unread or written != self._written:
            self._since_s, self._written = now, written

    def probed(self, now: float) -> None:
        """Something else was sent than a response."""
        self._since_s = now

    def is_overdue(self, now: float) -> bool:
        return now - self._since_s > _HALF_CLOSED_TIMEOUT_S


def is_reset(transport: Transport) -> bool:
    """Whether the client's kernel has reset the connection. Event loops do not watch one that they no longer read."""
    poll = select.poll()
    poll.register(_descriptor(transport), 0)  # errors and resets are reported unasked
    return bool(poll.poll(0))


def _queued_by_kernel(transport: Transport) -> int:
    """Bytes that this kernel has yet to send, or the client's to acknowledge.

    The kernel takes more from the transport only when a third of its queue is free, which a client that reads 16 KiB/s
    may need minutes for.
    """
    queued = bytearray(4)
    with suppress(OSError):  # not every system can tell
        fcntl.ioctl(_descriptor(transport), termios.TIOCOUTQ, queued)
    return int(struct.unpack("i", queued)[0])


def _descriptor(transport: Transport) -> int:
    return int(transport.get_extra_info("socket").fileno())
