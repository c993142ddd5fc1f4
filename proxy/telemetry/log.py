"""The log: its two forms, and its way to standard error, which a thread of its own writes.

A terminal that is paused, a pipe nobody reads and a log driver that hangs make a write wait for ever. That must cost
lines, not answers.
"""

import logging
import os
import queue
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_log = logging.getLogger(__name__)

_STANDARD_ERROR = 2
_MAX_BYTES = 4 * 1024 * 1024
# How long the end of the process waits for whoever reads its log.
_LAST_WORDS_S = 1.0


class LogSink:
    """A text stream as `logging` wants one, whose `write` never waits.

    What does not fit into ``max_bytes`` waiting for the reader is dropped; once it reads again ``on_dropped`` is told,
    by the writing thread, how many lines were.
    """

    def __init__(
        self, fd: int, *, on_dropped: Callable[[int], object] = lambda _: None, max_bytes: int = _MAX_BYTES
    ) -> None:
        self._fd = fd
        self._on_dropped = on_dropped
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held_bytes = 0
        self._dropped_lines = 0
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # A daemon, or a reader that does not read would keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._held_bytes + len(data) > self._max_bytes:
                self._dropped_lines += data.count(b"\n")
                return len(text)
            self._held_bytes += len(data)
        self._queue.put(data)
        return len(text)

    def flush(self) -> None:
        """For `logging`, which flushes after each line; to wait here is what this class is there to avoid."""

    def close(self, *, timeout_s: float) -> None:
        """Write what waits, for as long as ``timeout_s``; what is written from now on is lost."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (data := self._queue.get()) is not None:
            self._write(data)
            with self._lock:
                self._held_bytes -= len(data)
                dropped, self._dropped_lines = self._dropped_lines, 0
            if dropped:
                self._on_dropped(dropped)

    def _write(self, data: bytes) -> None:
        # Not through sys.stderr: a thread that holds its lock when the interpreter ends aborts the process.
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # another program has made our terminal non-blocking
                with suppress(OSError):
                    select.select([], [self._fd], [])
            except OSError:  # nobody is there to read, nor ever will be
                return


@contextmanager
def writing(form: str) -> Iterator[LogSink]:
    """Everybody's log goes to standard error, as ``console`` or ``json``, for as long as the block lasts."""
    sink = LogSink(_STANDARD_ERROR, on_dropped=lambda lines: _log.warning("%d lines of log were dropped", lines))
    with _handling(form, sink):
        try:
            yield sink
        finally:
            sink.close(timeout_s=_LAST_WORDS_S)


@contextmanager
def logging_without_thread(form: str) -> Iterator[None]:
    """The same without a thread, for a process that forks; a line that the reader has no room for is lost."""
    with _handling(form, _Immediate()):
        yield


@contextmanager
def _handling(form: str, stream: "SupportsWrite[str]") -> Iterator[None]:
    handler = logging.StreamHandler(stream)
    console = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.setFormatter(JSONFormatter() if form == "json" else console)
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = before


class _Immediate:
    def write(self, text: str) -> int:
        # What can be written to has room for a line (PIPE_BUF, pipe(7)).
        if select.select([], [_STANDARD_ERROR], [], 0)[1]:
            with suppress(OSError):
                os.write(_STANDARD_ERROR, text.encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """There is nothing that waits."""


class JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            # As the lines of requests have it.
            "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()
