"""A number that one process counts, and its children can read."""

import mmap
import struct

_NUMBER = struct.Struct("=Q")  # aligned, so that no child reads a part of it


class SharedCount:
    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _NUMBER.size)  # shared with processes that are forked later

    def add_one(self) -> None:
        """For one process only."""
        _NUMBER.pack_into(self._memory, 0, self.value() + 1)

    def value(self) -> int:
        (value,) = _NUMBER.unpack_from(self._memory)
        return int(value)
