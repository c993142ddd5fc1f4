"""One line a request, for people or for machines.

The standard library's logging would cost a cached answer a tenth of its time. Lines gather here and are written
together, a few times a second; what a crash loses is that.
"""

import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import orjson

FLUSH_S = 0.2
_MAX_LINES = 4096  # by then they are written at once
_MAX_NAME = 128
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class Line(NamedTuple):
    """What is known of a request when it has been answered. Nothing in it is of a body or a credential."""

    request_id: str
    trace_id: str | None
    outcome: str
    status: int
    model: str | None
    items: int
    cached: int
    duration_s: float


Write = Callable[[str], object]


class RequestLog:
    """Lines on their way to ``write``; None: they are not wanted."""

    def __init__(self, write: Write | None, *, is_json: bool, clock: Callable[[], float] = time.time) -> None:
        self._write = write
        self._text = _json if is_json else _console
        self._clock = clock
        self._lines: list[str] = []

    def add(self, line: Line) -> None:
        if self._write is None:
            return
        self._lines.append(self._text(line, self._clock()))
        if len(self._lines) >= _MAX_LINES:
            self.flush()

    def flush(self) -> None:
        if self._lines and self._write is not None:
            lines, self._lines = self._lines, []
            self._write("\n".join(lines) + "\n")


def _json(line: Line, now: float) -> str:
    said: dict[str, object] = {
        "time": _stamp(int(now), "%Y-%m-%dT%H:%M:%S") + f".{int(now % 1 * 1000):03}Z",
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
    if line.trace_id is not None:
        said["trace_id"] = line.trace_id
    return orjson.dumps(said).decode()


def _console(line: Line, now: float) -> str:
    return (
        f"{_stamp(int(now), '%H:%M:%S')} {_how(line.outcome, line.status)} {line.duration_s * 1000:9.2f} ms"
        f" {_what(line.cached, line.items, line.model)}  {line.request_id}"
    )


@lru_cache(maxsize=256)
def _how(outcome: str, status: int) -> str:
    return f"{outcome:<7} {status}"


@lru_cache(maxsize=1024)
def _what(cached: int, items: int, model: str | None) -> str:
    # A model's name is the client's to choose, and a terminal obeys control characters.
    shown = "-" if model is None else ascii(model[:_MAX_NAME])[1:-1]
    return f"{cached:>5}/{items:<5} {shown}"


_stamps: dict[str, tuple[int, str]] = {}


def _stamp(second: int, form: str) -> str:
    """The time of day, made once a second."""
    known = _stamps.get(form)
    if known is None or known[0] != second:
        at = time.localtime(second) if form.startswith("%H") else time.gmtime(second)
        known = _stamps[form] = second, time.strftime(form, at)
    return known[1]


def trace_id(traceparent: str | None) -> str | None:
    """The trace that a request is part of."""
    if traceparent is None:
        return None
    match = _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else None


class RequestIds:
    """A request's id: the client's, where it gave one that can be shown, or a new one."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._count = 0

    def of(self, given: str | None) -> str:
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        self._count += 1
        return f"{self._prefix}-{self._count:x}"
