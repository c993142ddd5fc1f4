"""The access log: one line per request, as text or JSON.

`logging` would add a tenth to the time of a cached response. Lines are buffered here and written together, a few times
a second; a crash loses the buffered lines.
"""

import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import orjson

from proxy.labels import RequestOutcome
from proxy.ledger.cause import Why

FLUSH_S = 0.2
_MAX_LINES = 4096  # buffered lines; with this many they are written at once
_MAX_NAME = 128
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class AccessLogLine(NamedTuple):
    """A request whose response has ended. Nothing here comes from a credential, or from a body except the names of the
    model and of a field."""

    request_id: str
    trace_id: str | None
    outcome: RequestOutcome
    status: int
    model: str | None
    items: int
    cached: int
    duration_s: float
    held_s: float  # of that, for the upstream's rate limit
    client: str | None  # its label; None: clients are not told apart
    why: Why | None  # of a request that was no hit


Write = Callable[[str], object]


class AccessLog:
    """Buffers lines for ``write``; None: there is no access log."""

    def __init__(self, write: Write | None, *, is_json: bool, clock: Callable[[], float] = time.time) -> None:
        self._write = write
        self._format = _json if is_json else _console
        self._clock = clock
        self._lines: list[str] = []

    def add(self, line: AccessLogLine) -> None:
        if self._write is None:
            return
        self._lines.append(self._format(line, self._clock()))
        if len(self._lines) >= _MAX_LINES:
            self.flush()

    def flush(self) -> None:
        if self._lines and self._write is not None:
            lines, self._lines = self._lines, []
            self._write("\n".join(lines) + "\n")


def _json(line: AccessLogLine, now: float) -> str:
    fields: dict[str, object] = {
        "time": _formatted_time(int(now), "%Y-%m-%dT%H:%M:%S") + f".{int(now % 1 * 1000):03}Z",
        "level": "info",
        "logger": "proxy.requests",
        "message": "request",
        "request_id": line.request_id,
        "outcome": line.outcome,
        "status": line.status,
        "model": None if line.model is None else line.model[:_MAX_NAME],
        "items": line.items,
        "cached": line.cached,
        "duration_ms": round(line.duration_s * 1000, 3),
    }
    if line.client is not None:
        fields["client"] = line.client
    if line.why is not None:
        fields |= line.why.fields()
    if line.held_s:
        fields["rate_limit_wait_ms"] = round(line.held_s * 1000, 3)
    if line.trace_id is not None:
        fields["trace_id"] = line.trace_id
    return orjson.dumps(fields).decode()


def _console(line: AccessLogLine, now: float) -> str:
    text = (
        f"{_formatted_time(int(now), '%H:%M:%S')} {_outcome_columns(line.outcome, line.status)}"
        f" {line.duration_s * 1000:9.2f} ms {_item_columns(line.cached, line.items, line.model)}  {line.request_id}"
    )
    if line.client is not None:
        text = f"{text}  {line.client}"
    if line.why is not None and line.why.cause is not None:
        text = f"{text}  {line.why.cause} {line.why.program}".rstrip()
    if line.held_s:
        text = f"{text}  rate limit {line.held_s * 1000:.0f} ms"
    return text


@lru_cache(maxsize=256)
def _outcome_columns(outcome: RequestOutcome, status: int) -> str:
    return f"{outcome:<7} {status}"


@lru_cache(maxsize=1024)
def _item_columns(cached: int, items: int, model: str | None) -> str:
    # Clients choose the model's name, and terminals obey control characters.
    shown = "-" if model is None else ascii(model[:_MAX_NAME])[1:-1]
    return f"{cached:>5}/{items:<5} {shown}"


_formatted_times: dict[str, tuple[int, str]] = {}  # the last second and its text, by format


def _formatted_time(second: int, time_format: str) -> str:
    """Local time for people, UTC for machines. `strftime` runs once a second."""
    last = _formatted_times.get(time_format)
    if last is None or last[0] != second:
        at = time.localtime(second) if time_format.startswith("%H") else time.gmtime(second)
        last = _formatted_times[time_format] = second, time.strftime(time_format, at)
    return last[1]


def trace_id(traceparent: str | None) -> str | None:
    """The trace id in a request's ``traceparent``, None if it is missing or invalid."""
    if traceparent is None:
        return None
    match = _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else None


class RequestIds:
    """A request's id: that of its ``X-Request-Id`` if it is short and printable, or a new one."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._count = 0

    def of(self, given: str | None) -> str:
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        self._count += 1
        return f"{self._prefix}-{self._count:x}"
