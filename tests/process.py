"""``embedding-proxy serve`` in a process of its own, as a user runs it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path


class Process:
    def __init__(self, folder: Path, port: int, *arguments: str) -> None:
        command = [sys.executable, "-m", "proxy", "serve", "--port", str(port), "--admin-port", "0", *arguments]
        self.popen = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")},
        )
        assert self.popen.stdout is not None
        self.banner = ""
        for line in self.popen.stdout:
            self.banner += line
            if "Ctrl-C" in line:
                return
        msg = f"it did not start: {self.banner}"
        raise AssertionError(msg)

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

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal and wait for the end: ``(exit status, what it wrote)``."""
        self.popen.send_signal(number)
        rest, _ = self.popen.communicate()
        return self.popen.returncode, rest
