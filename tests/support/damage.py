"""SQLite files of the store with single bytes damaged."""

import re
from pathlib import Path

_INTEGER = 6  # the serial type of one of 8 bytes (https://sqlite.org/fileformat2.html#record_format)


def make_key_an_integer(path: Path, key: bytes) -> None:
    """Damage the byte that says of a slot's key that it is a blob. Nothing else of the file shows that, and keys of
    this type are out of order, which SQLite does not notice."""
    content = path.read_bytes()
    # The record's header: its length, the types of key, id and time.
    (header,) = re.finditer(rb"\x04\x4c.." + re.escape(key), content, re.DOTALL)
    position = header.start() + 1
    path.write_bytes(content[:position] + bytes([_INTEGER]) + content[position + 1 :])
