"""Several processes that are one proxy: workers that answer, one that answers the admin port, and their supervisor.

The supervisor forks, waits for signals, and does nothing else: it has no event loop and no threads that a fork could
catch at a bad moment. It holds the sockets, so that connections to a worker that has crashed wait for the next one.
"""

import logging
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

from proxy.admin.aggregate import SUFFIX
from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.http import listeners
from proxy.http.listeners import Listeners, Sockets
from proxy.process.run import has_terminal

_log = logging.getLogger(__name__)

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
REFUSED = 2  # the exit status of a process that can't do what its settings ask for
_ADMIN = "the admin port's process"
_POLL_S = 0.05
_MANY = 4096
_MAX_FOLDER = 70  # characters: the path of a socket has 107, unix(7)
# A worker that lives for less is not replaced at once, but after a pause that doubles up to the longest.
_SHORT_LIFE_S, _FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 0.2, 5.0


class Processes(Protocol):
    """What the processes do, each until its end: they return their exit status.

    ``parent`` is a pipe that ends with the supervisor, and ``on_ready`` is to be called once.
    """

    def work(self, settings: Settings, bound: Listeners, *, parent: int, on_ready: Callable[[], None]) -> int:
        """Answer clients; the admin door is for `administer`."""

    def administer(
        self, settings: Settings, base_url: str, admin: Sockets, *, workers: Path, parent: int,
        on_ready: Callable[[], None],
    ) -> int:  # fmt: skip
        """Answer the admin port, for the workers whose sockets are in a folder."""


@dataclass(slots=True)
class _Child:
    """A process that is to be there, and the one that is."""

    name: str
    run: Callable[[], int]
    pid: int = 0  # 0: none now
    started_s: float = 0.0
    pause_s: float = 0.0
    due_s: float = math.inf  # when it is to be started, if it is not there


class Supervisor:
    def __init__(self, settings: Settings, workers: int, processes: Processes) -> None:
        self._settings = settings
        self._workers = workers
        self._processes = processes
        self._children: list[_Child] = []
        self._sockets: list[Sockets] = []
        self._folder = Path()
        self._ready = (-1, -1)  # a pipe: each process writes a byte once it is ready
        self._ready_count = 0
        self._alive = (-1, -1)  # a pipe: its end is the supervisor's
        self._needed = (-1, -1)  # likewise, and its end says to the admin port's process that all workers have gone
        self._is_let_go = False
        self._is_starting = True
        self._is_stopping = False
        self._status = 0

    def run(self, announce: Callable[[str, str], None]) -> int:
        """Until SIGTERM or SIGINT, then until all have drained; returns the exit status.

        ``announce`` is told base URL and admin URL once all answer. Raises `ConfigError`.
        """
        if not hasattr(signal, "sigtimedwait"):
            raise ConfigError("--workers: this system has not what more than one takes; accepted: 1")
        settings = self._settings
        with ExitStack() as stack:
            data = stack.enter_context(
                listeners.opened(settings.host, settings.port, flag="--port", copies=self._workers)
            )
            (admin,) = stack.enter_context(
                listeners.opened(settings.admin_host, settings.admin_port, flag="--admin-port")
            )
            self._sockets = [*data, admin]
            base_url, admin_url = listeners.url_of(data[0]) + "/v1", listeners.url_of(admin)
            self._folder = Path(stack.enter_context(_private_folder()))
            self._ready, self._alive, self._needed = _pipe(stack), _pipe(stack), _pipe(stack)
            os.set_blocking(self._ready[0], False)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored nobody is told
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            share = _share(settings, self._workers)
            for number, sockets in enumerate(data, 1):
                self._children.append(_Child(f"worker {number}", partial(self._work, share, sockets)))
            self._children.append(_Child(_ADMIN, partial(self._administer, base_url, admin)))
            self._start_all()
            if not self._is_stopping:
                announce(base_url, admin_url)
            while not self._is_stopping or any(child.pid for child in self._children):
                self._wait()
        return self._status

    def _start_all(self) -> None:
        # The first shows whether it can be done, so that the reason why not is said once.
        for children in (self._children[:1], self._children[1:]):
            for child in children:
                child.due_s = time.monotonic()
            wanted = self._ready_count + len(children)
            while self._ready_count < wanted and not self._is_stopping:
                self._wait()
        self._is_starting = False

    # --- the supervisor's side

    def _wait(self) -> None:
        """Do what the next signal asks for, if there is one soon."""
        match signal.sigtimedwait(_SIGNALS, _POLL_S):
            case None:
                pass
            case signal.struct_siginfo(si_signo=signal.SIGCHLD):
                self._reap()
            case signal.struct_siginfo(si_signo=signal.SIGHUP) if self._settings.has_files or not has_terminal():
                self._tell(signal.SIGHUP, but=_ADMIN)
            case _:
                self._stop()
        with suppress(BlockingIOError):
            self._ready_count += len(os.read(self._ready[0], _MANY))
        if not self._is_stopping:
            for child in self._children:
                if not child.pid and child.due_s <= time.monotonic():
                    self._start(child)
        elif not self._is_let_go and not any(child.pid for child in self._children if child.name != _ADMIN):
            # The admin port is the last to go: it tells that the proxy is draining.
            self._is_let_go = True
            _close(self._needed[1])

    def _stop(self) -> None:
        """Let all drain; asked twice, end them."""
        # Two SIGTERMs may reach a busy process as one.
        self._tell(signal.SIGKILL if self._is_stopping else signal.SIGTERM)
        self._is_stopping = True
        for sockets in self._sockets:
            listeners.close(sockets)

    def _tell(self, number: signal.Signals, *, but: str = "") -> None:
        for child in self._children:
            if child.pid and child.name != but:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = ended
                for child in self._children:
                    if child.pid == pid:
                        self._on_ended(child, status)

    def _on_ended(self, child: _Child, status: int) -> None:
        self._socket_of(child.pid).unlink(missing_ok=True)
        child.pid = 0
        code = os.waitstatus_to_exitcode(status)
        if self._is_stopping:
            self._status = self._status or int(code != 0)
            return
        if code == REFUSED and self._is_starting:  # it has said why, and would say it again
            self._status = REFUSED
            self._stop()
            return
        lived_s = time.monotonic() - child.started_s
        if lived_s >= _SHORT_LIFE_S:
            child.pause_s = 0.0
        if code == REFUSED:  # what its settings point to has changed since; the others go on with what they have
            child.pause_s = _LONGEST_PAUSE_S
        child.due_s = time.monotonic() + child.pause_s
        child.pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * child.pause_s))
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        _log.error("%s ended, %s, after %.1f s; another takes its place", child.name, how, lived_s)

    def _start(self, child: _Child) -> None:
        child.started_s = time.monotonic()
        try:
            child.pid = os.fork()
        except OSError as error:
            if self._is_starting:
                raise ConfigError(f"--workers: can't start {child.name}: {error.strerror}") from error
            child.due_s = child.started_s + _LONGEST_PAUSE_S
            _log.error("%s can't be started: %s", child.name, error.strerror)
            return
        if child.pid == 0:
            self._be(child)

    # --- the children's side

    def _be(self, child: _Child) -> NoReturn:
        status = 1
        try:
            for _, end in (self._alive, self._needed):
                _close(end)  # or it would not end with the supervisor's
            # A terminal sends it to all; the supervisor says what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            status = child.run()
        except ConfigError as error:
            _log.error("%s", error)
            status = REFUSED
        except BaseException:  # noqa: BLE001 - it ends here in any case
            _log.exception("%s failed", child.name)
        finally:
            os._exit(status)  # nothing of what the supervisor was about is the child's to clean up

    def _work(self, share: Settings, sockets: Sockets) -> int:
        self._close_all_but(sockets)
        with listeners.opened(f"unix:{self._socket_of(os.getpid())}", 0, flag="") as (admin,):
            bound = Listeners(sockets, admin)
            return self._processes.work(share, bound, parent=self._alive[0], on_ready=self._say_ready)

    def _administer(self, base_url: str, admin: Sockets) -> int:
        self._close_all_but(admin)
        return self._processes.administer(
            self._settings, base_url, admin, workers=self._folder, parent=self._needed[0], on_ready=self._say_ready
        )

    def _say_ready(self) -> None:
        os.write(self._ready[1], b".")

    def _close_all_but(self, own: Sockets) -> None:
        """Where a worker does not accept any more, none of the others must keep the door open."""
        for sockets in self._sockets:
            if sockets is not own:
                listeners.close(sockets)

    def _socket_of(self, pid: int) -> Path:
        return self._folder / f"{pid}{SUFFIX}"


def _private_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        if len(tempfile.gettempdir()) > _MAX_FOLDER:
            raise ConfigError(f"--workers: the path of {tempfile.gettempdir()} is too long for sockets; set TMPDIR")
        return tempfile.TemporaryDirectory(prefix="embedding-proxy-")
    except OSError as error:
        raise ConfigError(f"--workers needs a folder for sockets: {error}; set TMPDIR to one") from error


def _pipe(stack: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        stack.callback(_close, end)
    return ends


def _close(fd: int) -> None:
    """Close it, if that has not been done."""
    with suppress(OSError):
        os.close(fd)


def _share(settings: Settings, workers: int) -> Settings:
    """A worker's share of what is for all of them together."""

    def part(whole: int) -> int:
        return -(-whole // workers)

    return replace(
        settings,
        memory_bytes=part(settings.memory_bytes),
        max_held_bytes=max(settings.max_body_bytes, part(settings.max_held_bytes)),
        max_queued_items=part(settings.max_queued_items),
        upstream_concurrency=part(settings.upstream_concurrency),
    )
