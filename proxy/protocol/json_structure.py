"""What JSON costs to parse, estimated by counting before it is parsed (pure)."""

import numpy as np

from proxy.steps import Steps, finish

# More takes a parser over 50 ms, during which nothing else runs. OpenAI accepts 300,000 tokens.
MAX_VALUES, MAX_MEMBERS = 2_000_000, 200_000
# Bytes of CPython's objects, measured with tracemalloc: a short string in a list takes 65, an empty list 64, a small
# dict with one member 240.
_VALUE_BYTES, _MEMBER_BYTES = 72, 120
# One character beyond the Basic Multilingual Plane makes every character of its string four bytes wide.
_WIDEST = 4
# Seconds that orjson takes, and that the work after it takes for each byte, which is mainly hashing.
_BYTE_S, _VALUE_S, _MEMBER_S, _HASHED_BYTE_S = 2e-9, 45e-9, 250e-9, 3e-9

STEP_BYTES = 16 * 1024  # takes up to half a millisecond to count
_QUICK_STEP_BYTES = 1024 * 1024


class Structure:
    """The structure of JSON whose bytes arrive in pieces.

    Values are counted by what precedes them (``,``, ``[`` and ``{`` outside strings), members of objects by their
    colon. Both are exact for valid JSON. For anything else they are exact up to the first error, where a parser stops.
    """

    __slots__ = ("_is_escape_cut", "_is_in_string", "_is_wide", "containers", "members", "size_bytes", "values")

    def __init__(self) -> None:
        self.size_bytes = 0
        self.values = 0  # containers among them
        self.containers = 0
        self.members = 0
        self._is_wide = False  # a string may contain characters that take more than a byte
        self._is_in_string = False
        self._is_escape_cut = False  # the last piece ended between a backslash and the escaped character

    def feed(self, piece: bytes) -> None:
        """Count the next ``piece``. At most a few hundred KiB at a time: it takes up to 30 ns a byte."""
        self.size_bytes += len(piece)
        if not piece.isascii():
            self._is_wide = True
        outside = self._outside_strings(piece)
        containers = outside.count(b"[") + outside.count(b"{")
        self.containers += containers
        self.values += containers + outside.count(b",")
        self.members += outside.count(b":")

    def _outside_strings(self, piece: bytes) -> bytes:
        if self._is_escape_cut and piece:
            self._is_escape_cut = False
            self._is_wide |= piece.startswith(b"u")
            piece = piece[1:]
        if b"\\" in piece:
            self._is_wide |= b"\\u" in piece
            # The first backslash of a run is not escaped, so pairs are counted from the left.
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
            self._is_escape_cut = piece.endswith(b"\\")
        parts = piece.split(b'"')
        outside = b"".join(parts[self._is_in_string :: 2])
        self._is_in_string ^= len(parts) % 2 == 0
        return outside

    @property
    def is_too_complex(self) -> bool:
        return self.values > MAX_VALUES or self.members > MAX_MEMBERS

    @property
    def objects_bytes(self) -> int:
        """An upper bound of the memory that the parsed value takes, besides the JSON."""
        text = self.size_bytes * (_WIDEST if self._is_wide else 1)
        return text + _VALUE_BYTES * (self.values + 1) + _MEMBER_BYTES * self.members

    @property
    def parse_s(self) -> float:
        """An estimate of the parser's time."""
        return _BYTE_S * self.size_bytes + _VALUE_S * self.values + _MEMBER_S * self.members

    @property
    def parse_and_key_s(self) -> float:
        """An estimate of the time to parse a request and derive its keys."""
        return self.parse_s + _HASHED_BYTE_S * self.size_bytes


def of(body: bytes | memoryview) -> Structure:
    """The structure of a whole document."""
    return finish(count_in_steps(body))


def count_in_steps(body: bytes | memoryview) -> Steps[Structure]:
    structure = Structure()
    for start in range(0, len(body), STEP_BYTES):
        if start:
            yield
        structure.feed(bytes(body[start : start + STEP_BYTES]))
    return structure


def has_more_containers(body: bytes | memoryview, limit: int) -> bool:
    """Whether a document has more than ``limit`` arrays and objects. Stops as soon as it has."""
    found = 0
    for start in range(0, len(body), _QUICK_STEP_BYTES):
        # Ten times as fast, but also counts brackets inside strings, so it can only rule out an excess.
        codes = np.frombuffer(body[start : start + _QUICK_STEP_BYTES], np.uint8)
        found += int(np.count_nonzero(codes == ord("[")) + np.count_nonzero(codes == ord("{")))
        if found > limit:
            break
    else:
        return False
    structure = Structure()
    for start in range(0, len(body), STEP_BYTES):
        structure.feed(bytes(body[start : start + STEP_BYTES]))
        if structure.containers > limit:
            return True
    return False
