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
_WITHOUT_MEMBERS = (ItemKind.TEXT, ItemKind.TOKENS)
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


def forbid_duplicate_names(members: int, fields: dict[str, Any], kind: ItemKind) -> None:
    """Raises `Bypass` if an object in a body has two members of one name, or is nested too deeply.

    RFC 8259 §4 leaves open which of the two counts. The parser keeps the last without an error; an upstream may keep
    the first. ``members`` is the number of members of all objects as they were written. The parsed body, ``fields``,
    has fewer if one was dropped. Its ``input`` has been checked to be of ``kind``.
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
