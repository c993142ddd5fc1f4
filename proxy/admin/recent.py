"""The last requests as JSON, for programs on this machine and not for web pages."""

import re
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from proxy.protocol.headers import Headers
from proxy.protocol.hosts import LOOPBACK_HOSTS
from proxy.protocol.targets import resolve
from proxy.telemetry.recent_request import MAX_REQUESTS, RecentRequest

Recent = Callable[[int], Awaitable[list[RecentRequest]]]

NOT_THIS_MACHINE = "The name in Host is not this machine's; use localhost."
_DEFAULT = 20
_NUMBER = re.compile(r"[0-9]{1,9}")  # Python refuses to read thousands of digits
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class RecentDocument(msgspec.Struct):
    """What `add_recent_requests` serves."""

    requests: list[RecentRequest]


def parse_recent(body: bytes) -> list[RecentRequest]:
    """Raises `msgspec.DecodeError` for anything that `add_recent_requests` does not serve."""
    return msgspec.json.decode(body, type=RecentDocument).requests


def add_recent_requests(router: web.UrlDispatcher, recent: Recent, *, is_loopback: bool) -> None:
    """Serve ``/requests.json?last=N``. ``is_loopback``: only this machine can connect."""

    async def handle(request: web.Request) -> web.Response:
        if (reason := why_forbidden(request.headers, is_loopback=is_loopback)) is not None:
            return web.Response(status=403, text=reason + "\n")
        given = request.query.get("last", str(_DEFAULT))
        if not (_NUMBER.fullmatch(given) and 1 <= int(given) <= MAX_REQUESTS):
            return web.Response(status=400, text=f"last: accepted: a number from 1 to {MAX_REQUESTS}\n")
        body = msgspec.json.encode(RecentDocument(requests=await recent(int(given))))
        return web.Response(body=body, content_type="application/json", headers=_HEADERS)

    router.add_get("/requests.json", handle)


def why_forbidden(given: Headers, *, is_loopback: bool) -> str | None:
    """Why a request may come from a web page of another site; None if it does not.

    To the browser, a page whose own name resolves to this machine (DNS rebinding) has the same origin. So on a loopback
    port, Host must have one of this machine's names.
    """
    host = given.get("Host", "").lower()
    if "Origin" in given and given["Origin"].lower().partition("://")[2] != host:
        return "The request comes from a web page on another origin."
    if given.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
        return "The request comes from a web page on another site."
    return None if not is_loopback or names_this_machine(given) else NOT_THIS_MACHINE


def names_this_machine(given: Headers) -> bool:
    """Whether Host has a name by which a client on this machine reaches a loopback port."""
    return resolve(f"http://{given.get('Host', '').lower()}", "").origin[1].strip("[]") in LOOPBACK_HOSTS
