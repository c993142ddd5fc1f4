"""The bytes of a body, collected as they arrive (pure)."""

import io

_PIECE_BYTES, _FEW_PIECES = 512 * 1024, 4


class Pieces:
    """A single buffer would be copied each time that it has to grow: tens of milliseconds for tens of megabytes. A list
    of the chunks would take forty times their memory if a client sends single bytes."""

    def __init__(self) -> None:
        self._full: list[bytes] = []
        self._last = io.BytesIO()

    def write(self, chunk: bytes) -> None:
        self._last.write(chunk)
        if self._last.tell() >= _PIECE_BYTES:
            self._full.append(self._last.getvalue())
            self._last = io.BytesIO()

    @property
    def is_large(self) -> bool:
        """Whether `joined` takes so long that a thread should do it, in which it holds no lock of the interpreter."""
        return len(self._full) >= _FEW_PIECES

    def joined(self) -> bytes:
        last = self._last.getvalue()
        return b"".join([*self._full, last]) if self._full else last
