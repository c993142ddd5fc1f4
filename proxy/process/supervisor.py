"""One proxy of several processes: workers, a process for the admin port, and their supervisor.

The supervisor forks, waits for signals, and does nothing else: it has no event loop, and no threads that a fork could
interrupt at a bad moment. It keeps the sockets open, so that connections to a crashed worker wait for the next one. A
worker that can't start again gets no connections meanwhile.
"""

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from proxy.admin.aggregate import SUFFIX, Workers
from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.http import listeners
from proxy.http.listeners import Listeners, Sockets
from proxy.process import run
from proxy.process.child import LONGEST_PAUSE_S, REFUSED, Child
from proxy.process.shared_count import SharedCount
from proxy.process.signals import has_terminal

_log = logging.getLogger(__name__)

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
_ADMIN = "the admin port's process"
_POLL_S = 0.05
_MAX_READY_BYTES = 4096
_MAX_FOLDER = 70  # characters: the path of a socket has 107, unix(7)


class Supervisor:
    def __init__(self, settings: Settings, workers: int) -> None:
        self._settings = settings
        self._workers = workers
        self._children: list[Child] = []
        self._sockets: list[Sockets] = []
        self._folder = Path()
        self._ready = (-1, -1)  # a pipe: each process writes a byte once it is ready
        self._ready_count = 0
        self._alive = (-1, -1)  # a pipe that ends with the supervisor
        self._needed = (-1, -1)  # for the admin port: a pipe that ends after the last worker, or with the supervisor
        self._ended = SharedCount()  # workers that have ended
        self._is_admin_released = False
        self._is_starting = True
        self._is_stopping = False
        self._status = 0

    def run(self, announce: Callable[[str, str], None]) -> int:
        """Run until SIGTERM or SIGINT, then until all processes have drained; returns the exit status.

        ``announce`` gets the base URL and the admin URL once all processes are ready. Raises `ConfigError`.
        """
        if not hasattr(signal, "sigtimedwait"):
            raise ConfigError("--workers: this system does not support more than one worker; accepted: 1")
        with ExitStack() as stack:
            base_url, admin_url = self._open(stack)
            self._start_all()
            if not self._is_stopping:
                announce(base_url, admin_url)
            while not self._is_stopping or any(child.pid for child in self._children):
                self._wait()
        return self._status

    def _open(self, stack: ExitStack) -> tuple[str, str]:
        """Open sockets, pipes and folder, block the signals, and prepare the children; returns both URLs."""
        settings = self._settings
        data = stack.enter_context(listeners.opened(settings.host, settings.port, flag="--port", copies=self._workers))
        (admin,) = stack.enter_context(listeners.opened(settings.admin_host, settings.admin_port, flag="--admin-port"))
        self._sockets = [*data, admin]
        base_url, admin_url = listeners.url_of(data[0]) + "/v1", listeners.url_of(admin)
        self._folder = Path(stack.enter_context(_private_folder()))
        self._ready, self._alive, self._needed = _pipe(stack), _pipe(stack), _pipe(stack)
        os.set_blocking(self._ready[0], False)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, no child's end would be reported
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        worker_settings = _worker_settings(settings, self._workers)
        for number, sockets in enumerate(data, 1):
            work = partial(self._work, worker_settings, sockets)
            self._children.append(Child(f"worker {number}", work, partial(listeners.refuse, sockets)))
        administer = partial(self._administer, base_url, admin)
        self._children.append(Child(_ADMIN, administer, partial(listeners.refuse, admin)))
        return base_url, admin_url

    def _start_all(self) -> None:
        # The first one shows whether the settings work, so that an error is reported once.
        for children in (self._children[:1], self._children[1:]):
            for child in children:
                child.due_s = time.monotonic()
            expected = self._ready_count + len(children)
            while self._ready_count < expected and not self._is_stopping:
                self._wait()
        self._is_starting = False

    # --- in the supervisor

    def _wait(self) -> None:
        """Handle the next signal, if one comes soon, and start the children that are due."""
        match signal.sigtimedwait(_SIGNALS, _POLL_S):
            case None:
                pass
            case signal.struct_siginfo(si_signo=signal.SIGCHLD):
                self._reap()
            case signal.struct_siginfo(si_signo=signal.SIGHUP) if self._settings.has_files or not has_terminal():
                self._signal_all(signal.SIGHUP, except_for=_ADMIN)
            case _:
                self._stop()
        with suppress(BlockingIOError):
            self._ready_count += len(os.read(self._ready[0], _MAX_READY_BYTES))
        if not self._is_stopping:
            for child in self._children:
                if child.is_due(time.monotonic()):
                    self._start(child)
        elif not self._is_admin_released and not any(child.pid for child in self._children if child.name != _ADMIN):
            # The admin port is the last to close: it reports that the proxy is draining.
            self._is_admin_released = True
            _close(self._needed[1])

    def _stop(self) -> None:
        """The first time, let all processes drain; the second time, kill them."""
        # A process may receive two SIGTERMs as one, so the second is a SIGKILL.
        self._signal_all(signal.SIGKILL if self._is_stopping else signal.SIGTERM)
        self._is_stopping = True
        for sockets in self._sockets:
            listeners.close(sockets)

    def _signal_all(self, number: signal.Signals, *, except_for: str = "") -> None:
        for child in self._children:
            if child.pid and child.name != except_for:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = ended
                for child in self._children:
                    if child.pid == pid:
                        self._on_ended(child, os.waitstatus_to_exitcode(status))

    def _on_ended(self, child: Child, code: int) -> None:
        self._socket_of(child.pid).unlink(missing_ok=True)
        child.pid = 0
        if self._is_stopping:
            self._status = self._status or int(code != 0)
            return
        if code == REFUSED and self._is_starting:  # it has reported why, and would report it again
            self._status = REFUSED
            self._stop()
            return
        if child.name != _ADMIN and code != REFUSED:  # that one had not started
            self._ended.add_one()
        now_s = time.monotonic()
        child.schedule_restart(code, now_s)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        _log.error("%s ended, %s, after %.1f s; restarting it", child.name, how, now_s - child.started_s)

    def _start(self, child: Child) -> None:
        child.started_s = time.monotonic()
        try:
            child.pid = os.fork()
        except OSError as error:
            if self._is_starting:
                raise ConfigError(f"--workers: can't start {child.name}: {error.strerror}") from error
            child.due_s = child.started_s + LONGEST_PAUSE_S
            _log.error("can't start %s: %s", child.name, error.strerror)
            return
        if child.pid == 0:
            self._become(child)

    # --- in the children

    def _become(self, child: Child) -> NoReturn:
        status = 1
        try:
            for _, end in (self._alive, self._needed):
                _close(end)  # only the supervisor may have this end, or the pipe would not end with it
            # A terminal sends SIGINT to all processes; the supervisor decides what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # A reload waits until a worker handles it; the process of the admin port never does.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS - {signal.SIGHUP})
            status = child.run()
        except ConfigError as error:
            _log.error("%s", error)
            status = REFUSED
        except BaseException:  # noqa: BLE001 - the process exits in any case
            _log.exception("%s failed", child.name)
        finally:
            os._exit(status)  # without the supervisor's clean-up

    def _work(self, settings: Settings, sockets: Sockets) -> int:
        self._close_all_but(sockets)
        with listeners.opened(f"unix:{self._socket_of(os.getpid())}", 0, flag="") as (admin,):
            bound = Listeners(sockets, admin)
            try:
                return run.run_proxy(
                    settings, announce=lambda _: self._report_ready(), bound=bound, parent=self._alive[0]
                )
            except ConfigError as error:
                sys.stderr.write(f"embedding-proxy: {error}\n")
                return REFUSED

    def _administer(self, base_url: str, admin: Sockets) -> int:
        self._close_all_but(admin)
        return run.run_admin(
            self._settings,
            base_url,
            admin,
            workers=Workers(self._folder, configured=self._workers, ended=self._ended.value),
            parent=self._needed[0],
            announce=self._report_ready,
        )

    def _report_ready(self) -> None:
        os.write(self._ready[1], b".")

    def _close_all_but(self, own: Sockets) -> None:
        """Close the sockets of others: once a worker stops accepting, no other process may keep its socket open."""
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
    """Close it, if it is still open."""
    with suppress(OSError):
        os.close(fd)


def _worker_settings(settings: Settings, workers: int) -> Settings:
    """The settings of one worker: its part of the limits that apply to all workers combined."""

    def part(whole: int) -> int:
        return -(-whole // workers)

    return replace(
        settings,
        memory_bytes=part(settings.memory_bytes),
        max_held_bytes=max(settings.max_body_bytes, part(settings.max_held_bytes)),
        max_queued_items=part(settings.max_queued_items),
        upstream_concurrency=part(settings.upstream_concurrency),
    )
