"""Requests that are responded to without being parsed, because their connection knows their bytes or their head.

A hit is written at once. A miss begins like a parsed one, and its response is written when it is there. Once begun, it
must not be begun again, whatever happens on the connection (`proxy.embeddings.exchange.BegunExchange`):

- The response is there, and an ordinary one: it is written, and the request is counted.
- It is an error, is streamed, or has to close the connection: the parser gets the request, and its handler takes the
  response that is there.
- More bytes come, the client closes its side, or the proxy begins to drain, while the response is under way: the parser
  gets the request, and its handler waits for that response. If the client then leaves, aiohttp cancels the handler,
  which cancels the wait, as for any other request.
- The connection is lost before: the wait is cancelled, and the request is counted as one whose client has left.

In each case the items are fetched once, since a fetch does not belong to the request that began it, the client is
billed once, and the request is counted and logged once.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from multidict import CIMultiDict

from proxy.embeddings.exchange import BegunExchange
from proxy.embeddings.fast_path import LONG_BYTES, FastPath
from proxy.embeddings.progress import Progress
from proxy.embeddings.recognized import FastPathHit, FastPathMiss, RecognizedRequest
from proxy.embeddings.request_log import RequestLog
from proxy.embeddings.response_head import finish_head
from proxy.embeddings.route import EmbeddingsRoute
from proxy.errors import CLIENT_LEFT, Overloaded
from proxy.http.connection import Connection, ResponseLater
from proxy.http.long_response import LongResponse, Response, long_response_of
from proxy.http.plain_response import parts_of
from proxy.telemetry.access_log import RequestIds, trace_id
from proxy.telemetry.tracing import EMBEDDINGS_ROUTE, Traces

_log = logging.getLogger(__name__)

_OK = 200
_NO_FIELDS = CIMultiDict[str]()


class UnparsedRequests:
    """Responds to the requests of `proxy.http.connection.BytesHandler`. They are counted, logged and traced like any
    other."""

    def __init__(
        self,
        embeddings: EmbeddingsRoute,
        fast_path: FastPath,
        *,
        log: RequestLog,
        ids: RequestIds,
        traces: Traces,
        is_draining: Callable[[], bool],
    ) -> None:
        self._embeddings = embeddings
        self._fast_path = fast_path
        self._log = log
        self._ids = ids
        self._traces = traces
        self._is_draining = is_draining

    def knows_head(self, sent: bytes) -> bool:
        """Whether these bytes are the head of a request that `handle_bytes` may respond to once its body is here."""
        return self._fast_path.begins(sent)

    def handle_bytes(self, sent: bytes, connection: Connection) -> Response | LongResponse | ResponseLater | None:
        """The response to a request whose bytes or whose head are those of an earlier one; None: it must be parsed."""
        if self._is_draining():
            return None
        started_s = time.perf_counter()
        if len(sent) > LONG_BYTES and self._fast_path.is_for_later(sent, connection):
            return self._recognize(sent, connection, started_s)
        try:
            found = self._fast_path.find_by_bytes(sent, connection, started_s)
            if isinstance(found, RecognizedRequest):
                return self._look_up(found, connection, started_s)
            return None if found is None else self._hit(found, connection, started_s)
        except Exception:  # noqa: BLE001 - the request is parsed instead
            _log.exception("unexpected error in the fast path")
            return None

    async def _recognize(self, sent: bytes, connection: Connection, started_s: float) -> Response | LongResponse | None:
        """The same for a long request."""
        try:
            found = await self._fast_path.recognize(sent, connection, started_s)
        except Exception:  # noqa: BLE001 - the request is parsed instead
            _log.exception("unexpected error in the fast path")
            return None
        return None if found is None else await self._look_up(found, connection, started_s)

    async def _look_up(
        self, recognized: RecognizedRequest, connection: Connection, started_s: float
    ) -> Response | LongResponse | None:
        """The same for items that are many, or not all in memory."""
        try:
            found = await self._fast_path.look_up(recognized, connection)
            if isinstance(found, FastPathMiss):
                return await self._miss(found, connection, started_s)
            return None if found is None else self._hit(found, connection, started_s)
        except Overloaded:
            return None  # a parsed request needs less memory for its response
        except Exception:  # noqa: BLE001 - the request is parsed instead
            _log.exception("unexpected error in the fast path")
            return None

    def _hit(self, hit: FastPathHit, connection: Connection, started_s: float) -> Response | LongResponse:
        request_id = self._ids.of(hit.fields.get("x-request-id"))
        response = self._fast_path.response(hit, request_id)
        connection.tenant = hit.known.tenant
        progress = self._begin(request_id, hit.fields, started_s)
        progress.hit(hit)
        self._embeddings.observe(progress, started_s)
        self._ended(progress, hit.fields, _OK, started_s)
        return response

    async def _miss(
        self, miss: FastPathMiss, connection: Connection, started_s: float
    ) -> Response | LongResponse | None:
        """None: the request is parsed, and its handler takes the response. There is no await before
        ``connection.begun`` is set, so the request can't be begun twice."""
        fields = miss.recognized.fields
        progress = self._begin(self._ids.of(fields.get("x-request-id")), fields, started_s)
        connection.tenant = miss.recognized.known.tenant
        exchange = self._embeddings.begin_unparsed(miss, progress, started_s=started_s)

        def end(status: int) -> None:
            self._embeddings.end(exchange, status)
            self._ended(progress, fields, status, started_s)

        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - in a coroutine
        connection.begun = begun = BegunExchange(exchange, task, lambda: end(CLIENT_LEFT))
        response = await begun.run(self._embeddings.respond_unparsed(exchange, miss))
        if response is None or self._is_draining():
            return None
        # The only request field that matters here is Origin, and requests with Origin are always parsed.
        finish_head(response, _NO_FIELDS, upstream=progress.origin, request_id=progress.request_id)
        written = parts_of(response) or long_response_of(response)
        if written is not None:
            connection.take_begun()
            end(response.status)
        return written

    def _begin(self, request_id: str, fields: Mapping[str, str], started_s: float) -> Progress:
        progress = Progress(request_id)
        progress.span = self._traces.begin("POST", CIMultiDict(fields) if fields else _NO_FIELDS, started_s)
        progress.span.on_route(EMBEDDINGS_ROUTE)
        return progress

    def _ended(self, progress: Progress, fields: Mapping[str, str], status: int, started_s: float) -> None:
        trace = progress.span.trace_id or trace_id(fields.get("traceparent"))
        self._log.ended(progress, trace, status, started_s)
