"""One process, from its start until it has drained: the proxy or a worker, the admin port of workers, the demo."""

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import uvloop
from aiohttp import web

from proxy import app
from proxy.admin.aggregate import Workers
from proxy.admin.port import open_port
from proxy.app import Running
from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.http import listeners
from proxy.http.listeners import Listeners, Sockets
from proxy.http.malformed import HTTP_LOG
from proxy.process.signals import end_of, has_terminal, stop_signal
from proxy.telemetry import log
from proxy.upstream import demo

_log = logging.getLogger(__name__)

# How long a thread that parses may keep the event loop waiting for the interpreter. With Python's default, the loop
# could wait 5 ms each time it runs.
_SWITCH_INTERVAL_S = 0.0005
# A few dozen misses in flight are more than 700 young objects, Python's default threshold: it would collect a hundred
# times a second and find no garbage. The oldest generation is collected as often as by default.
_GC_THRESHOLDS = (5000, 5, 3)


def run_proxy(
    settings: Settings,
    *,
    announce: Callable[[Running], None],
    bound: Listeners | None = None,
    parent: int | None = None,
) -> int:
    """`serve`, with a log and an event loop; returns the exit status."""
    with log.writing(settings.log_format) as sink:

        def on_serving(proxy: Running) -> None:
            proxy.metrics.watch_log(lambda: sink.lost_lines)
            announce(proxy)

        run_loop(serve(settings, announce=on_serving, write_log=sink.write, bound=bound, parent=parent))
    return 0


def run_admin(
    settings: Settings, base_url: str, sockets: Sockets, *, workers: Workers, parent: int, announce: Callable[[], None]
) -> int:
    """`serve_admin`, with a log and an event loop; returns the exit status."""
    with log.writing(settings.log_format):
        run_loop(serve_admin(settings, base_url, sockets, workers=workers, parent=parent, announce=announce))
    return 0


def run_loop(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


async def serve(
    settings: Settings,
    *,
    announce: Callable[[Running], None],
    write_log: Callable[[str], object],
    bound: Listeners | None = None,
    parent: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain: report not ready, keep accepting for ``drain_delay_s`` while load
    balancers notice, stop accepting, finish in-flight requests.

    A worker gets its ``bound`` sockets, and ``parent``, a pipe that ends with its supervisor.
    """
    stop = stop_signal(parent)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)

    def on_hangup(proxy: Running) -> None:
        if settings.has_files:
            _reload(proxy)
        elif parent is None and has_terminal():
            stop.set()
        else:
            _log.info("SIGHUP: no client keys or certificates to reload")

    async with app.running(settings, write_log=write_log if settings.logs_requests else None, bound=bound) as proxy:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup, proxy)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # `proxy.__main__` and the supervisor block it
        announce(proxy)
        await proxy.cache.probe_store()
        # Objects alive now stay alive, so the collector need not scan them again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        await stop.wait()
        proxy.lifecycle.is_draining = True
        _log.info("stopping: not ready, accepting for another %g s", settings.drain_delay_s)
        await asyncio.sleep(settings.drain_delay_s)
    _log.info("stopped")


def _reload(proxy: Running) -> None:
    """Read the files of keys and certificates again. A file that can't be used changes nothing."""
    if proxy.client_keys is not None:
        try:
            count = proxy.client_keys.reload()
            if count:
                _log.info("client keys: reloaded %d", count)
            else:
                _log.warning("client keys: the file has none; every client gets 401")
        except ConfigError as error:
            _log.error("%s; keeping the previous keys", error)
    for origin in proxy.origins.all:
        origin.client.outbound.refresh(is_forced=True)


async def serve_admin(
    settings: Settings,
    base_url: str,
    sockets: Sockets,
    *,
    workers: Workers,
    parent: int,
    announce: Callable[[], None],
) -> None:
    """Serve the admin port for all ``workers`` until the pipe ``parent`` ends. SIGTERM means that the workers are
    draining."""
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
            workers.families,
            recent=workers.recent_requests,
            is_draining=lambda: is_draining,
            is_ready=lambda: not is_draining and workers.are_there,
            now=time.monotonic,
        )
        announce()
        await stop.wait()


async def serve_demo(host: str, port: int, *, announce: Callable[[str], None]) -> None:
    """Serve the demo upstream until SIGTERM or SIGINT. ``announce`` gets its URL."""
    stop = stop_signal()
    async with AsyncExitStack() as stack:
        (sockets,) = stack.enter_context(listeners.opened(host, port, flag="--port"))
        runner = web.AppRunner(demo.make_app(), access_log=None, logger=HTTP_LOG, shutdown_timeout=1.0)
        await listeners.accept(stack, runner, sockets)
        announce(app.base_url_of(sockets))
        await stop.wait()
