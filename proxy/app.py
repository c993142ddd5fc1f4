"""What a proxy is made of, from its settings to two listeners that answer."""

import asyncio
import logging
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import BaseConnector, TCPConnector, UnixConnector, web
from prometheus_client import Metric

from proxy.access.admission import Access
from proxy.access.client_keys import ClientKeys
from proxy.access.validations import Validations
from proxy.admin import port
from proxy.admin.page import StatusPage
from proxy.cache.cache import Cache
from proxy.cache.memory import Memory
from proxy.cache.sqlite.store import SQLiteStore
from proxy.cache.store import NoStore, Store
from proxy.config.settings import Settings, StoreSetting, UpstreamSetting
from proxy.dispatch import Dispatcher
from proxy.embeddings.fast_path import FastPath
from proxy.embeddings.responses import ResponseBuilder
from proxy.embeddings.route import EmbeddingsRoute
from proxy.errors import ConfigError
from proxy.fetch.batcher import Batcher
from proxy.fetch.fetcher import Fetcher
from proxy.http import listeners
from proxy.http.aiohttp_seam import require_supported_server
from proxy.http.bodies import BodyReader
from proxy.http.listeners import Listeners, Sockets
from proxy.http.malformed import HTTP_LOG, MAX_FIELD_BYTES, MAX_FIELDS, MAX_TARGET_BYTES
from proxy.http.server import SWEEP_S, Server
from proxy.periodic import every
from proxy.protocol.cors import Cors
from proxy.protocol.hosts import LOOPBACK_HOSTS
from proxy.protocol.records import RecordKey
from proxy.telemetry.access_log import FLUSH_S, RequestLog
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import Traces
from proxy.upstream import demo
from proxy.upstream.aiohttp_seam import require_supported_client
from proxy.upstream.client import Timeouts, UpstreamClient
from proxy.upstream.router import Fallback, Origin, Router
from proxy.upstream.urls import Routes

_log = logging.getLogger(__name__)

# Our own handler reports what goes wrong on the data port.
_http_log = logging.getLogger("proxy.http.data")
_http_log.setLevel(logging.CRITICAL)

_REDIS_CONNECTIONS = 32
# Not what a request waits, which is the budget, but when a connection counts as dead; a write may take this long.
_REDIS_TIMEOUT_S = 1.0
_LAST_MOMENT_S = 0.5
_LAG_PERIOD_S = 0.5
# Certificates are renewed days before they expire, or at the least minutes.
_RENEWAL_S = 60.0
# Connections upstream and to the store, files, and the like.
_OTHER_FILES = 768
_FEWEST_CONNECTIONS = 128
_LOCAL = LOOPBACK_HOSTS | {"0.0.0.0", "::"}  # noqa: S104 - compared with, not listened on


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
    metrics: Metrics
    lifecycle: Lifecycle
    origins: Router
    client_keys: ClientKeys | None
    log: RequestLog
    cache: Cache
    fetcher: Fetcher
    status_page: StatusPage


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    write_log: Callable[[str], object] | None = None,
    bound: Listeners | None = None,
) -> AsyncIterator[Running]:
    """A proxy for as long as the block lasts; ``write_log`` gets the lines of its requests. Without ``bound`` it opens
    its own.

    Raises `ConfigError` if an address can't be listened on.
    """
    metrics = Metrics(prices=settings.prices)
    lifecycle = Lifecycle()
    async with AsyncExitStack() as stack:
        bound = bound or stack.enter_context(listeners.open_listeners(settings))
        base_url = base_url_of(bound.data)
        _forbid_itself(settings, base_url)
        traces = _open_traces(settings)
        stack.push_async_callback(_before, lifecycle, traces.aclose)
        origins = await _open_origins(stack, settings, metrics)
        await stack.enter_async_context(every(_RENEWAL_S, lambda _: _refresh(origins)))
        cache = _open_cache(settings, metrics, clock)
        stack.push_async_callback(_before, lifecycle, cache.aclose)
        batcher = Batcher(
            metrics,
            window_s=settings.batch_window_s,
            concurrency=settings.upstream_concurrency,
            timeout_s=settings.upstream_timeout_s,
            max_queued_items=settings.max_queued_items,
            max_queued_bytes=settings.max_held_bytes,
            # While one is put together it is in memory twice.
            max_incoming_bytes=settings.max_held_bytes // 4,
            room=cache.room,
        )
        validations = Validations(ttl_s=settings.revalidate_s, clock=monotonic)
        fetcher = Fetcher(cache, batcher, validations, timeout_s=settings.upstream_timeout_s, clock=clock)
        stack.push_async_callback(_before, lifecycle, fetcher.drain)
        client_keys = None if settings.client_keys is None else ClientKeys(settings.client_keys)
        access = Access(
            shares_all=settings.shares_all,
            owns_key=settings.owns_key,
            client_keys=client_keys,
            validations=validations,
            key_headers=settings.key_headers,
            neutral_headers=settings.neutral_headers | _neutral_at_all(settings),
            cors_origins=settings.cors_origins,
        )
        bodies = BodyReader(metrics, max_bytes=settings.max_body_bytes, max_held_bytes=settings.max_held_bytes)
        stack.callback(bodies.close)
        responses = ResponseBuilder(cache.memory, metrics, reports_full_usage=settings.reports_full_usage)
        repeats = FastPath(cache, responses, metrics=metrics, access=access)
        route = EmbeddingsRoute(
            cache,
            fetcher,
            origins,
            bodies=bodies,
            responses=responses,
            repeats=repeats,
            metrics=metrics,
            access=access,
            validations=validations,
            is_draining=lambda: lifecycle.is_draining,
        )
        log = RequestLog(write_log, is_json=settings.log_format == "json", clock=clock)
        stack.callback(log.flush)
        await stack.enter_async_context(every(FLUSH_S, lambda _: log.flush()))
        dispatcher = Dispatcher(
            origins, route, repeats, access, log=log, traces=traces, is_draining=lambda: lifecycle.is_draining
        )

        # The admin port is the last to go: it tells that the proxy is draining.
        async def families() -> Iterable[Metric]:
            return metrics.families()

        page = await port.open_port(
            stack,
            settings,
            base_url,
            bound.admin,
            families,
            is_draining=lambda: lifecycle.is_draining,
            is_ready=lambda: not lifecycle.is_draining,
            now=monotonic,
        )
        require_supported_server()
        require_supported_client()
        web_server = _make_server(dispatcher, bodies, _max_connections(settings.max_connections))
        await stack.enter_async_context(every(SWEEP_S, lambda _: web_server.sweep()))
        await stack.enter_async_context(every(_LAG_PERIOD_S, metrics.loop_lag.observe))
        data = web.ServerRunner(web_server, shutdown_timeout=settings.shutdown_timeout_s)
        await listeners.accept(stack, data, bound.data)
        yield Running(
            base_url=base_url,
            admin_url=listeners.url_of(bound.admin),
            metrics=metrics,
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


def _neutral_at_all(settings: Settings) -> frozenset[str]:
    """The header fields that are neutral whichever upstream is asked."""
    rows = (setting.provider for setting in (settings.upstream, *settings.routed))
    return frozenset.intersection(*(row.neutral_headers for row in rows))


def _forbid_itself(settings: Settings, base_url: str) -> None:
    own = urlsplit(base_url)
    names = {own.hostname} | (LOOPBACK_HOSTS if settings.host in _LOCAL else set())
    for setting in settings.upstreams:
        proxy = setting.egress.proxy
        for what, url in (("upstream", setting.base_url), ("forward proxy", proxy.url if proxy else "")):
            parts = urlsplit(url)
            if parts.scheme == own.scheme and (parts.port or 80) == own.port and parts.hostname in names:
                flag = "--upstream" if what == "upstream" else "--upstream-proxy"
                raise ConfigError(f"{what} {url} is this proxy's own address; choose another --port or {flag}")


def base_url_of(sockets: Sockets) -> str:
    """What a client is to use."""
    return listeners.url_of(sockets) + "/v1"


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
        from proxy.telemetry import otlp  # noqa: PLC0415 - what it needs is an extra
    except ImportError as error:
        raise ConfigError(
            f"--traces {settings.traces} needs OpenTelemetry ({error}): pip install 'embedding-cache-proxy[otel]',"
            f" or in a clone: .venv/bin/pip install '.[otel]'"
        ) from error
    return otlp.start()


async def _open_origins(stack: AsyncExitStack, settings: Settings, metrics: Metrics) -> Router:
    every = settings.upstreams
    opened = {setting.name: await _open_origin(stack, setting, settings, metrics) for setting in every}
    for setting in every:
        others = (Fallback(opened[other.upstream], other.model) for other in setting.same_model)
        opened[setting.name].fallbacks = tuple(others)
    return Router(
        opened[settings.upstream.name], [(setting.models, opened[setting.name]) for setting in settings.routed]
    )


def _refresh(origins: Router) -> None:
    for origin in origins.all:
        origin.client.outbound.refresh()


async def _open_origin(stack: AsyncExitStack, setting: UpstreamSetting, settings: Settings, metrics: Metrics) -> Origin:
    provider = setting.provider
    routes = Routes(setting.base_url, provider, is_default=setting is settings.upstream)
    if settings.max_batch_items is not None:
        provider = replace(provider, limits=provider.limits._replace(items=settings.max_batch_items))
    return Origin(
        name=setting.name,
        provider=provider,
        routes=routes,
        client=await _open_upstream(stack, setting, settings, metrics, routes),
        key=setting.key,
        is_shared=settings.shares_all or settings.owns_key,
        cors=Cors(settings.cors_origins),
    )


async def _open_upstream(
    stack: AsyncExitStack, setting: UpstreamSetting, settings: Settings, metrics: Metrics, routes: Routes
) -> UpstreamClient:
    socket = str(await stack.enter_async_context(_demo_upstream())) if setting.is_demo else None

    def connect(is_kept: bool) -> BaseConnector:
        # `UpstreamClient` and the batcher limit how many there are at a time.
        if socket is not None:
            return UnixConnector(socket, limit=0, force_close=not is_kept)
        return TCPConnector(limit=0, force_close=not is_kept)

    timeouts = Timeouts(
        connect_s=settings.upstream_connect_timeout_s,
        read_s=settings.upstream_read_timeout_s,
        total_s=settings.upstream_timeout_s,
    )
    upstream = UpstreamClient(setting.name, connect, metrics, timeouts=timeouts, routes=routes, egress=setting.egress)
    return await stack.enter_async_context(upstream)


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
        timeout_s=settings.store_budget_s,
        record_key=None if settings.record_key is None else RecordKey(settings.record_key),
        clock=clock,
    )


def _open_store(settings: Settings, clock: Callable[[], float]) -> Store:
    match settings.store:
        case StoreSetting(path=Path() as path):
            return SQLiteStore(path, limit_bytes=settings.store_limit_bytes, clock=clock)
        case StoreSetting(url=str(url)):
            # Its client is slow to load, and loads OpenTelemetry where that is installed.
            from proxy.cache.redis.store import RedisStore  # noqa: PLC0415

            return RedisStore(url, timeout_s=_REDIS_TIMEOUT_S, max_connections=_REDIS_CONNECTIONS)
    return NoStore()


@asynccontextmanager
async def _demo_upstream() -> AsyncIterator[Path]:
    """The demo on a Unix socket of its own, where nobody else meets it; yields the socket's path."""
    with tempfile.TemporaryDirectory(prefix="embedding-proxy-") as folder:
        path = Path(folder) / "demo.sock"
        runner = web.AppRunner(demo.make_app(), access_log=None, logger=HTTP_LOG, shutdown_timeout=1.0)
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


def _make_server(dispatcher: Dispatcher, bodies: BodyReader, max_connections: int) -> Server:
    return Server(
        dispatcher.handle,
        bytes_handler=dispatcher,
        max_connections=max_connections,
        reserve=bodies.hold,
        access_log=None,
        auto_decompress=False,
        logger=_http_log,
        # A client that leaves frees what only it was waiting for.
        handler_cancellation=True,
        max_field_size=MAX_FIELD_BYTES,
        max_line_size=MAX_TARGET_BYTES,
        max_headers=MAX_FIELDS,
    )
