"""The client of `proxy.admin`: reads the status and the last requests of a running proxy."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientSession,
    ClientTimeout,
    InvalidURL,
    NonHttpUrlClientError,
    UnixConnector,
)

from proxy.admin.recent import RecentDocument
from proxy.admin.status import Status
from proxy.protocol.hosts import UNIX_PREFIX
from proxy.telemetry.recent_request import RecentRequest
from proxy.upstream.base_urls import redacted

_T = TypeVar("_T")

PERIOD_S = 2.0
_TIMEOUT_S = 5.0


class Unreachable(Exception):
    """There is no status, and the message says why."""


def _session(admin_url: str) -> ClientSession:
    path = admin_url.removeprefix(UNIX_PREFIX)
    return ClientSession(connector=None if path == admin_url else UnixConnector(path))


async def ask(session: ClientSession, admin_url: str) -> tuple[bytes, Status]:
    """The status, as JSON and parsed. Raises `Unreachable`."""
    return await read(session, admin_url, "status.json", Status, what="a status")


async def read(session: ClientSession, admin_url: str, name: str, kind: type[_T], *, what: str) -> tuple[bytes, _T]:
    """What the admin port has under ``name``, as JSON and parsed; ``what`` is its name in messages.

    Raises `Unreachable`.
    """
    is_path = admin_url.startswith(UNIX_PREFIX)
    url = f"{'http://localhost' if is_path else admin_url.rstrip('/')}/{name}"
    shown = admin_url if is_path else f"{redacted(admin_url).rstrip('/')}/{name}"
    try:
        async with session.get(url, allow_redirects=False, timeout=ClientTimeout(_TIMEOUT_S)) as response:
            body = await response.read()
    except TimeoutError as error:
        raise Unreachable(f"no response from {shown} within {_TIMEOUT_S:g} s") from error
    except (InvalidURL, NonHttpUrlClientError) as error:
        raise Unreachable(f"{redacted(admin_url)!r} is not a URL; accepted: as http://127.0.0.1:9090") from error
    except ClientError as error:
        raise Unreachable(
            f"can't reach the proxy at {shown}: {_why(error)}; is it running, and is this its admin port (--admin-url)?"
        ) from error
    try:
        return body, msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise Unreachable(
            f"{shown} returned {response.status} without {what}; is this the admin port of a proxy of this version?"
        ) from error


def _why(error: ClientError) -> str:
    if not isinstance(error, ClientConnectorError):
        return str(error) or type(error).__name__
    # asyncio's own text for a refused connection repeats the address. The resolver's error numbers are below zero.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error.strerror or error.os_error)


async def recent_requests(admin_url: str, count: int) -> list[RecentRequest]:
    """The last ``count`` requests, the newest last. Raises `Unreachable`."""
    async with _session(admin_url) as session:
        name = f"requests.json?last={count}"
        _, document = await read(session, admin_url, name, RecentDocument, what="requests")
        return document.requests


async def once(admin_url: str) -> tuple[bytes, Status]:
    """The status, as JSON and parsed. Raises `Unreachable`."""
    async with _session(admin_url) as session:
        return await ask(session, admin_url)


async def watch(admin_url: str) -> AsyncIterator[Status | Unreachable]:
    """The status every `PERIOD_S`, or the reason why there is none."""
    async with _session(admin_url) as session:
        while True:
            try:
                _, status = await ask(session, admin_url)
                yield status
            except Unreachable as error:
                yield error
            await asyncio.sleep(PERIOD_S)
