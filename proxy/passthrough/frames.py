"""Frame boundaries of a WebSocket (RFC 6455 §5.2), without looking at the payload (pure)."""

CLOSE = 0x8
_OPCODE, _MASKED, _LENGTH = 0x0F, 0x80, 0x7F
_EXTENDED = {126: 2, 127: 8}  # bytes of an extended length, by the 7-bit length
_FIRST_EXTENDED = 126
_MAX_HEAD = 14
# Length of a frame's head by its second byte, with or without a mask of 4 bytes.
_SIZES = [2 + _EXTENDED.get(second & _LENGTH, 0) + (4 if second & _MASKED else 0) for second in range(256)]


class Frames:
    """Tracks the frames of one direction, chunk by chunk. No payload is kept."""

    __slots__ = ("_head", "_left", "has_close")

    def __init__(self) -> None:
        self._head = bytearray()  # of a frame, as far as received
        self._left = 0  # bytes of payload until the frame ends
        self.has_close = False  # a Close frame, after which there are no others (§5.5.1)

    @property
    def is_between(self) -> bool:
        """Whether the last frame is complete, so that another may begin."""
        return not (self._head or self._left)

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            elif self._head or len(data) - at < _MAX_HEAD:
                step = min(_size(self._head) - len(self._head), len(data) - at)
                self._head += data[at : at + step]
                if len(self._head) == _size(self._head):
                    self._begin(self._head, 0)
                    self._head.clear()
            else:
                step = self._begin(data, at)
            at += step

    def _begin(self, data: bytes | bytearray, at: int) -> int:
        """Parse the head that begins at ``at``, and return its length."""
        if data[at] & _OPCODE == CLOSE:
            self.has_close = True
        second = data[at + 1]
        size = _SIZES[second]
        length = second & _LENGTH
        self._left = length if length < _FIRST_EXTENDED else int.from_bytes(data[at + 2 : at + 2 + _EXTENDED[length]])
        return size


def _size(head: bytearray) -> int:
    """The length of a frame's head, as far as its first bytes show it."""
    return 2 if len(head) < 2 else _SIZES[head[1]]  # noqa: PLR2004 - flags and length


def close_frame(code: int, *, is_masked: bool) -> bytes:
    """A Close frame with a status code (§7.4). Clients mask theirs, here with zeros, which change nothing."""
    payload = code.to_bytes(2)
    mask = bytes(4) if is_masked else b""
    return bytes((0x80 | CLOSE, (_MASKED if is_masked else 0) | len(payload))) + mask + payload
