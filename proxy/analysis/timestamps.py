"""When a logged request was made (pure)."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_NAMES = frozenset({
    "ts", "time", "timestamp", "@timestamp", "at", "date", "datetime", "startTime", "start_time", "started_at",
    "request_time", "requested_at", "received_at", "created", "created_at", "createdAt", "logged_at",
})  # fmt: skip
_IN_TEXT = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d{1,6})?(?:Z|[+-]\d\d:?\d\d)?")
# Numbers from 2001 to 2286 in seconds; beyond them, in smaller units.
_UNITS = ((1e9, 1e10, 1.0), (1e12, 1e13, 1e-3), (1e15, 1e16, 1e-6), (1e18, 1e19, 1e-9))


def find(fields: Mapping[str, Any]) -> float | None:
    """The Unix time in a log record, in the first of its fields that has one."""
    for name, value in fields.items():
        if name in _NAMES and (found := parse(value)) is not None:
            return found
    return None


def parse(value: Any) -> float | None:
    """A Unix time in seconds, milliseconds, microseconds or nanoseconds, or ISO 8601. A time without a zone is UTC."""
    if type(value) in {int, float}:
        for low, high, unit in _UNITS:
            if low <= value < high:
                return float(value * unit)
        return None
    if type(value) is not str:
        return None
    text = value.strip()
    if text.replace(".", "", 1).isdigit():
        return parse(float(text)) if len(text) <= 32 else None  # noqa: PLR2004 - longer is no time
    try:
        moment = datetime.fromisoformat(text.replace(",", "."))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def find_in_text(line: bytes) -> float | None:
    """The first time in a line of a text log."""
    match = _IN_TEXT.search(line)
    return None if match is None else parse(match[0].decode())
