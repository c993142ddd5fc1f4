"""Objects that have two members of one name (pure).

RFC 8259 §4 leaves open which of the two counts. The parser keeps the last without an error; an upstream may keep the
first.
"""

import re
from itertools import repeat
from typing import Any

from proxy.labels import BypassReason
from proxy.protocol import json_structure
from proxy.protocol.bypass import Bypass
from proxy.protocol.items import ItemKind

_ESCAPED_COLON = re.compile(rb"\\u003[aA]")
_MAX_DEPTH = 32  # of the JSON. orjson and the upstream's parser have limits too, which are higher


def forbid_duplicate_names(body: bytes, fields: dict[str, Any], kind: ItemKind, items: list[Any]) -> None:
    """Raises `Bypass` if an object in ``body`` has two members of one name. ``fields`` is the parsed body; ``items``
    have been checked to be of ``kind``.

    Each member of an object has one colon, and every other colon is inside a string. If the raw body has as many colons
    as the parsed value accounts for, no member was dropped. The exception is a colon escaped as ``\\u003a``, which
    counts in the parsed value only. If the counts differ, or there is such an escape, colons outside strings are
    counted, which takes longer.
    """
    accounted = len(fields)
    for name, value in fields.items():
        accounted += name.count(":")
        if name != "input" or kind is ItemKind.WHOLE:
            accounted += _count_colons(value)
    if kind is ItemKind.TEXT:
        accounted += sum(map(str.count, items, repeat(":")))
    elif kind is ItemKind.OBJECT:
        accounted += _count_colons(items)
    has_escape = b"\\u003" in body and _ESCAPED_COLON.search(body)  # the first takes a tenth of the time
    is_in_doubt = body.count(b":") != accounted or has_escape
    if is_in_doubt and json_structure.of(body).members != _count_members(fields):
        raise Bypass(BypassReason.DUPLICATE_KEY)


def _count_colons(value: Any, depth: int = _MAX_DEPTH) -> int:
    """Colons that a value has in JSON. Raises `Bypass` if it is nested too deeply."""
    if type(value) is str:
        return value.count(":")
    if type(value) not in {dict, list}:
        return 0
    if depth == 0:
        raise Bypass(BypassReason.TOO_DEEP)
    if type(value) is dict:
        return sum(1 + name.count(":") + _count_colons(inner, depth - 1) for name, inner in value.items())
    return sum(_count_colons(inner, depth - 1) for inner in value)


def _count_members(value: Any, depth: int = _MAX_DEPTH + 1) -> int:
    """Members of all objects in a value. Raises `Bypass` if it is nested too deeply."""
    if type(value) not in {dict, list}:
        return 0
    if depth == 0:
        raise Bypass(BypassReason.TOO_DEEP)
    if type(value) is dict:
        return len(value) + sum(_count_members(inner, depth - 1) for inner in value.values())
    return sum(_count_members(inner, depth - 1) for inner in value)
