"""Processes that log to a file, among them ``embedding-proxy serve`` as a user runs it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_SILENCE_S = 60.0
_POLL_S = 0.01


class LoggedProcess:
    """What it writes goes to a file in ``folder``: in a pipe that nobody reads it would wait once that is full."""

    def __init__(
        self, folder: Path, command: Sequence[str], *, until: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it, with ``environment`` on top of this process's, and read its banner: the lines up to the one that
        has ``until`` in it.

        Raises:
            AssertionError: it ended, or was silent for a minute, before that line.
        """
        with tempfile.NamedTemporaryFile(dir=folder, prefix="process-", suffix=".log", delete=False) as log:
            self.popen = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), **(environment or {})},
            )
        self._log = Path(log.name)
        self._read_bytes = 0
        self.banner = ""
        while until not in self.banner:
            line = self.readline()
            self.banner += line
            assert line, f"it did not start: {self.banner}"

    def readline(self) -> str:
        """Its next line, once it is there; none if it has ended."""
        deadline = time.monotonic() + _SILENCE_S
        while time.monotonic() < deadline:
            has_ended = self.popen.poll() is not None  # asked first: then all it wrote is there
            line = self._unread().splitlines(keepends=True)[:1]
            if has_ended or (line and line[0].endswith(b"\n")):
                self._read_bytes += sum(map(len, line))
                return b"".join(line).decode()
            time.sleep(_POLL_S)  # a process outside has no event to wait for
        self.popen.kill()
        self.popen.wait()
        msg = f"it said nothing for {_SILENCE_S:g} s; before: {self.banner}"
        raise AssertionError(msg)

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal and wait for the end: ``(exit status, what it wrote)``."""
        self.popen.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """``(exit status, what it wrote)`` and was not read yet."""
        status = self.popen.wait()
        return status, self._unread().decode()

    def _unread(self) -> bytes:
        with self._log.open("rb") as log:
            log.seek(self._read_bytes)
            return log.read()


PROGRAM = (sys.executable, "-m", "proxy")


class Process(LoggedProcess):
    def __init__(self, folder: Path, port: int, *arguments: str, program: Sequence[str] = PROGRAM) -> None:
        command = [*program, "serve", "--port", str(port), "--admin-port", "0", *arguments]
        super().__init__(folder, command, until="Ctrl-C")

    @property
    def base_url(self) -> str:
        return self._shown(r"base_url +(\S+)")

    @property
    def admin_url(self) -> str:
        return self._shown(r"metrics +(\S+)/metrics")

    def _shown(self, pattern: str) -> str:
        match = re.search(pattern, self.banner)
        assert match is not None
        return match[1]
