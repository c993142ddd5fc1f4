"""The bytes of a body, collected as they arrive (pure)."""

import io

from proxy.steps import Steps

_PIECE_BYTES = 256 * 1024


class Pieces:
    """A single buffer would be copied each time that it has to grow: tens of milliseconds for tens of megabytes. A list
    of the chunks would take forty times their memory if a client sends single bytes."""

    def __init__(self) -> None:
        self.full: list[bytes] = []
        self._last = io.BytesIO()
        self.size_bytes = 0

    def write(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        self._last.write(chunk)
        if self._last.tell() >= _PIECE_BYTES:
            self.full.append(self._last.getvalue())
            self._last = io.BytesIO()

    def joined(self) -> Steps[bytes]:
        """All of the bytes; after that, there are none. Each piece is freed once it is copied, so this takes no more
        memory than they do."""
        if not self.full:
            return self._last.getvalue()
        # Nobody else has these zeros, so they are overwritten in place; they take no memory before that.
        whole, end = io.BytesIO(bytes(self.size_bytes)), self.size_bytes
        self.full.append(self._last.getvalue())
        self._last = io.BytesIO()
        while self.full:  # the last first: so the heap can shrink step by step, and not by all of them at the end
            piece = self.full.pop()
            end -= len(piece)
            whole.seek(end)
            whole.write(piece)
            yield
        return whole.getvalue()  # without a copy
