"""A running proxy: its core, the path of its requests, and its two ports."""

import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from prometheus_client import Metric

from proxy.access.client_keys import ClientKeys
from proxy.admin import port
from proxy.admin.page import StatusPage
from proxy.app.core import Core, open_core
from proxy.app.data_port import open_data_port
from proxy.app.lifecycle import Lifecycle
from proxy.app.request_path import open_request_path
from proxy.app.upstreams import forbid_own_address
from proxy.cache.cache import Cache
from proxy.canary.canary import Canary
from proxy.config.settings import Settings
from proxy.fetch.fetcher import Fetcher
from proxy.http import listeners
from proxy.http.listeners import Listeners, Sockets
from proxy.telemetry.access_log import AccessLog
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.recent_request import RecentRequest
from proxy.telemetry.recent_requests import RecentRequests
from proxy.upstream.router import Router


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A running proxy: its addresses, and the parts that its process, its banner and tests use."""

    base_url: str  # for clients, /v1 included
    admin_url: str
    metrics: Metrics
    lifecycle: Lifecycle
    origins: Router
    client_keys: ClientKeys | None
    log: AccessLog
    cache: Cache
    fetcher: Fetcher
    status_page: StatusPage
    canary: Canary | None


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    write_log: Callable[[str], object] | None = None,
    bound: Listeners | None = None,
) -> AsyncIterator[Running]:
    """A proxy that runs for as long as the block lasts.

    ``write_log`` receives its access log. ``bound`` are the sockets to listen on; without them it opens its own. Raises
    `ConfigError`, for example if an address can't be listened on.
    """
    async with AsyncExitStack() as stack:
        bound = bound or stack.enter_context(listeners.open_listeners(settings))
        base_url = base_url_of(bound.data)
        forbid_own_address(settings, base_url)
        core = await open_core(stack, settings, clock=clock, monotonic=monotonic)
        path = await open_request_path(stack, settings, core, write_log=write_log, clock=clock)
        # Closed after the data port, because it reports that the proxy is draining.
        page = await _open_admin_port(stack, settings, base_url, bound.admin, core, requests=path.recent, now=monotonic)
        await open_data_port(stack, settings, bound.data, path, core.metrics)
        yield Running(
            base_url=base_url,
            admin_url=listeners.url_of(bound.admin),
            metrics=core.metrics,
            lifecycle=core.lifecycle,
            origins=core.router,
            client_keys=path.client_keys,
            log=path.log,
            cache=core.cache,
            fetcher=core.fetcher,
            status_page=page,
            canary=core.canary,
        )
        core.lifecycle.drain(settings.shutdown_timeout_s)
        core.fetcher.stop_holding(settings.shutdown_timeout_s)


def base_url_of(sockets: Sockets) -> str:
    """The base URL for clients."""
    return listeners.url_of(sockets) + "/v1"


async def _open_admin_port(
    stack: AsyncExitStack,
    settings: Settings,
    base_url: str,
    sockets: Sockets,
    core: Core,
    *,
    requests: RecentRequests,
    now: Callable[[], float],
) -> StatusPage:
    async def families() -> Iterable[Metric]:
        return core.metrics.families()

    async def recent(count: int) -> list[RecentRequest]:
        return requests.last(count)

    return await port.open_port(
        stack,
        settings,
        base_url,
        sockets,
        families,
        recent=recent,
        is_draining=lambda: core.lifecycle.is_draining,
        is_ready=lambda: not core.lifecycle.is_draining,
        now=now,
    )
