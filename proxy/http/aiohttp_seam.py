"""The private names of aiohttp's server that the proxy uses, as public names.

A patch release of aiohttp may change them, so pyproject.toml pins one version, and `require_supported_server` checks at
start that they exist. No other module uses a private name of aiohttp, except proxy/upstream/aiohttp_seam.py for the
client's side.
"""

import aiohttp
from aiohttp import http_parser
from aiohttp.web_protocol import RequestHandler

from proxy.errors import ConfigError

PRIVATE_NAMES = ("_close", "_force_close", "_messages", "_upgraded", "_waiter")


class AiohttpConnection(RequestHandler):
    """aiohttp's side of one connection: its parser, and its queue of parsed requests."""

    __slots__ = ()

    @property
    def is_idle(self) -> bool:
        """Whether aiohttp has responded to every request it has parsed, and a response may be written now."""
        waiter = self._waiter
        return waiter is not None and not (waiter.done() or self.writing_paused or self._close or self._force_close)

    @property
    def is_upgraded(self) -> bool:
        """Whether the parser stopped after an upgrade request. A 101 may then hand over the connection."""
        return self._upgraded

    @property
    def has_queued_requests(self) -> bool:
        """Whether parsed requests wait for the response to an earlier one."""
        return bool(self._messages)

    @property
    def is_last_queued_complete(self) -> bool:
        """Whether the body of the last queued request has been received. There must be one."""
        return self._messages[-1][1].is_eof()

    @property
    def has_queued_error(self) -> bool:
        """Whether the parser has failed. aiohttp queues the error like a request."""
        return bool(self._messages) and not isinstance(self._messages[-1][0], http_parser.RawRequestMessage)


def require_supported_server() -> None:
    """Raises `ConfigError` for an aiohttp whose parser is lenient, or that lacks one of these names."""
    require_strict_parser()
    if missing := [name for name in PRIVATE_NAMES if not hasattr(RequestHandler, name)]:
        raise ConfigError(
            f"aiohttp {aiohttp.__version__} is not supported: its RequestHandler has no {', '.join(missing)};"
            " install the version that embedding-cache-proxy requires"
        )


def require_strict_parser() -> None:
    """Raises `ConfigError` if aiohttp runs without its compiled HTTP parser, which is the stricter of the two."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise ConfigError(
            "aiohttp is installed without its C parser; install its wheel, and unset AIOHTTP_NO_EXTENSIONS"
        )
