"""The raw bytes of the request that a connection receives, and the boundaries between requests (pure).

A request without Transfer-Encoding ends after its head and Content-Length bytes (RFC 9112 §6.3).
"""

HEAD_END = b"\r\n\r\n"
# Of a longer request only the head is recorded: a MAC of the whole request would cost more than parsing it.
MAX_WHOLE_BYTES = 16 * 1024


def head_of(sent: bytes) -> bytes:
    """The head that these bytes begin with, including the empty line; at most three bytes if that has not arrived."""
    return sent[: sent.find(HEAD_END) + len(HEAD_END)]


class RequestRecorder:
    """Records what arrives between two request boundaries.

    The caller knows from the parser how long a request's body is, and when the request has ended. There is a boundary
    only if all bytes since the last one were that one request. Otherwise, as after two pipelined requests, the
    connection has no boundary any more: it is not known which bytes belong to which request.
    """

    __slots__ = ("_received_bytes", "_recorded", "at_boundary")

    def __init__(self) -> None:
        self.at_boundary = True  # the parser has no bytes of the next request
        self._recorded = b""  # the bytes since the boundary: all of them, or only the head
        self._received_bytes = 0  # since the boundary

    def feed(self, data: bytes) -> None:
        """Bytes that the parser gets."""
        if self.at_boundary and data:
            self.at_boundary, self._received_bytes = False, 0
            self._recorded = data if len(data) <= MAX_WHOLE_BYTES else head_of(data)
        elif len(self._recorded) == self._received_bytes and self._received_bytes + len(data) <= MAX_WHOLE_BYTES:
            self._recorded += data
        self._received_bytes += len(data)

    def end(self, body_bytes: int | None) -> None:
        """The request has ended. ``body_bytes`` is its Content-Length, or None if the body had no known length."""
        self.at_boundary = self._is_one_request(body_bytes)
        self._recorded = b""

    def whole(self, body_bytes: int | None) -> bytes | None:
        """The request as it was sent. None if it is too long, or other bytes were received too. Call before `end`."""
        is_complete = len(self._recorded) == self._received_bytes <= MAX_WHOLE_BYTES
        return self._recorded if is_complete and self._is_one_request(body_bytes) else None

    def head(self, body_bytes: int | None) -> bytes | None:
        """The head of the request. None if other bytes were received too. Call before `end`."""
        return head_of(self._recorded) if self._is_one_request(body_bytes) else None

    def _is_one_request(self, body_bytes: int | None) -> bool:
        """Whether exactly one request was received. The parser skips any number of empty lines before a request, so
        the end of its head is not known after these."""
        head = self._recorded.find(HEAD_END)
        return (
            body_bytes is not None
            and head > 0
            and self._recorded[0] not in b"\r\n"
            and self._received_bytes == head + len(HEAD_END) + body_bytes
        )
