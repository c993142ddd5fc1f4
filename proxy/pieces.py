"""The bytes of a body, collected as they arrive (pure)."""

import io

from proxy.steps import Steps

_PIECE_BYTES = 256 * 1024
_LARGE_CHUNK_BYTES = 4 * 1024  # is kept as it is
_AT_ONCE_BYTES = 3 * 1024**2  # in steps, which need a buffer of zeros first, it would take three times as long


class Pieces:
    """Joins small chunks into pieces. A single buffer would be copied each time it has to grow: tens of milliseconds
    for tens of megabytes. A list of all chunks would take forty times their memory if a client sends single bytes."""

    def __init__(self) -> None:
        self.full: list[bytes] = []
        self._last = io.BytesIO()
        self.size_bytes = 0

    def write(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        if len(chunk) >= _LARGE_CHUNK_BYTES:
            self._end_piece()
            self.full.append(chunk)
            return
        self._last.write(chunk)
        if self._last.tell() >= _PIECE_BYTES:
            self._end_piece()

    def _end_piece(self) -> None:
        if self._last.tell():
            self.full.append(self._last.getvalue())
            self._last = io.BytesIO()

    def joined(self) -> Steps[bytes]:
        """All of the bytes, which are removed from here. If there are many, each piece is freed once it is copied, so
        that this takes no extra memory."""
        self.full.append(self._last.getvalue())
        self._last = io.BytesIO()
        if self.size_bytes <= _AT_ONCE_BYTES:
            whole = b"".join(self.full)
            self.full.clear()
            return whole
        # Nothing else refers to these zeros, so they are overwritten in place. Until then they take no memory.
        buffer, end = io.BytesIO(bytes(self.size_bytes)), self.size_bytes
        while self.full:  # the last one first, so that the heap shrinks step by step, not all at once at the end
            piece = self.full.pop()
            end -= len(piece)
            buffer.seek(end)
            buffer.write(piece)
            yield
        return buffer.getvalue()  # without a copy
