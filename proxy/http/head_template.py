"""Request heads that differ only in Content-Length and in the IDs of one request (pure).

Clients send the same header fields with every request, except these. If the parser has accepted one such head, it would
read all others in the same way: the bytes between the values are the same, and no value has a character that could end
it earlier or later.
"""

import re
from typing import NamedTuple, Self

_LENGTH = "content-length"
# Values that aiohttp passes on unchanged. The first is decimal without leading zeros (RFC 9110 §8.6).
_VALUES = {
    _LENGTH: re.compile(rb"(?:0|[1-9][0-9]{0,6})(?=\r\n)"),
    "x-request-id": re.compile(rb"[!-~]{1,128}(?=\r\n)"),
    "traceparent": re.compile(rb"[!-~]{1,128}(?=\r\n)"),  # https://www.w3.org/TR/trace-context/
    "tracestate": re.compile(rb"[!-~](?:[ -~]{0,510}[!-~])?(?=\r\n)"),
}
_FIELD = re.compile(rb"\r\n(%s): " % "|".join(_VALUES).encode(), re.IGNORECASE)


class Head(NamedTuple):
    """A head that fits a template. ``fields`` are those that differ, without the length; names are in lower case."""

    size_bytes: int
    body_bytes: int
    fields: dict[str, str]


class HeadTemplate:
    """One head that the parser has accepted, as a pattern for others."""

    __slots__ = ("_before", "_holes")

    def __init__(self, before: bytes, holes: list[tuple[str, bytes]]) -> None:
        self._before = before  # the bytes before the first value
        self._holes = holes  # each value's field, and the bytes between this value and the next one

    @classmethod
    def of(cls, head: bytes) -> Self | None:
        """The template of an accepted head, including its empty line. None if it has no Content-Length, or if a field
        that may differ occurs twice or has an unusual value."""
        found = list(_FIELD.finditer(head))
        names = [match[1].decode().lower() for match in found]
        if _LENGTH not in names or len(names) > len(set(names)):
            return None
        values = [_VALUES[name].match(head, match.end()) for name, match in zip(names, found, strict=True)]
        ends = [value.end() for value in values if value is not None]
        if len(ends) < len(names):
            return None
        begins = [match.end() for match in found]
        between = [head[end:begin] for end, begin in zip(ends, [*begins[1:], len(head)], strict=True)]
        return cls(head[: begins[0]], list(zip(names, between, strict=True)))

    def match(self, sent: bytes) -> Head | None:
        """The head that ``sent`` begins with; None if that is not of this template."""
        if not sent.startswith(self._before):
            return None
        at, body_bytes, fields = len(self._before), 0, {}
        for name, after in self._holes:
            value = _VALUES[name].match(sent, at)
            if value is None or not sent.startswith(after, value.end()):
                return None
            at = value.end() + len(after)
            if name == _LENGTH:
                body_bytes = int(value[0])
            else:
                fields[name] = value[0].decode()
        return Head(at, body_bytes, fields)
