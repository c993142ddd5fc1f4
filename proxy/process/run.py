"""One process: what it is told by signals, and its life from start to drain."""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from proxy import app
from proxy.admin.aggregate import SUFFIX, Workers
from proxy.admin.port import open_port
from proxy.app import Running
from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.http import listeners
from proxy.http.listeners import Listeners, Sockets
from proxy.http.malformed import HTTP_LOG
from proxy.upstream import demo

_log = logging.getLogger(__name__)

# How long a thread that parses keeps the event loop waiting for the interpreter. Python's default is 5 ms, at each of
# the loop's turns.
_SWITCH_S = 0.0005


async def serve(
    settings: Settings,
    *,
    announce: Callable[[Running], None],
    write_log: Callable[[str], object],
    bound: Listeners | None = None,
    parent: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain: say that it is not ready, go on accepting for ``drain_delay_s`` while
    balancers take note, stop accepting, finish what is under way.

    A worker is given its ``bound``, and ``parent``, a pipe that ends with its supervisor.
    """
    stop = stop_signal(parent)
    sys.setswitchinterval(_SWITCH_S)

    def on_hangup(proxy: Running) -> None:
        if settings.has_files:
            _reload(proxy)
        elif parent is None and has_terminal():
            stop.set()
        else:
            _log.info("SIGHUP: there are no client keys to read again, and no certificates")

    async with app.running(settings, write_log=write_log if settings.logs_requests else None, bound=bound) as proxy:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup, proxy)
        announce(proxy)
        await proxy.cache.probe_store()
        # What lives now lives on: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        await stop.wait()
        proxy.lifecycle.is_draining = True
        _log.info("stopping: not ready from now on, accepting for another %g s", settings.drain_delay_s)
        await asyncio.sleep(settings.drain_delay_s)
    _log.info("stopped")


async def serve_admin(
    settings: Settings,
    base_url: str,
    sockets: Sockets,
    *,
    workers: Path,
    parent: int,
    announce: Callable[[], None],
) -> None:
    """Answer the admin port for all workers, until the pipe ends; SIGTERM says that they are draining."""
    is_draining = False
    stop = end_of(parent)

    def on_signal() -> None:
        nonlocal is_draining
        is_draining = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_signal)
    async with AsyncExitStack() as stack:
        await open_port(
            stack,
            settings,
            base_url,
            sockets,
            Workers(workers).families,
            is_draining=lambda: is_draining,
            is_ready=lambda: not is_draining and any(workers.glob("*" + SUFFIX)),
            now=time.monotonic,
        )
        announce()
        await stop.wait()


def has_terminal() -> bool:
    """Whether SIGHUP means that the terminal has gone."""
    return sys.stdin is not None and sys.stdin.isatty()


def _reload(proxy: Running) -> None:
    """Read the files of keys and certificates again; what can't be used changes nothing."""
    if proxy.client_keys is not None:
        try:
            _log.info("client keys: %d, read again", proxy.client_keys.reload())
        except ConfigError as error:
            _log.error("%s; going on with those there were", error)
    for origin in proxy.origins.all:
        origin.client.outbound.refresh(is_forced=True)


async def serve_demo(host: str, port: int, *, announce: Callable[[str], None]) -> None:
    """Serve the demo upstream on an address of its own, which ``announce`` is told, until SIGTERM or SIGINT."""
    stop = stop_signal()
    async with AsyncExitStack() as stack:
        (sockets,) = stack.enter_context(listeners.opened(host, port, flag="--port"))
        runner = web.AppRunner(demo.make_app(), access_log=None, logger=HTTP_LOG, shutdown_timeout=1.0)
        await listeners.accept(stack, runner, sockets)
        announce(app.base_url_of(sockets))
        await stop.wait()


def stop_signal(parent: int | None = None) -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT. The second ends the process at once: stored entries can't be torn.

    A worker leaves SIGINT and what is urgent to its supervisor, since a signal may come from both that and whoever
    signals the whole group; and it stops when that has gone.
    """
    stop = asyncio.Event() if parent is None else end_of(parent)

    def on_signal() -> None:
        if stop.is_set() and parent is None:
            os._exit(1)
        stop.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, on_signal)
    if parent is None:
        loop.add_signal_handler(signal.SIGINT, on_signal)
    return stop


def end_of(pipe: int) -> asyncio.Event:
    """Set when nobody can write to ``pipe`` any more."""
    end = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_end() -> None:
        loop.remove_reader(pipe)
        end.set()

    loop.add_reader(pipe, on_end)
    return end
