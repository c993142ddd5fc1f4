"""Large JSON, parsed part by part (pure).

orjson holds the interpreter lock from the first byte to the last, in whatever thread it runs. So a large document is
first cut into its members and elements, which makes no objects of them, and these are parsed one by one.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson

from proxy.protocol import extents, json_structure
from proxy.protocol.extents import TooMany

LARGE_BYTES = 1024 * 1024
_MAX_PART_S = 0.05
# Strings of an object that are cut out of it, too: a shorter one may be the name of a member.
_LONG_BYTES = 64 * 1024
_ARRAY_OF = re.compile(rb"\[[ \t\r\n]*[\[{\"]")

Raw = memoryview  # JSON, of which only its extent is certain: it may still turn out to be none


class JSONParseError(ValueError):
    """``reason``: not-json, not-an-object, too-complex, too-many-items."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def members(body: bytes) -> dict[str, Any]:
    """The members of an object; of equal names the last. Arrays, objects and long strings are `Raw`.

    Raises `JSONParseError`.
    """
    try:
        given = _cut(memoryview(body), limit=json_structure.MAX_MEMBERS, min_string_bytes=_LONG_BYTES)
    except TooMany:
        raise JSONParseError("too-complex") from None
    if type(given.outline) is not dict:
        raise JSONParseError("not-an-object")
    return {name: given.whole(member) for name, member in given.outline.items()}


def elements(array: Any, *, max_elements: int) -> Iterator[Any] | None:
    """The elements of an array that begins with a string, array or object, each parsed when its turn comes; None for
    any other value. Raises `JSONParseError`, also while they are parsed.
    """
    if type(array) is not Raw or not _ARRAY_OF.match(array):
        return None
    try:
        given = _cut(array, limit=max_elements)
    except TooMany:
        raise JSONParseError("too-many-items") from None
    if len(given.outline) > max_elements:
        raise JSONParseError("too-many-items")
    return (value(given.whole(element)) for element in given.outline)


def value(part: Any) -> Any:
    """Parse a part, if it is `Raw`. Raises `JSONParseError`."""
    if type(part) is not Raw:
        return part
    if len(part) > LARGE_BYTES and json_structure.of(part).parse_s > _MAX_PART_S:
        raise JSONParseError("too-complex")
    try:
        return orjson.loads(part)
    except orjson.JSONDecodeError:
        raise JSONParseError("not-json") from None


class _Cut(NamedTuple):
    """``outline`` is a value in which ``[i]`` stands for the i-th of the ``values`` that were cut out of it."""

    outline: Any
    values: list[Raw]

    def whole(self, member: Any) -> Any:
        return self.values[member[0]] if type(member) is list else member


def _cut(text: Raw, *, limit: int, min_string_bytes: int = 0) -> _Cut:
    """Cut all arrays, objects and long strings out of an array or object. The outline and the values are JSON if, and
    only if, the text is. Raises `JSONParseError`, `TooMany`."""
    starts, ends = extents.inside(text, limit=limit)
    is_short = (ends - starts < min_string_bytes) & (np.frombuffer(text, np.uint8)[starts] == ord('"'))
    values: list[Raw] = []
    left: list[bytes | Raw] = []
    end = 0
    for start, next_end in zip(starts[~is_short].tolist(), ends[~is_short].tolist(), strict=True):
        left += [text[end:start], b"[%d]" % len(values)]
        values.append(text[start:next_end])
        end = next_end
    return _Cut(value(memoryview(b"".join([*left, text[end:]]))), values)
