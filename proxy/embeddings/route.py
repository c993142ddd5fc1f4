"""The cached route: one request from its body to its response, read from `EmbeddingsRoute.handle` down."""

import time
from collections.abc import Callable
from http import HTTPStatus

from aiohttp.web import BaseRequest, StreamResponse

from proxy.access.admission import Access
from proxy.access.validations import Validations
from proxy.cache.cache import Cache
from proxy.canary.canary import Canary
from proxy.canary.subject import Subject
from proxy.embeddings.bypass import BypassRelay
from proxy.embeddings.fast_path import FastPath
from proxy.embeddings.log_once import LogOnce, reason_of
from proxy.embeddings.no_hits import NoHits
from proxy.embeddings.patience import NO_PATIENCE, Patience
from proxy.embeddings.progress import Progress
from proxy.embeddings.reader import Reader, Unread
from proxy.embeddings.request_detail import detail_of
from proxy.embeddings.resolver import Outcome, Resolver
from proxy.embeddings.responses import ResponseBuilder, finish_head
from proxy.errors import ProxyError
from proxy.fetch.fetcher import Fetcher
from proxy.fetch.request import ClientRequest
from proxy.http.bodies import BodyReader, BodyReservation
from proxy.http.connection import Connection
from proxy.http.streamed import Streamed
from proxy.labels import RequestOutcome
from proxy.ledger.cause import Cause, Why
from proxy.protocol.identities import Identity
from proxy.telemetry.metrics import Metrics
from proxy.upstream.router import Router

CLIENT_LEFT = 499  # nginx's status for a client that disconnected before the response


class EmbeddingsRoute:
    def __init__(
        self,
        cache: Cache,
        fetcher: Fetcher,
        origins: Router,
        *,
        bodies: BodyReader,
        responses: ResponseBuilder,
        fast_path: FastPath,
        metrics: Metrics,
        access: Access,
        validations: Validations,
        patience: Patience = NO_PATIENCE,
        canary: Canary | None = None,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._bodies = bodies
        self._patience = patience
        self._canary = canary
        self._responses = responses
        epochs = {} if canary is None else {"epoch_of": canary.epochs.of}
        self._reader = Reader(origins, access, validations, bodies, **epochs)
        self._access = access
        self._fast_path = fast_path
        self._log_once = LogOnce()
        self.no_hits = NoHits(fast_path.hitless, metrics, self._log_once)
        self._resolver = Resolver(
            cache,
            fetcher,
            responses=responses,
            fast_path=fast_path,
            metrics=metrics,
            access=access,
            validations=validations,
            log_once=self._log_once,
            no_hits=self.no_hits,
        )
        self._bypass = BypassRelay(metrics, validations, self._log_once, fetcher.spending, is_draining=is_draining)
        self._spending = fetcher.spending
        self._metrics = metrics
        self._parse_seconds = metrics.stage_seconds["parse"]
        self._in_flight = 0
        metrics.requests_in_flight.set_function(lambda: self._in_flight)
        self._is_draining = is_draining

    async def handle(self, request: BaseRequest, progress: Progress) -> StreamResponse:
        """Respond to ``POST …/embeddings``. Raises `ProxyError`."""
        started_s = time.perf_counter()
        status = CLIENT_LEFT
        own = self._access.identity(request.headers, request.raw_path)
        progress.client = self._access.client(own, progress.admission)
        reservation = self._bodies.reserve(self._access.tenant(own, progress.admission))
        if isinstance(request.protocol, Connection):
            request.protocol.tenant = reservation.tenant
        self._in_flight += 1
        try:
            progress.outcome, response = await self._respond(request, reservation, own, progress)
            if isinstance(response, Streamed):
                finish_head(response, request, upstream=progress.origin, request_id=progress.request_id)
                if self._is_draining():
                    response.force_close()
                await response.send(request)
            status = response.status
        except Exception as error:
            status = status_of_error(error)
            raise
        finally:
            self._in_flight -= 1
            reservation.end_request()
            self.count(progress, status, started_s)
            self.no_hits.ended(progress, reservation.tenant.name, own, request.headers.get("User-Agent"))
        return response

    def count(self, progress: Progress, status: int, started_s: float) -> None:
        """Count a request that began at ``started_s`` and has ended."""
        self._metrics.of_model(progress.model).count_request(progress.outcome, status)
        row = self._metrics.row(progress.client, progress.model)
        row.count_request(progress.outcome, held_s=progress.held_s)
        progress.client_label = row.client
        self.time(progress, started_s)

    def time(self, progress: Progress, started_s: float) -> None:
        """Note how long a request took that has ended, and the model by which it was counted."""
        progress.model_label = self._metrics.label_of(progress.model)
        self._metrics.request_seconds[progress.outcome].observe(time.perf_counter() - started_s)

    async def _respond(
        self, request: BaseRequest, reservation: BodyReservation, own: Identity, progress: Progress
    ) -> Outcome:
        sent = await self._bodies.read(request, reservation)
        began_s = time.perf_counter()
        sighting = self._fast_path.sight(
            request, own, sent.content, keys_version=progress.admission.keys_version, client=progress.client
        )
        hit = None if sighting is None else self._fast_path.find(sighting, began_s)
        if hit is not None:
            progress.hit(hit)
            spec, found = hit.known.spec, hit.found
            response = self._responses.hit(
                spec, found, progress.client, from_memory=len(found), reservation=reservation
            )
            return RequestOutcome.HIT, response
        read = await self._reader.read(request, sent, own, reservation, client=progress.client, span=progress.span)
        progress.origin = read.origin
        progress.detail = detail_of(read)
        if isinstance(read, Unread):
            progress.model, progress.items = read.model, read.items
            progress.why = Why(Cause.of(read.bypass.reason, read.bypass.field), "")
            response = await self._bypass.relay(request, progress, sent.content, read)
            progress.cache_status = response.headers.getall("Cache-Status", ("",))[-1]
            return RequestOutcome.BYPASS, response
        progress.model = read.spec.model
        doubt = read.parsed.doubt
        if doubt is not None:
            progress.why = Why(Cause.of(doubt.reason, doubt.field), "")
            self._metrics.whole_bodies.labels(doubt.reason.value).inc()
            self._log_once.warn(reason_of(doubt), f"requests to {read.origin.name} are cached by their whole body")
        parsed_s = time.perf_counter()
        self._parse_seconds.observe(parsed_s - began_s)
        self._patience.apply(read)
        try:
            outcome, response = await self._resolver.respond(read, sighting, progress, parsed_s)
        finally:
            progress.held_s = read.held_s
        progress.cache_status = response.headers.getall("Cache-Status", ("",))[-1]  # after those of other caches
        if self._canary is not None and response.status == HTTPStatus.OK:
            self._canary.in_use.note(_subject(read))
        if read.held_s:
            response.headers["X-RateLimit-Wait-Ms"] = str(round(read.held_s * 1000))
        client = self._spending.label_of(read.client)
        if (left := self._spending.remaining_tokens(client, read.spec.model)) is not None:
            response.headers["X-Budget-Remaining-Tokens"] = str(left)
        return outcome, response


def _subject(read: ClientRequest) -> Subject:
    """What the canary checks in place of a request."""
    return Subject(read.origin.name, read.credential_scope.url, read.parsed.model, read.spec.model)


def status_of_error(error: Exception) -> int:
    """The status that is counted for a request that failed with ``error``, even if its response had begun."""
    if isinstance(error, ProxyError):
        return error.status
    return CLIENT_LEFT if isinstance(error, ConnectionError) else ProxyError.status
