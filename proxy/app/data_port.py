"""The data port: the server on it, and its limit on connections."""

import logging
import resource
from contextlib import AsyncExitStack, suppress

from aiohttp import web

from proxy.app.request_path import RequestPath
from proxy.config.settings import Settings
from proxy.http import listeners
from proxy.http.aiohttp_seam import require_supported_server
from proxy.http.listeners import Sockets
from proxy.http.malformed import MAX_FIELD_BYTES, MAX_FIELDS, MAX_TARGET_BYTES
from proxy.http.server import SWEEP_S, Server
from proxy.periodic import every
from proxy.telemetry.metrics import Metrics
from proxy.upstream.aiohttp_seam import require_supported_client

# Silences aiohttp: `Dispatcher` reports errors on the data port itself.
_http_log = logging.getLogger("proxy.http.data")
_http_log.setLevel(logging.CRITICAL)

# Open files besides clients' connections: connections to upstreams and the store, database files, and so on.
_OTHER_FILES = 768
_MIN_CONNECTIONS = 128
_LAG_PERIOD_S = 0.5
# Reading from a connection pauses at twice this. aiohttp's default of 256 KiB takes a millisecond to copy.
_BUFFER_BYTES = 64 * 1024


async def open_data_port(
    stack: AsyncExitStack, settings: Settings, sockets: Sockets, path: RequestPath, metrics: Metrics
) -> None:
    """Serve clients on ``sockets`` until ``stack`` is closed."""
    require_supported_server()
    require_supported_client()
    server = Server(
        path.dispatcher.handle,
        bytes_handler=path.unparsed,
        max_connections=_max_connections(settings.max_connections),
        reserve=path.bodies.reserve,
        access_log=None,
        auto_decompress=False,
        logger=_http_log,
        # If a client leaves, its request is cancelled and releases what only that request waited for.
        handler_cancellation=True,
        max_field_size=MAX_FIELD_BYTES,
        max_line_size=MAX_TARGET_BYTES,
        max_headers=MAX_FIELDS,
        read_bufsize=_BUFFER_BYTES,
    )
    await stack.enter_async_context(every(SWEEP_S, lambda _: server.sweep()))
    await stack.enter_async_context(every(_LAG_PERIOD_S, metrics.loop_lag.observe))
    runner = web.ServerRunner(server, shutdown_timeout=settings.shutdown_timeout_s)
    await listeners.accept(stack, runner, sockets)


def _max_connections(wanted: int) -> int:
    """``wanted``, or fewer if the process may not open so many files. Raises its limit on open files if it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, wanted + _OTHER_FILES)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, wanted + _OTHER_FILES)), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(wanted, max(_MIN_CONNECTIONS, soft - _OTHER_FILES))
