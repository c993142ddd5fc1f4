"""Two listeners, what is behind them, and their life from start to drain."""

import asyncio
import errno
import gc
import logging
import os
import resource
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import BaseConnector, TCPConnector, UnixConnector, web

from proxy import __version__, demo, openapi
from proxy.auth import Access, Validations
from proxy.batcher import Batcher
from proxy.clientkeys import ClientKeys
from proxy.config import THIS_MACHINE, Settings, StoreSetting, UpstreamSetting
from proxy.connections import SWEEP_S, Handler, Server, require_strict_parser
from proxy.dispatch import Dispatcher
from proxy.embeddings import EmbeddingsRoute
from proxy.errors import ConfigError
from proxy.fetcher import Fetcher
from proxy.metrics import Metrics
from proxy.origins import Alternative, Origin, Origins
from proxy.periodic import every
from proxy.requestlog import FLUSH_S, RequestLog
from proxy.routes import Routes
from proxy.status import STEP_S, About, UpstreamStatus
from proxy.statuspage import StatusPage
from proxy.store.base import NoStore, Store
from proxy.store.memory import Memory
from proxy.store.sqlite import SQLiteStore
from proxy.store.tiered import Cache
from proxy.traces import Traces
from proxy.upstream import Timeouts, Upstream

_log = logging.getLogger(__name__)

# aiohttp's server reports every malformed request with a traceback; our own handler reports what is ours.
_http_log = logging.getLogger("proxy.http")
_http_log.setLevel(logging.CRITICAL)
# aiohttp warns of the WebSocket subprotocols a client offers in vain; OpenAI's browser clients put their key there.
logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)

_REDIS_CONNECTIONS = 32
# Not what a request waits, which is the budget, but when a connection counts as dead; a write may take this long.
_REDIS_TIMEOUT_S = 1.0
_LAST_MOMENT_S = 0.5
_LAG_PERIOD_S = 0.5
# Connections upstream and to the store, files, and the like.
_OTHER_FILES = 768
_FEWEST_CONNECTIONS = 128
_LOCAL = THIS_MACHINE | {"0.0.0.0", "::"}  # noqa: S104 - compared with, not listened on
# Of connections that wait to be accepted. When it is full the kernel drops what some clients count as connected.
_BACKLOG = 4096
_MAX_HEADER_BYTES = 64 * 1024  # a field: some gateways hand on large tokens


class Lifecycle:
    """Whether the proxy is to go on living: shared by whoever must behave otherwise when it isn't."""

    def __init__(self) -> None:
        self.is_draining = False
        self.deadline = 0.0  # by the monotonic clock, once it is draining: when all must have ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A proxy that answers: where it does, and the parts that a test or a banner wants to see."""

    base_url: str  # what a client uses, /v1 included
    admin_url: str
    lifecycle: Lifecycle
    origins: Origins
    client_keys: ClientKeys | None
    log: RequestLog
    cache: Cache
    fetcher: Fetcher
    status_page: StatusPage


async def serve(settings: Settings, *, announce: Callable[[Running], None], write_log: Callable[[str], object]) -> None:
    """Serve until SIGTERM or SIGINT, then drain: say that it is not ready, go on accepting for ``drain_delay_s`` while
    balancers take note, stop accepting, finish what is under way."""
    stop = _stop_signal()
    async with running(settings, write_log=write_log if settings.logs_requests else None) as proxy:
        if proxy.client_keys is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, proxy.client_keys)
        announce(proxy)
        await proxy.cache.try_store()
        # What lives now lives on: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        await stop.wait()
        proxy.lifecycle.is_draining = True
        _log.info("stopping: not ready from now on, accepting for another %g s", settings.drain_delay_s)
        await asyncio.sleep(settings.drain_delay_s)
    _log.info("stopped")


def _reload(client_keys: ClientKeys) -> None:
    try:
        _log.info("client keys: %d, read again", client_keys.reload())
    except ConfigError as error:
        _log.error("%s; going on with those there were", error)


async def serve_demo(host: str, port: int, *, announce: Callable[[str], None]) -> None:
    """Serve the demo upstream on an address of its own, which ``announce`` is told, until SIGTERM or SIGINT."""
    stop = _stop_signal()
    async with AsyncExitStack() as stack:
        runner = web.AppRunner(demo.make_app(), access_log=None, shutdown_timeout=1.0)
        port = await _listen(stack, runner, host, port, flag="--port")
        announce(f"http://{_bracketed(host)}:{port}/v1")
        await stop.wait()


def _stop_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT. The second ends the process at once: stored entries can't be torn."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    write_log: Callable[[str], object] | None = None,
) -> AsyncIterator[Running]:
    """A proxy for as long as the block lasts; ``write_log`` gets the lines of its requests.

    Raises `ConfigError` if an address can't be listened on.
    """
    metrics = Metrics(prices=settings.prices)
    lifecycle = Lifecycle()
    async with AsyncExitStack() as stack:
        traces = _open_traces(settings)
        stack.push_async_callback(_before, lifecycle, traces.aclose)
        origins = await _open_origins(stack, settings, metrics)
        cache = _open_cache(settings, metrics, clock)
        stack.push_async_callback(_before, lifecycle, cache.aclose)
        batcher = Batcher(
            metrics,
            window_s=settings.batch_window_s,
            concurrency=settings.upstream_concurrency,
            patience_s=settings.upstream_timeout_s,
            max_queued_items=settings.max_queued_items,
            max_queued_bytes=settings.max_held_bytes,
        )
        validations = Validations(ttl_s=settings.revalidate_s, clock=monotonic)
        fetcher = Fetcher(cache, batcher, validations, patience_s=settings.upstream_timeout_s, clock=clock)
        stack.push_async_callback(_before, lifecycle, fetcher.drain)
        client_keys = None if settings.client_keys is None else ClientKeys(settings.client_keys)
        access = Access(shares_all=settings.shares_all, owns_key=settings.owns_key, client_keys=client_keys)
        route = EmbeddingsRoute(
            cache,
            fetcher,
            origins,
            metrics,
            access=access,
            validations=validations,
            max_body_bytes=settings.max_body_bytes,
            max_held_bytes=settings.max_held_bytes,
            reports_full_usage=settings.reports_full_usage,
            is_draining=lambda: lifecycle.is_draining,
        )
        stack.callback(route.close)
        log = RequestLog(write_log, is_json=settings.log_format == "json", clock=clock)
        stack.callback(log.flush)
        await stack.enter_async_context(every(FLUSH_S, lambda _: log.flush()))
        dispatcher = Dispatcher(origins, route, access, log, traces, is_draining=lambda: lifecycle.is_draining)
        # The admin port is the last to go: it tells that the proxy is draining.
        base_url = ""  # not known before there is a port

        def describe() -> dict[str, Any]:
            return openapi.describe(origins.default.provider, base_url)

        page = StatusPage(
            metrics, lambda: _about(settings, base_url), is_draining=lambda: lifecycle.is_draining, now=monotonic
        )
        await stack.enter_async_context(every(STEP_S, lambda _: page.sample()))
        admin = web.AppRunner(_admin_app(metrics, lifecycle, describe, page), access_log=None, shutdown_timeout=1.0)
        admin_port = await _listen(stack, admin, settings.admin_host, settings.admin_port, flag="--admin-port")
        require_strict_parser()
        web_server = _make_server(dispatcher.handle, _max_connections(settings.max_connections))
        await stack.enter_async_context(every(SWEEP_S, lambda _: web_server.sweep()))
        await stack.enter_async_context(every(_LAG_PERIOD_S, metrics.loop_lag.observe))
        # aiohttp waits this long for the handlers, and then as long again before it cancels them.
        data = web.ServerRunner(web_server, shutdown_timeout=settings.shutdown_timeout_s / 2)
        port = await _listen(stack, data, settings.host, settings.port, flag="--port")
        _forbid_itself(settings, port)
        base_url = f"http://{_bracketed(settings.host)}:{port}/v1"
        yield Running(
            base_url=base_url,
            admin_url=f"http://{_bracketed(settings.admin_host)}:{admin_port}",
            lifecycle=lifecycle,
            origins=origins,
            client_keys=client_keys,
            log=log,
            cache=cache,
            fetcher=fetcher,
            status_page=page,
        )
        lifecycle.is_draining = True
        lifecycle.deadline = time.monotonic() + settings.shutdown_timeout_s


def _about(settings: Settings, base_url: str) -> About:
    """What the admin port tells of the settings: no key, and no URL with a secret in it."""
    upstreams = (
        UpstreamStatus(name=own.name, base_url=own.base_url, provider=own.provider.name, models=own.models)
        for own in (settings.upstream, *settings.routed)
    )
    return About(version=__version__, base_url=base_url, upstreams=tuple(upstreams), store_url=str(settings.store))


def _forbid_itself(settings: Settings, port: int) -> None:
    for setting in (settings.upstream, *settings.routed):
        parts = urlsplit(setting.base_url)
        own = {settings.host} | (THIS_MACHINE if settings.host in _LOCAL else set())
        if parts.scheme == "http" and (parts.port or 80) == port and parts.hostname in own:
            msg = f"upstream {setting.base_url} is this proxy's own address; choose another --port or --upstream"
            raise ConfigError(msg)


async def _before(lifecycle: Lifecycle, work: Callable[[], Awaitable[None]]) -> None:
    """Do the last ``work`` of a part before the deadline, or be given up."""
    try:
        async with asyncio.timeout(max(_LAST_MOMENT_S, lifecycle.deadline - time.monotonic())):
            await work()
    except TimeoutError:
        _log.warning("stopping: gave up on %s", work)


def _open_traces(settings: Settings) -> Traces:
    if settings.traces == "off":
        return Traces()
    try:
        from proxy import otlp  # noqa: PLC0415 - what it needs is an extra
    except ImportError as error:
        raise ConfigError(
            f"--traces {settings.traces} needs OpenTelemetry ({error}): pip install 'embedding-cache-proxy[otel]'"
        ) from error
    return otlp.start()


async def _open_origins(stack: AsyncExitStack, settings: Settings, metrics: Metrics) -> Origins:
    every = [settings.upstream, *settings.routed]
    opened = {setting.name: await _open_origin(stack, setting, settings, metrics) for setting in every}
    for setting in every:
        others = (Alternative(opened[other.upstream], other.model) for other in setting.same_model)
        opened[setting.name].alternatives = tuple(others)
    return Origins(
        opened[settings.upstream.name], [(setting.models, opened[setting.name]) for setting in settings.routed]
    )


async def _open_origin(stack: AsyncExitStack, setting: UpstreamSetting, settings: Settings, metrics: Metrics) -> Origin:
    provider = setting.provider
    if settings.max_batch_items is not None:
        provider = replace(provider, limits=provider.limits._replace(items=settings.max_batch_items))
    return Origin(
        name=setting.name,
        provider=provider,
        routes=Routes(setting.base_url, provider),
        client=await _open_upstream(stack, setting, settings, metrics),
        key=setting.key,
    )


async def _open_upstream(
    stack: AsyncExitStack, setting: UpstreamSetting, settings: Settings, metrics: Metrics
) -> Upstream:
    socket = str(await stack.enter_async_context(_demo_upstream())) if setting.is_demo else None

    def connect(limit: int) -> BaseConnector:
        return TCPConnector(limit=limit) if socket is None else UnixConnector(socket, limit=limit)

    timeouts = Timeouts(
        connect_s=settings.upstream_connect_timeout_s,
        read_s=settings.upstream_read_timeout_s,
        total_s=settings.upstream_timeout_s,
    )
    return await stack.enter_async_context(Upstream(setting.name, connect, metrics, timeouts=timeouts))


def _open_cache(settings: Settings, metrics: Metrics, clock: Callable[[], float]) -> Cache:
    memory = Memory(
        settings.memory_bytes,
        on_evicted=lambda entry: metrics.memory_evicted_age.observe(max(0.0, clock() - entry.stored_at_s)),
    )
    metrics.watch_memory(
        size_bytes=lambda: memory.bytes, entries=lambda: memory.entries, limit_bytes=settings.memory_bytes
    )
    store = _open_store(settings, clock)
    return Cache(
        memory,
        store,
        metrics,
        ttl_s=settings.ttl_s,
        budget_s=settings.store_budget_s,
        record_key=settings.record_key,
        clock=clock,
    )


def _open_store(settings: Settings, clock: Callable[[], float]) -> Store:
    match settings.store:
        case StoreSetting(path=Path() as path):
            return SQLiteStore(path, limit_bytes=settings.store_limit_bytes, clock=clock)
        case StoreSetting(url=str(url)):
            # Its client is slow to load, and loads OpenTelemetry where that is installed.
            from proxy.store.redis import RedisStore  # noqa: PLC0415

            return RedisStore(url, timeout_s=_REDIS_TIMEOUT_S, max_connections=_REDIS_CONNECTIONS)
    return NoStore()


@asynccontextmanager
async def _demo_upstream() -> AsyncIterator[Path]:
    """The demo on a Unix socket of its own, where nobody else meets it; yields the socket's path."""
    with tempfile.TemporaryDirectory(prefix="embedding-proxy-") as folder:
        path = Path(folder) / "demo.sock"
        runner = web.AppRunner(demo.make_app(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(path)).start()
            yield path
        finally:
            await runner.cleanup()


def _max_connections(wanted: int) -> int:
    """As many as were asked for and as the process may have open files, of which it needs some for other things."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, wanted + _OTHER_FILES)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, wanted + _OTHER_FILES)), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(wanted, max(_FEWEST_CONNECTIONS, soft - _OTHER_FILES))


def _make_server(handler: Handler, max_connections: int) -> Server:
    return Server(
        handler,
        max_connections=max_connections,
        access_log=None,
        auto_decompress=False,
        logger=_http_log,
        # A client that leaves frees what only it was waiting for.
        handler_cancellation=True,
        max_field_size=_MAX_HEADER_BYTES,
        max_line_size=_MAX_HEADER_BYTES,
    )


def _admin_app(
    metrics: Metrics, lifecycle: Lifecycle, describe: Callable[[], dict[str, Any]], page: StatusPage
) -> web.Application:
    async def exposition(_: web.Request) -> web.Response:
        # The format's own version parameter can't go through aiohttp's content_type.
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        if lifecycle.is_draining:
            return web.Response(status=503, text="draining\n")
        return web.Response(text="ok\n")

    async def described(_: web.Request) -> web.Response:
        return web.json_response(describe())

    app = web.Application()
    page.add_routes(app.router)
    app.router.add_get("/metrics", exposition)
    app.router.add_get("/openapi.json", described)
    # Neither depends on the store or the upstream: restarting the proxy would mend neither.
    app.router.add_get("/healthz", healthy)
    app.router.add_get("/readyz", ready)
    return app


async def _listen(stack: AsyncExitStack, runner: web.BaseRunner, host: str, port: int, *, flag: str) -> int:
    """Start ``runner`` on an address; returns the port, which is a free one if 0 was asked for."""
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        other = (
            flag if getattr(error, "errno", None) in {errno.EADDRINUSE, errno.EACCES} else flag.replace("port", "host")
        )
        msg = f"can't listen on {host}:{port}: {why}; choose another with {other}"
        raise ConfigError(msg) from error
    return int(runner.addresses[0][1])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
