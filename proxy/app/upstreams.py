"""The upstreams of a proxy, each with an HTTP client, and the router between them."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import BaseConnector, TCPConnector, UnixConnector, web

from proxy.config.settings import Settings, UpstreamSetting
from proxy.errors import ConfigError
from proxy.http.malformed import HTTP_LOG
from proxy.periodic import every
from proxy.protocol.cors import Cors
from proxy.protocol.hosts import LOOPBACK_HOSTS
from proxy.telemetry.metrics import Metrics
from proxy.upstream import demo
from proxy.upstream.client import Timeouts, UpstreamClient
from proxy.upstream.router import Fallback, Origin, Router
from proxy.upstream.urls import Routes

# How often certificates are read again: they are renewed days, or at least minutes, before they expire.
_RENEWAL_S = 60.0
_LOCAL = LOOPBACK_HOSTS | {"0.0.0.0", "::"}  # noqa: S104 - compared with, not listened on


async def open_router(stack: AsyncExitStack, settings: Settings, metrics: Metrics) -> Router:
    origins = {setting.name: await _open_origin(stack, setting, settings, metrics) for setting in settings.upstreams}
    for setting in settings.upstreams:
        fallbacks = (Fallback(origins[other.upstream], other.model) for other in setting.same_model)
        origins[setting.name].set_fallbacks(fallbacks)
    router = Router(
        origins[settings.upstream.name], [(setting.models, origins[setting.name]) for setting in settings.routed]
    )
    await stack.enter_async_context(every(_RENEWAL_S, lambda _: _refresh(router)))
    return router


def _refresh(router: Router) -> None:
    for origin in router.all:
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
        client=await _open_client(stack, setting, settings, metrics, routes),
        key=setting.key,
        canary_key=setting.canary_key,
        is_shared=settings.shares_all or settings.owns_key,
        cors=Cors(settings.cors_origins),
    )


async def _open_client(
    stack: AsyncExitStack, setting: UpstreamSetting, settings: Settings, metrics: Metrics, routes: Routes
) -> UpstreamClient:
    socket = str(await stack.enter_async_context(demo_upstream())) if setting.is_demo else None

    def connect(is_kept: bool) -> BaseConnector:
        # No limit here: `UpstreamClient` and the batcher limit the number of connections.
        if socket is not None:
            return UnixConnector(socket, limit=0, force_close=not is_kept)
        return TCPConnector(limit=0, force_close=not is_kept)

    timeouts = Timeouts(
        connect_s=settings.upstream_connect_timeout_s,
        read_s=settings.upstream_read_timeout_s,
        total_s=settings.upstream_timeout_s,
    )
    client = UpstreamClient(setting.name, connect, metrics, timeouts=timeouts, routes=routes, egress=setting.egress)
    metrics.rate_limit_given_up.labels(setting.name)  # begins at 0: an alert must see the first
    outbound = client.outbound
    metrics.watch_files(f"certificates of {setting.name}", lambda: outbound.is_outdated)
    return await stack.enter_async_context(client)


@asynccontextmanager
async def demo_upstream() -> AsyncIterator[Path]:
    """The demo upstream on a Unix socket that only this process knows; yields the socket's path."""
    with tempfile.TemporaryDirectory(prefix="embedding-proxy-") as folder:
        path = Path(folder) / "demo.sock"
        runner = web.AppRunner(demo.make_app(), access_log=None, logger=HTTP_LOG, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(path)).start()
            yield path
        finally:
            await runner.cleanup()


def forbid_own_address(settings: Settings, base_url: str) -> None:
    """Raises `ConfigError` if an upstream or a forward proxy has the address of the proxy itself."""
    own = urlsplit(base_url)
    names = {own.hostname} | (LOOPBACK_HOSTS if settings.host in _LOCAL else set())
    for setting in settings.upstreams:
        proxy = setting.egress.proxy
        for kind, url in (("upstream", setting.base_url), ("forward proxy", proxy.url if proxy else "")):
            parts = urlsplit(url)
            if parts.scheme == own.scheme and (parts.port or 80) == own.port and parts.hostname in names:
                flag = "--upstream" if kind == "upstream" else "--upstream-proxy"
                raise ConfigError(f"{kind} {url} is this proxy's own address; choose another --port or {flag}")
