"""The cached route: one request from its body to its response, read from `EmbeddingsRoute.handle` down."""

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp.web import BaseRequest, StreamResponse

from proxy.access.access import Access
from proxy.access.validations import Validations
from proxy.cache.cache import Cache
from proxy.canary.canary import Canary
from proxy.canary.epochs import FIRST_EPOCH
from proxy.canary.subject import Subject
from proxy.embeddings.bypass import BypassRelay
from proxy.embeddings.exchange import BegunExchange, Exchange
from proxy.embeddings.fast_path import FastPath
from proxy.embeddings.hitless_report import HitlessReport
from proxy.embeddings.log_once import LogOnce, reason_of
from proxy.embeddings.lookup import Lookup
from proxy.embeddings.patience import Patience
from proxy.embeddings.progress import Progress
from proxy.embeddings.reader import BypassedRequest, Reader
from proxy.embeddings.recognized import FastPathMiss
from proxy.embeddings.request_detail import detail_of
from proxy.embeddings.resolver import Resolver
from proxy.embeddings.response_head import finish_head
from proxy.embeddings.responses import ResponseBuilder
from proxy.embeddings.sighting import Sighting
from proxy.errors import CLIENT_LEFT, counted_status
from proxy.fetch.fetcher import Fetcher
from proxy.fetch.request import ClientRequest
from proxy.http.bodies import BodyReader
from proxy.http.connection import Connection
from proxy.http.streamed import Streamed
from proxy.labels import RequestOutcome
from proxy.ledger.cause import Cause, Why
from proxy.protocol.bypass import Bypass
from proxy.protocol.identities import Identity
from proxy.telemetry.metrics import Metrics
from proxy.tenant import Tenant
from proxy.turns import are_many, turn
from proxy.upstream.router import Origin, Router

_FETCHED = frozenset({RequestOutcome.MISS, RequestOutcome.PARTIAL})


class EmbeddingsRoute:
    """Requests that the parser has read come to `handle`. `proxy.embeddings.unparsed` calls `begin_unparsed`,
    `respond_unparsed` and `end` for the others; if one has to be parsed meanwhile, it comes to `adopt`."""

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
        patience: Patience,
        canary: Canary | None,
        is_draining: Callable[[], bool],
    ) -> None:
        self._bodies = bodies
        self._patience = patience
        self._canary = canary
        self._responses = responses
        epoch_of = FIRST_EPOCH if canary is None else canary.epochs.of
        self._reader = Reader(origins, access, validations, bodies, epoch_of=epoch_of)
        self._access = access
        self._fast_path = fast_path
        self._log_once = LogOnce()
        self.hitless_report = HitlessReport(fast_path.hitless, metrics, self._log_once)
        self._resolver = Resolver(
            cache,
            fetcher,
            responses=responses,
            fast_path=fast_path,
            metrics=metrics,
            access=access,
            validations=validations,
            log_once=self._log_once,
            hitless_report=self.hitless_report,
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
        own = self._access.identity(request.headers, request.raw_path)
        progress.client = self._access.client(own, progress.admission)
        tenant = self._access.tenant(own, progress.admission)
        if isinstance(request.protocol, Connection):
            request.protocol.tenant = tenant
        agent = request.headers.get("User-Agent")
        exchange = self._begin(progress, own, tenant, user_agent=agent, started_s=started_s)
        return await self._deliver(exchange, request, self._respond(request, exchange))

    async def adopt(self, request: BaseRequest, begun: BegunExchange) -> StreamResponse:
        """`handle` for a request that was begun by `begin_unparsed`, and then parsed after all."""
        return await self._deliver(begun.exchange, request, begun.take())

    def begin_unparsed(self, miss: FastPathMiss, progress: Progress, *, started_s: float) -> Exchange:
        """Begin a request that is not parsed. The caller calls `respond_unparsed` and `end`, or `adopt`."""
        known_body = miss.recognized.known_body
        progress.client, agent = known_body.client, known_body.user_agent
        return self._begin(
            progress, known_body.own, miss.recognized.known.tenant, user_agent=agent, started_s=started_s
        )

    def _begin(
        self, progress: Progress, own: Identity, tenant: Tenant, *, user_agent: str | None, started_s: float
    ) -> Exchange:
        exchange = Exchange(progress, own, self._bodies.reserve(tenant), user_agent=user_agent, started_s=started_s)
        self._in_flight += 1
        return exchange

    def end(self, exchange: Exchange, status: int) -> None:
        """Count a request when its response is complete or it has failed. A streamed response has been sent by then."""
        progress, reservation = exchange.progress, exchange.reservation
        self._in_flight -= 1
        reservation.release()
        self.count(progress, status, exchange.started_s)
        self.hitless_report.ended(progress, reservation.tenant.name, exchange.own, exchange.user_agent)

    async def _deliver(
        self, exchange: Exchange, request: BaseRequest, responding: Awaitable[StreamResponse]
    ) -> StreamResponse:
        status, progress = CLIENT_LEFT, exchange.progress
        try:
            response = await responding
            if isinstance(response, Streamed):
                finish_head(response, request.headers, upstream=progress.origin, request_id=progress.request_id)
                if self._is_draining():
                    response.force_close()
                await response.send(request)
            status = response.status
        except Exception as error:
            status = counted_status(error)
            raise
        finally:
            self.end(exchange, status)
        return response

    def count(self, progress: Progress, status: int, started_s: float) -> None:
        """Count a request that began at ``started_s`` and has ended."""
        self._metrics.of_model(progress.model).count_request(progress.outcome, status)
        row = self._metrics.row(progress.client, progress.model)
        row.count_request(progress.outcome, held_s=progress.held_s)
        progress.client_label = row.client
        self.observe(progress, started_s)

    def observe(self, progress: Progress, started_s: float) -> None:
        """Record how long a request took, and the label of its model."""
        progress.model_label = self._metrics.label_of(progress.model)
        self._metrics.request_seconds[progress.outcome].observe(time.perf_counter() - started_s)

    async def _respond(self, request: BaseRequest, exchange: Exchange) -> StreamResponse:
        progress, reservation, own = exchange.progress, exchange.reservation, exchange.own
        sent = await self._bodies.read(request, reservation)
        began_s = time.perf_counter()
        sighting = await self._fast_path.sight(
            request, own, sent.content, access_version=progress.admission.access_version, client=progress.client
        )
        hit = None if sighting is None else await self._fast_path.find(sighting, began_s)
        if hit is not None:
            progress.hit(hit)
            spec, found = hit.known.spec, hit.found
            return self._responses.hit(spec, found, progress.client, from_memory=len(found), reservation=reservation)
        read = await self._reader.read(request, sent, own, reservation, client=progress.client, span=progress.span)
        progress.origin = read.origin
        progress.detail = detail_of(read)
        if isinstance(read, BypassedRequest):
            return await self._relay(request, sent.content, read, progress)
        if read.parsed.doubt is not None:
            self._note_doubt(read.parsed.doubt, read.origin, progress)
        parsed_s = time.perf_counter()
        self._parse_seconds.observe(parsed_s - began_s)
        response = await self._resolve(read, progress, parsed_s, sighting=sighting)
        if sighting is not None and progress.outcome in _FETCHED:
            if are_many(read.spec.keys):
                await turn()  # the response has one of its own
            self._fast_path.fetched(sighting, read)
        return response

    def _note_doubt(self, doubt: Bypass, origin: Origin, progress: Progress) -> None:
        progress.why = Why(Cause.of(doubt.reason, doubt.field), "")
        self._metrics.whole_bodies.labels(doubt.reason.value).inc()
        self._log_once.warn(reason_of(doubt), f"requests to {origin.name} are cached by their whole body")

    async def _relay(
        self, request: BaseRequest, body: bytes, bypassed: BypassedRequest, progress: Progress
    ) -> StreamResponse:
        progress.model, progress.items = bypassed.model, bypassed.items
        progress.why = Why(Cause.of(bypassed.bypass.reason, bypassed.bypass.field), "")
        response = await self._bypass.relay(request, progress, body, bypassed)
        progress.cache_status = response.headers.getall("Cache-Status", ("",))[-1]
        progress.outcome = RequestOutcome.BYPASS
        return response

    async def respond_unparsed(self, exchange: Exchange, miss: FastPathMiss) -> StreamResponse:
        """The response to a request that was not parsed. Raises `ProxyError`."""
        progress, reservation, recognized = exchange.progress, exchange.reservation, miss.recognized
        self._bodies.received(recognized.body, recognized.texts_bytes, reservation)
        client_request = recognized.client_request(reservation, progress.span)
        progress.origin = client_request.origin
        known_body = recognized.known_body
        progress.detail = known_body.detail = known_body.detail or detail_of(client_request)
        return await self._resolve(client_request, progress, recognized.looked_up_s, found=miss.found)

    async def _resolve(
        self,
        client_request: ClientRequest,
        progress: Progress,
        parsed_s: float,
        *,
        sighting: Sighting | None = None,
        found: Lookup | None = None,
    ) -> StreamResponse:
        """The response to an understood request. ``found`` is the result of its lookup; None: not looked up yet."""
        progress.model = client_request.spec.model
        client_request.limit_wait = self._patience.of(client_request.received, len(client_request.spec.keys))
        found = found or await self._resolver.look_up(client_request)
        try:
            progress.outcome, response = await self._resolver.respond(
                client_request, found, sighting, progress, parsed_s
            )
        finally:
            progress.held_s = client_request.limit_wait.held_s
        progress.cache_status = response.headers.getall("Cache-Status", ("",))[-1]  # after those of other caches
        if self._canary is not None and response.status == HTTPStatus.OK:
            self._canary.in_use.note(_subject(client_request))
        if client_request.limit_wait.held_s:
            response.headers["X-RateLimit-Wait-Ms"] = str(round(client_request.limit_wait.held_s * 1000))
        left = self._spending.remaining_tokens(client_request.client, client_request.spec.model)
        if left is not None:
            response.headers["X-Budget-Remaining-Tokens"] = str(left)
        return response


def _subject(read: ClientRequest) -> Subject:
    """What the canary checks in place of a request."""
    return Subject(read.origin.name, read.credential.scope.url, read.parsed.model, read.spec.model)
