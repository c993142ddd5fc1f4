"""Whether a client reads what is written to it, and whether it is still connected.

Times are those of the caller's clock.
"""

import fcntl
import select
import struct
import termios
from asyncio import Transport
from contextlib import suppress

# How long a client may read nothing of what was written.
_UNREAD_TIMEOUT_S = 60.0
# If nothing was sent for this long to a client that has closed its side, the proxy probes whether it is still there.
_HALF_CLOSED_TIMEOUT_S = 30.0


class Unread:
    """The bytes that a client has not read yet."""

    __slots__ = ("_since_s", "size")

    def __init__(self) -> None:
        self.size = 0
        self._since_s = 0.0  # the last progress

    def update(self, transport: Transport, now: float) -> None:
        """Fewer unread bytes mean that the client has read some. More mean only that the server has written."""
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

    It has left, or it waits for its response. Both look the same until something is sent: then the kernel of a client
    that has left resets the connection.
    """

    __slots__ = ("_since_s", "_written")

    def __init__(self, now: float) -> None:
        self._since_s = now  # when something was last sent
        self._written = 0

    def update(self, now: float, *, written: int, unread: int) -> None:
        """``written`` is the size of the response so far, of which the client has not read ``unread`` bytes yet."""
        if unread or written != self._written:
            self._since_s, self._written = now, written

    def probed(self, now: float) -> None:
        """An interim response was sent."""
        self._since_s = now

    def is_overdue(self, now: float) -> bool:
        return now - self._since_s > _HALF_CLOSED_TIMEOUT_S


def is_reset(transport: Transport) -> bool:
    """Whether the client's kernel has reset the connection. The event loop does not notice it after the client has
    closed its side."""
    poll = select.poll()
    poll.register(_descriptor(transport), 0)  # errors and resets are always reported
    return bool(poll.poll(0))


def _queued_by_kernel(transport: Transport) -> int:
    """Bytes that this kernel has not sent, or the client's kernel has not acknowledged.

    The kernel accepts more from the transport only when a third of its queue is free. A client that reads 16 KiB/s may
    need minutes for that.
    """
    queued = bytearray(4)
    with suppress(OSError):  # not every system supports it
        fcntl.ioctl(_descriptor(transport), termios.TIOCOUTQ, queued)
    return int(struct.unpack("i", queued)[0])


def _descriptor(transport: Transport) -> int:
    return int(transport.get_extra_info("socket").fileno())
