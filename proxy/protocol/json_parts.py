"""Large JSON, parsed part by part (pure).

orjson holds the interpreter lock during a whole parse, in any thread. Therefore a large document is first split into
its members and elements, without creating objects from them, and these are parsed one by one.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson

from proxy.protocol import json_extents, json_structure
from proxy.protocol.json_extents import TooMany
from proxy.steps import Steps, finish

LARGE_BYTES = 1024 * 1024
_MAX_PART_S = 0.05
# Strings in an object are cut out from this length on. A shorter one may be the name of a member.
_LONG_BYTES = 64 * 1024
_VALUES_A_STEP = 128  # cut out
_ARRAY_OF = re.compile(rb"\[[ \t\r\n]*[\[{\"]")

Raw = memoryview  # the extent of a JSON value, which may still turn out to be invalid


class JSONParseError(ValueError):
    """``reason``: not-json, not-an-object, too-complex, too-many-items."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def members(body: bytes) -> dict[str, Any]:
    """The members of an object; the last one if a name is repeated. Arrays, objects and long strings are `Raw`.

    Raises `JSONParseError`.
    """
    return finish(members_in_steps(body))


def members_in_steps(body: bytes) -> Steps[dict[str, Any]]:
    """`members`, in steps as long as the longest value takes."""
    try:
        cut = yield from _cut(memoryview(body), limit=json_structure.MAX_MEMBERS, min_string_bytes=_LONG_BYTES)
    except TooMany:
        raise JSONParseError("too-complex") from None
    if type(cut.outline) is not dict:
        raise JSONParseError("not-an-object")
    yield from cut.forbid_invalid_leftovers()
    return {name: cut.whole(member) for name, member in cut.outline.items()}


def elements(array: Any, *, max_elements: int) -> Iterator[Any] | None:
    """The elements of an array that begins with a string, array or object, each parsed when the iterator reaches it;
    None for any other value. Raises `JSONParseError`, also during the iteration.
    """
    return finish(elements_in_steps(array, max_elements=max_elements))


def elements_in_steps(array: Any, *, max_elements: int) -> Steps[Iterator[Any] | None]:
    """`elements`, found in short steps."""
    if type(array) is not Raw or not _ARRAY_OF.match(array):
        return None
    try:
        cut = yield from _cut(array, limit=max_elements)
    except TooMany:
        raise JSONParseError("too-many-items") from None
    if len(cut.outline) > max_elements:
        raise JSONParseError("too-many-items")
    return (value(cut.whole(element)) for element in cut.outline)


def value(part: Any) -> Any:
    """Parse a part if it is `Raw`. Raises `JSONParseError`."""
    return finish(value_in_steps(part))


def value_in_steps(part: Any) -> Steps[Any]:
    """`value` in steps. The parsing itself is one step."""
    if type(part) is not Raw:
        return part
    if len(part) > LARGE_BYTES:
        structure = yield from json_structure.count_in_steps(part)
        if structure.parse_s > _MAX_PART_S:
            raise JSONParseError("too-complex")
    try:
        return orjson.loads(part)
    except orjson.JSONDecodeError:
        raise JSONParseError("not-json") from None


class _Cut(NamedTuple):
    """``outline`` is a value in which ``[i]`` replaces the i-th of the ``values`` that were cut out of it."""

    outline: Any
    values: list[Raw]

    def whole(self, member: Any) -> Any:
        return self.values[member[0]] if type(member) is list else member

    def forbid_invalid_leftovers(self) -> Steps[None]:
        """Parse the values that are not in the outline of an object, because a later member has the same name.

        Otherwise nothing parses them, and an invalid document might seem valid. Raises `JSONParseError`.
        """
        kept = {member[0] for member in self.outline.values() if type(member) is list}
        if len(kept) < len(self.values):
            for index, part in enumerate(self.values):
                if index not in kept:
                    yield from value_in_steps(part)
                    yield


def _cut(text: Raw, *, limit: int, min_string_bytes: int = 0) -> Steps[_Cut]:
    """Cut all arrays, objects and long strings out of an array or object. The outline and the values are valid JSON if
    and only if the text is. Raises `JSONParseError`, `TooMany`."""
    starts, ends = yield from json_extents.inside_in_steps(text, limit=limit)
    is_short = (ends - starts < min_string_bytes) & (np.frombuffer(text, np.uint8)[starts] == ord('"'))
    values: list[Raw] = []
    outline: list[bytes | Raw] = []
    end = 0
    for start, next_end in zip(starts[~is_short].tolist(), ends[~is_short].tolist(), strict=True):
        if len(values) % _VALUES_A_STEP == 0:
            yield
        outline += [text[end:start], b"[%d]" % len(values)]
        values.append(text[start:next_end])
        end = next_end
    yield
    rest = memoryview(b"".join([*outline, text[end:]]))
    yield
    return _Cut((yield from value_in_steps(rest)), values)
