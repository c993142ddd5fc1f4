"""A request that the parser has not got yet."""

import asyncio

from proxy.errors import Overloaded
from proxy.http.long_response import LongResponse, Response
from proxy.reservation import MemoryReservation

# The longest request that is not parsed: understanding it takes less than half a millisecond.
MAX_PENDING_BYTES = 128 * 1024
_UNRESERVED_BYTES = 64 * 1024  # that every connection may keep back


class PendingRequest:
    """A head, maybe with part of its body; or a whole request, and the task that makes its response."""

    __slots__ = ("_missing_bytes", "_received", "_reserved", "response")

    def __init__(
        self, sent: bytes | bytearray, response: "asyncio.Task[Response | LongResponse | None] | None" = None
    ) -> None:
        """``sent`` is a head; or, if there is a ``response`` to it, a whole request."""
        self.response = response
        self._received = sent
        self._missing_bytes = 0  # of a request whose length is known
        self._reserved: tuple[MemoryReservation, int] | None = None

    @classmethod
    def beginning(cls, sent: bytes, size: int, reservation: MemoryReservation | None) -> "PendingRequest | None":
        """The beginning of a request of ``size`` bytes, for which memory is reserved if it is long. None if there is no
        room for it. Without a ``reservation`` there is."""
        pending = cls(bytearray(sent))
        pending._missing_bytes = size - len(sent)
        if size > _UNRESERVED_BYTES and reservation is not None:
            try:
                reservation.take(size)
            except Overloaded:
                return None
            pending._reserved = reservation, size
        return pending

    def add(self, data: bytes) -> bool:
        """Add to the request that has begun. False, and nothing is added, if it ends with ``data``."""
        if len(data) >= self._missing_bytes:
            return False
        self._received += data
        self._missing_bytes -= len(data)
        return True

    def followed_by(self, data: bytes) -> bytes:
        return b"".join((self._received, data))

    def take(self) -> bytes:
        """All of them. Their memory is not reserved any more."""
        if self._reserved is not None:
            reservation, size = self._reserved
            reservation.give_back(size)
            self._reserved = None
        return bytes(self._received)

    def take_response(self, *, has_begun: bool) -> Response | LongResponse | None:
        """The response if it is ready, because the request has been counted by then. Otherwise cancel the task that
        makes it, unless the response ``has_begun``."""
        task = self.response
        if task is None or (has_begun and not task.done()):
            return None
        return None if task.cancel() or task.cancelled() else task.result()
