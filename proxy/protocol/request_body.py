"""The JSON object of an embeddings request, before its fields are interpreted (pure)."""

import json
from collections.abc import Iterator
from typing import Any

import orjson

from proxy.labels import BypassReason
from proxy.protocol import json_parts
from proxy.protocol.bypass import Bypass
from proxy.protocol.items import ItemKind
from proxy.protocol.json_parts import JSONParseError
from proxy.steps import Steps, finish

# Items of one request. More of them would block the event loop for too long, and no provider accepts as many.
MAX_ITEMS = 16_384
_MAX_DEPTH = 32  # of the JSON. orjson and the upstream's parser have limits too, which are higher
_VALUES_A_STEP = 1024  # visited in a tenth of a millisecond
_CONTAINERS = (dict, list)
_WITHOUT_MEMBERS = (ItemKind.TEXT, ItemKind.TOKENS)
# Of a large body's other fields than ``input``. They are counted, keyed and compared as a whole.
_MAX_OTHER_BYTES = 1024 * 1024
_MAX_LENIENT_BYTES = 64 * 1024  # of a body that orjson rejects and that is still searched for its model


def parse_object(body: bytes) -> dict[str, Any]:
    """A request body as JSON. Raises `Bypass`."""
    if len(body) > json_parts.LARGE_BYTES:
        return parse_large_object(body)
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:  # also for invalid UTF-8, lone surrogates and NaN
        raise Bypass(BypassReason.NOT_JSON) from None
    if type(fields) is not dict:
        raise Bypass(BypassReason.NOT_AN_OBJECT)
    return fields


def parse_large_object(body: bytes) -> dict[str, Any]:
    """The same result for a large body, whose items are parsed one by one. Raises `Bypass`."""
    return finish(parse_object_in_steps(body))


def parse_object_in_steps(body: bytes) -> Steps[dict[str, Any]]:
    """`parse_large_object`, item by item."""
    try:
        members = yield from json_parts.members_in_steps(body)
        others = [len(part) for name, part in members.items() if name != "input" and type(part) is json_parts.Raw]
        if sum(others) > _MAX_OTHER_BYTES:
            raise Bypass(BypassReason.TOO_COMPLEX)
        fields: dict[str, Any] = {}
        for name, part in members.items():
            items = None
            if name == "input":
                items = yield from json_parts.elements_in_steps(part, max_elements=MAX_ITEMS)
            if items is None:
                fields[name] = yield from json_parts.value_in_steps(part)
            else:
                fields[name] = yield from _listed(items)
            yield
    except JSONParseError as error:
        raise Bypass(BypassReason(error.reason)) from None
    return fields


def _listed(items: Iterator[Any]) -> Steps[list[Any]]:
    parsed = []
    for item in items:
        parsed.append(item)
        yield
    return parsed


def model_of(fields: dict[str, Any]) -> str | None:
    """The model that a body names."""
    model = fields.get("model")
    return model if type(model) is str else None


def count_items(fields: dict[str, Any]) -> int:
    """The number of items that a body appears to have, whether or not they are valid."""
    given = fields.get("input")
    return len(given) if type(given) is list and given and type(given[0]) is not int else 1


def forbid_many_items(fields: dict[str, Any]) -> None:
    """Raises `Bypass` for a request with more than `MAX_ITEMS` items."""
    if count_items(fields) > MAX_ITEMS:
        raise Bypass(BypassReason.TOO_MANY_ITEMS)


def forbid_duplicate_names(members: int, fields: dict[str, Any], kind: ItemKind) -> Steps[None]:
    """Raises `Bypass` if an object in a body has two members of one name, or is nested too deeply.

    RFC 8259 §4 leaves open which of the two counts. The parser keeps the last without an error; an upstream may keep
    the first. ``members`` is the number of members of all objects as they were written. The parsed body, ``fields``,
    has fewer if one was dropped. Its ``input`` has been checked to be of ``kind``.
    """
    has_members = [value for name, value in fields.items() if name != "input" or kind not in _WITHOUT_MEMBERS]
    parsed = yield from _count_members(has_members)
    if members != len(fields) + parsed:
        raise Bypass(BypassReason.DUPLICATE_KEY)


def _count_members(values: list[Any]) -> Steps[int]:
    """Members of all objects in ``values``. Raises `Bypass` if one is nested too deeply."""
    members, left = 0, _VALUES_A_STEP
    waiting: list[tuple[list[Any], int]] = [([values], _MAX_DEPTH)]
    while waiting:
        containers, depth = waiting.pop()
        for container in containers:
            members += len(container) if type(container) is dict else 0
            given = list(container.values()) if type(container) is dict else container
            for start in range(0, len(given) or 1, _VALUES_A_STEP):
                some = given[start : start + _VALUES_A_STEP]
                inner = [value for value in some if type(value) in _CONTAINERS]
                if inner and not depth:
                    raise Bypass(BypassReason.TOO_DEEP)
                if inner:
                    waiting.append((inner, depth - 1))
                left -= 1 + len(some)
                if left < 0:
                    left = _VALUES_A_STEP
                    yield
    return members


def peek_model(body: bytes) -> str | None:
    """The model that a body names, also where the body is otherwise rejected: it is used only to choose the upstream.

    Therefore JSON that only Python's lenient parser accepts will do.
    """
    try:
        model = json_parts.value(json_parts.members(body)["model"])
    except (JSONParseError, KeyError):
        return _peek_lenient(body) if len(body) <= _MAX_LENIENT_BYTES else None
    return model if type(model) is str else None


def _peek_lenient(body: bytes) -> str | None:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return model_of(fields) if type(fields) is dict else None


def renamed_body(body: bytes, model: str) -> bytes:
    """The body of an accepted request with another name of the same model."""
    return orjson.dumps({**orjson.loads(body), "model": model})
