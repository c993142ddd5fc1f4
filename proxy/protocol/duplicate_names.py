"""Objects that have two members of one name (pure).

RFC 8259 §4 leaves open which of the two counts. The parser keeps the last without an error; an upstream may keep the
first.
"""

from typing import Any

from proxy.labels import BypassReason
from proxy.protocol.bypass import Bypass
from proxy.protocol.items import ItemKind

_MAX_DEPTH = 32  # of the JSON. orjson and the upstream's parser have limits too, which are higher
_WITHOUT_MEMBERS = (ItemKind.TEXT, ItemKind.TOKENS)


def forbid_duplicate_names(members: int, fields: dict[str, Any], kind: ItemKind) -> None:
    """Raises `Bypass` if an object in a body has two members of one name, or is nested too deeply.

    ``members`` is the number of members of all objects as they were written. The parsed body, ``fields``, has fewer if
    one was dropped. Its ``input`` has been checked to be of ``kind``.
    """
    parsed = len(fields)
    for name, value in fields.items():
        if name != "input" or kind not in _WITHOUT_MEMBERS:
            parsed += _count_members(value)
    if members != parsed:
        raise Bypass(BypassReason.DUPLICATE_KEY)


def _count_members(value: Any, depth: int = _MAX_DEPTH) -> int:
    """Members of all objects in a value. Raises `Bypass` if it is nested too deeply."""
    if type(value) not in {dict, list}:
        return 0
    if depth == 0:
        raise Bypass(BypassReason.TOO_DEEP)
    if type(value) is dict:
        return len(value) + sum(_count_members(inner, depth - 1) for inner in value.values())
    return sum(_count_members(inner, depth - 1) for inner in value)
