"""Large JSON, parsed part by part (pure).

orjson holds the interpreter lock from the first byte to the last, in whatever thread it runs. So a large document is
first cut into its members and elements, which makes no objects of them, and these are parsed one by one.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson

from proxy.protocol import json_structure

LARGE_BYTES = 1024 * 1024
_MAX_PART_S = 0.05
_CONTAINERS_OF_AN_OBJECT = 8  # of text and images, or of an embedding
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])
_ARRAY_OF = re.compile(rb"\[[ \t\r\n]*([\[{\"])")

Raw = msgspec.Raw  # JSON, of which only its extent is certain: it may still turn out to be none


class JSONParseError(ValueError):
    """``reason``: not-json, not-an-object, too-complex, too-many-items."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def members(body: bytes) -> dict[str, Raw]:
    """The members of an object; of equal names the last. Raises `JSONParseError`."""
    try:
        return _MEMBERS.decode(body)
    except msgspec.ValidationError:
        raise JSONParseError("not-an-object") from None
    except (msgspec.DecodeError, RecursionError):
        raise JSONParseError("not-json") from None


def elements(array: Raw, *, max_elements: int) -> Iterator[Any] | None:
    """The elements of an array of strings, arrays or objects, each parsed when its turn comes; None for any other
    value. Raises `JSONParseError`, also while they are parsed.

    ``max_elements`` is for what costs memory here: more of them are refused for certain only if they are strings, or
    arrays of numbers.
    """
    view = memoryview(array)
    match = _ARRAY_OF.match(view)
    if match is None:
        return None
    if match[1] == b'"':
        is_too_long = json_structure.of(view).values > max_elements  # each but the first has a comma before it
    else:
        containers = max_elements * (_CONTAINERS_OF_AN_OBJECT if match[1] == b"{" else 1)
        is_too_long = json_structure.has_more_containers(view, containers + 1)
    if is_too_long:
        raise JSONParseError("too-many-items")
    return map(value, _ELEMENTS.decode(array))


def value(part: Raw) -> Any:
    """Parse a part. Raises `JSONParseError`."""
    view = memoryview(part)
    if len(view) > LARGE_BYTES and json_structure.of(view).parse_s > _MAX_PART_S:
        raise JSONParseError("too-complex")
    try:
        return orjson.loads(view)
    except orjson.JSONDecodeError:
        raise JSONParseError("not-json") from None
