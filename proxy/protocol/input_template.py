"""Bodies that differ only in the texts of their ``input`` (pure)."""

import re
from itertools import pairwise
from typing import Any

import orjson

from proxy.protocol import json_extents

_NAME = b'"input"'
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
# Of a body that a template is made of: its values, and its size without the input.
_MAX_VALUES, _MAX_BYTES = 64, 2048


class InputTemplate:
    """A valid body with its ``input`` cut out, as a pattern for others.

    If a JSON string or an array of strings is put in its place, the result is valid JSON, and has the same other
    members. So the members need not be parsed, or compared for duplicate names, again.
    """

    __slots__ = ("_after", "_before", "_size_bytes")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after
        self._size_bytes = len(before) + len(after)

    @classmethod
    def of(cls, body: bytes, fields: dict[str, Any]) -> "InputTemplate | None":
        """The template of a valid ``body`` without duplicate names, which was parsed as ``fields``. None if it is large
        without its ``input``, or if it is not easy to see where the ``input`` is."""
        try:
            starts, ends = json_extents.inside(body, limit=_MAX_VALUES)
        except json_extents.TooMany:
            return None
        extents = [(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        for (start, end), (value_start, value_end) in pairwise(extents):
            if body[start:end] == _NAME and _COLON.fullmatch(body, end, value_start):
                template = cls(body[:value_start], body[value_end:])
                return template if template._size_bytes <= _MAX_BYTES and template._has_members_of(fields) else None
        return None

    def _has_members_of(self, fields: dict[str, Any]) -> bool:
        return bool(orjson.loads(self._before + b"[]" + self._after) == {**fields, "input": []})

    def texts(self, body: bytes) -> list[str] | str | None:
        """The ``input`` of a body of this template: a text or a list of texts, none of them empty. None if it is
        anything else, or the body is not of this template, or not valid."""
        if not (body.startswith(self._before) and body.endswith(self._after)) or len(body) <= self._size_bytes:
            return None
        try:
            given = orjson.loads(body[len(self._before) : len(body) - len(self._after)])
        except orjson.JSONDecodeError:
            return None
        if type(given) is str:
            return given or None
        if type(given) is list and set(map(type, given)) == {str} and "" not in given:
            return given
        return None
