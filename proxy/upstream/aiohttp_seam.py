"""The private names of aiohttp's client that the proxy uses, as functions.

A patch release of aiohttp may change them, so pyproject.toml pins one version, and `require_supported_client` checks at
start that they exist. The server's side: proxy/http/aiohttp_seam.py.
"""

import asyncio

import aiohttp
from aiohttp import BaseConnector, ClientResponse, ClientSession
from aiohttp.base_protocol import BaseProtocol
from aiohttp.client_proto import ResponseHandler

from proxy.errors import ConfigError

PRIVATE_NAMES: dict[type, tuple[str, ...]] = {
    ClientSession: ("_retry_connection",),
    BaseConnector: ("_conns",),
    ClientResponse: ("_continue",),
    BaseProtocol: ("_parser",),  # of which ResponseHandler is one
}


def require_supported_client() -> None:
    """Raises `ConfigError` for an aiohttp whose constructors do not set these names."""
    for owner, names in PRIVATE_NAMES.items():
        if missing := [name for name in names if name not in owner.__init__.__code__.co_names]:  # type: ignore[misc]
            raise ConfigError(
                f"aiohttp {aiohttp.__version__} is not supported: its {owner.__name__} has no {', '.join(missing)};"
                " install the version that embedding-cache-proxy requires"
            )


def disable_retries(session: ClientSession) -> None:
    """Send each request once. By default aiohttp resends idempotent methods when a kept connection breaks."""
    session._retry_connection = False  # noqa: SLF001 - aiohttp has no public name for it


def has_idle_connections(connector: BaseConnector) -> bool:
    """Whether the pool keeps a connection that the next request might use."""
    return any(connector._conns.values())  # noqa: SLF001 - aiohttp has no public name for it


def has_begun_message(protocol: ResponseHandler) -> bool:
    """Whether a part of a message has been read from a connection on which no response is due. The next request gets a
    parser of its own, to which the rest of the message would come."""
    parser = protocol._parser  # noqa: SLF001 - aiohttp has no public name for it
    try:
        return parser is not None and parser.feed_eof() is not None
    except Exception:  # noqa: BLE001 - what it makes of half a head is of no interest
        return True


def interim_of(response: ClientResponse) -> "asyncio.Future[bool]":
    """A future that is done once an interim response (1xx) has come before ``response``, which has not started yet.

    The HTTP client uses it for 100 (Continue), but ends it for any. No request of the proxy has ``Expect``.
    """
    interim = response._continue = asyncio.get_running_loop().create_future()  # noqa: SLF001 - it has no public name
    return interim
