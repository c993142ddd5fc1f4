"""The admin port: metrics, health, the status page and the description of the cached route."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from proxy.metrics import Families, text_of
from proxy.statuspage import StatusPage


def make_app(
    families: Families, page: StatusPage, *, is_ready: Callable[[], bool], describe: Callable[[], dict[str, Any]]
) -> web.Application:
    async def exposition(_: web.Request) -> web.Response:
        # The format's own version parameter can't go through aiohttp's content_type.
        return web.Response(
            body=text_of(await families()), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        if not is_ready():
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
