"""The admin port: metrics, health, the status page and the description of the cached route."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from proxy import __version__
from proxy.admin import openapi
from proxy.admin.history import STEP_S
from proxy.admin.page import StatusPage
from proxy.admin.recent import NOT_THIS_MACHINE, Recent, add_recent_requests, names_this_machine
from proxy.admin.status import About, UpstreamStatus
from proxy.config.settings import Settings
from proxy.http import listeners
from proxy.http.listeners import Sockets
from proxy.http.malformed import HTTP_LOG
from proxy.periodic import every
from proxy.protocol.hosts import LOOPBACK_HOSTS
from proxy.telemetry.metrics import Families, text_of

_FOR_ANY_NAME = frozenset({"/metrics", "/healthz", "/readyz"})


async def open_port(
    stack: AsyncExitStack,
    settings: Settings,
    base_url: str,
    sockets: Sockets,
    families: Families,
    *,
    recent: Recent,
    is_draining: Callable[[], bool],
    is_ready: Callable[[], bool],
    now: Callable[[], float],
) -> StatusPage:
    """Serve the admin port on ``sockets`` until ``stack`` is closed."""
    page = StatusPage(families, _about(settings, base_url), is_draining=is_draining, now=now)
    await stack.enter_async_context(every(STEP_S, lambda _: page.sample()))
    is_loopback = settings.admin_host in LOOPBACK_HOSTS
    app = _make_app(
        families,
        page,
        is_draining=is_draining,
        is_ready=is_ready,
        describe=lambda: openapi.describe(settings.upstream.provider, base_url),
        is_loopback=is_loopback,
    )
    add_recent_requests(app.router, recent, is_loopback=is_loopback)
    await listeners.accept(stack, web.AppRunner(app, access_log=None, logger=HTTP_LOG, shutdown_timeout=1.0), sockets)
    return page


def _make_app(
    families: Families,
    page: StatusPage,
    *,
    is_draining: Callable[[], bool],
    is_ready: Callable[[], bool],
    describe: Callable[[], dict[str, Any]],
    is_loopback: bool,
) -> web.Application:
    async def metrics(_: web.Request) -> web.Response:
        # The format's own version parameter can't go through aiohttp's content_type.
        return web.Response(
            body=text_of(await families()), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        if not is_ready():
            return web.Response(status=503, text="draining\n" if is_draining() else "no worker is running\n")
        return web.Response(text="ok\n")

    async def description(_: web.Request) -> web.Response:
        return web.json_response(describe())

    app = web.Application(middlewares=[_local_names_only] if is_loopback else [])
    page.add_routes(app.router)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/openapi.json", description)
    # Neither depends on the store or an upstream: a restart of the proxy would repair neither.
    app.router.add_get("/healthz", healthy)
    app.router.add_get("/readyz", ready)
    return app


@web.middleware
async def _local_names_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests whose Host does not name this machine.

    A browser lets no web page of another site read a response, except a page whose own name resolves to this machine
    (DNS rebinding); then Host has that name. `_FOR_ANY_NAME` is exempt: scrapers and probes may use any name, through a
    tunnel or a server in front, and what they read names no addresses and no requests.
    """
    if request.path not in _FOR_ANY_NAME and not names_this_machine(request.headers):
        return web.Response(status=403, text=f"{NOT_THIS_MACHINE}\n")
    return await handler(request)


def _about(settings: Settings, base_url: str) -> About:
    """The settings that the admin port shows: no keys, and no URL that contains a secret."""
    upstreams = (
        UpstreamStatus(
            name=upstream.name, base_url=upstream.base_url, provider=upstream.provider.name, models=upstream.models
        )
        for upstream in settings.upstreams
    )
    return About(version=__version__, base_url=base_url, upstreams=tuple(upstreams), store_url=str(settings.store))
