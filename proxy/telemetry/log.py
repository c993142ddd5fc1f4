"""The log: its two formats, and the thread that writes it to standard error.

A paused terminal, a pipe without a reader or a log driver that hangs can block a write forever. That must cost log
lines, not responses.
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
# How long the process waits at its end until the rest of its log is written.
_CLOSE_S = 1.0


class LogSink:
    """A text stream for `logging` whose `write` never blocks.

    It buffers up to ``max_bytes`` and drops lines beyond that, and lines that it can't write, as on a full disk. When
    it can write again, the writing thread calls ``on_dropped`` with the number of dropped lines.
    """

    def __init__(
        self, fd: int, *, on_dropped: Callable[[int], object] = lambda _: None, max_bytes: int = _MAX_BYTES
    ) -> None:
        self._fd = fd
        self._on_dropped = on_dropped
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._buffered_bytes = 0
        self._dropped_lines = 0  # and not reported yet
        self.lost_lines = 0  # in all
        self._is_torn = False  # the last line was written in part; used by the thread only
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # A daemon thread, because a reader that does not read must not keep the process from exiting.
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._buffered_bytes + len(data) > self._max_bytes:
                self._drop(data)
                return len(text)
            self._buffered_bytes += len(data)
        self._queue.put(data)
        return len(text)

    def flush(self) -> None:
        """Does nothing. `logging` flushes after each line, and this stream must not block."""

    def close(self, *, timeout_s: float) -> None:
        """Write the buffered lines, for at most ``timeout_s``. Lines written after this call are lost."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (data := self._queue.get()) is not None:
            text = b"\n" + data if self._is_torn else data
            rest = self._write(text)
            if written := text.removesuffix(rest):
                self._is_torn = rest != b"" and not written.endswith(b"\n")
            with self._lock:
                self._buffered_bytes -= len(data)
                if rest:
                    self._drop(rest[-len(data) :])
                    continue  # a report could not be written either
                dropped, self._dropped_lines = self._dropped_lines, 0
            if dropped:
                self._on_dropped(dropped)

    def _drop(self, data: bytes) -> None:
        """Count lines that are lost. The lock is held."""
        lines = data.count(b"\n")
        self._dropped_lines += lines
        self.lost_lines += lines

    def _write(self, data: bytes) -> bytes:
        """Write as much as possible; returns the rest."""
        # Not through sys.stderr: if this thread held its lock when the interpreter exits, the process would abort.
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # another program made the terminal non-blocking
                with suppress(OSError):
                    select.select([], [self._fd], [])
            except OSError:  # the reader has gone for good, or the disk is full
                break
        return bytes(rest)


@contextmanager
def writing(log_format: str) -> Iterator[LogSink]:
    """Send the root logger to standard error, as ``console`` or ``json``, for as long as the block lasts."""
    sink = LogSink(_STANDARD_ERROR, on_dropped=lambda lines: _log.warning("%d log lines were dropped", lines))
    with _handling(log_format, sink):
        try:
            yield sink
        finally:
            sink.close(timeout_s=_CLOSE_S)


@contextmanager
def logging_without_thread(log_format: str) -> Iterator[None]:
    """The same without a thread, for a process that forks. A line that would block is dropped."""
    with _handling(log_format, _UnbufferedStderr()):
        yield


@contextmanager
def _handling(log_format: str, stream: "SupportsWrite[str]") -> Iterator[None]:
    handler = logging.StreamHandler(stream)
    console = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.setFormatter(JSONFormatter() if log_format == "json" else console)
    root = logging.getLogger()
    previous = root.handlers[:]
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = previous


class _UnbufferedStderr:
    def write(self, text: str) -> int:
        # A pipe that is ready for writing has room for a line (PIPE_BUF, pipe(7)).
        if select.select([], [_STANDARD_ERROR], [], 0)[1]:
            with suppress(OSError):
                os.write(_STANDARD_ERROR, text.encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Does nothing: there is no buffer."""


class JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            # The same format as in the access log.
            "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()
