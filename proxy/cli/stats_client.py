"""The client of `proxy.admin.page`: reads the status of a running proxy."""

import asyncio
import os
from collections.abc import AsyncIterator

import click
import msgspec
from aiohttp import ClientConnectorError, ClientError, ClientSession, ClientTimeout, InvalidURL, NonHttpUrlClientError

from proxy.admin.status import Status

PERIOD_S = 2.0
_TIMEOUT_S = 5.0

ADMIN_URL = click.option(
    "--admin-url",
    default=lambda: f"http://127.0.0.1:{os.environ.get('EMBEDDING_PROXY_ADMIN_PORT', '9090')}",
    show_default="http://127.0.0.1:9090, or the port of EMBEDDING_PROXY_ADMIN_PORT",
    help="URL of the proxy's admin port.",
)


class Unreachable(Exception):
    """There is no status, and the message says why."""


async def ask(session: ClientSession, admin_url: str) -> tuple[bytes, Status]:
    """The status, as JSON and parsed. Raises `Unreachable`."""
    url = admin_url.rstrip("/") + "/status.json"
    try:
        async with session.get(url, allow_redirects=False, timeout=ClientTimeout(_TIMEOUT_S)) as response:
            body = await response.read()
    except TimeoutError as error:
        raise Unreachable(f"no response from {url} within {_TIMEOUT_S:g} s") from error
    except (InvalidURL, NonHttpUrlClientError) as error:
        raise Unreachable(f"{admin_url!r} is not a URL; accepted: as http://127.0.0.1:9090") from error
    except ClientError as error:
        raise Unreachable(
            f"can't reach the proxy at {url}: {_why(error)}; is it running, and is this its admin port (--admin-url)?"
        ) from error
    try:
        return body, msgspec.json.decode(body, type=Status)
    except msgspec.DecodeError as error:
        raise Unreachable(
            f"{url} returned {response.status} without a status; is this the admin port of a proxy of this version?"
        ) from error


def _why(error: ClientError) -> str:
    if not isinstance(error, ClientConnectorError):
        return str(error) or type(error).__name__
    # asyncio's own text for a refused connection repeats the address. The resolver's error numbers are below zero.
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error.strerror)


async def once(admin_url: str) -> tuple[bytes, Status]:
    """The status, as JSON and parsed. Raises `Unreachable`."""
    async with ClientSession() as session:
        return await ask(session, admin_url)


async def watch(admin_url: str) -> AsyncIterator[Status | Unreachable]:
    """The status every `PERIOD_S`, or the reason why there is none."""
    async with ClientSession() as session:
        while True:
            try:
                _, status = await ask(session, admin_url)
                yield status
            except Unreachable as error:
                yield error
            await asyncio.sleep(PERIOD_S)
