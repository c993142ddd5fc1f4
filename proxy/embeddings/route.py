"""The request path of the cached route: one way, read from `EmbeddingsRoute.handle` down."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from aiohttp.web import BaseRequest, StreamResponse
from multidict import CIMultiDict

from proxy.access.admission import Access, Admission
from proxy.access.validations import CREDENTIAL_REFUSALS, CredentialId, CredentialScope, Validations
from proxy.budget import Tenant
from proxy.cache.cache import Cache
from proxy.cache.memory import Entry, standing
from proxy.embeddings.fast_path import FastPath, FastPathHit, epochs
from proxy.embeddings.header_watch import MANY_VALUES, HeaderWatch
from proxy.embeddings.plan import Plan, plan
from proxy.embeddings.reader import Reader, Unread
from proxy.embeddings.request_memo import MemoEntry, ResponseSpec
from proxy.embeddings.responses import ResponseBuilder, cache_headers, finish_head, relayed
from proxy.embeddings.revalidation import Revalidator
from proxy.errors import CredentialRefused, KeyRefused, NotCached, ProxyError
from proxy.fetch.fetcher import NOTHING, Failure, Fetcher, FetchRequest, FetchResult
from proxy.fetch.outcomes import Blame, ErrorResponse, InvalidResponse, blame, in_own_words, is_success, status_of
from proxy.http.bodies import BodyReader, BodyReservation
from proxy.http.connection import Connection
from proxy.http.streamed import Streamed
from proxy.passthrough.relay import relay
from proxy.protocol import headers, keys, tokens
from proxy.protocol.bypass import Bypass
from proxy.protocol.cors import origin_of
from proxy.protocol.directives import NO_DIRECTIVES, Directives, cache_control
from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.identities import Identity
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import NO_SPAN, Span
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.router import Origin, Router

_log = logging.getLogger(__name__)

# How long requests for stored items wait for the upstream to say what their credential is worth.
_PATIENCE_S = 2.0
CLIENT_LEFT = 499  # as nginx counts it: nobody was there to be answered
_MAX_SAID = 256
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_NOT_THERE = frozenset({404, 405})


class RequestContext(NamedTuple):
    """One understood request on its way through."""

    request: BaseRequest
    reservation: BodyReservation
    origin: Origin
    target: str  # as the origin is to see it
    url: str
    asked: EmbeddingRequest
    directives: Directives
    identity: Identity
    credential_id: CredentialId
    credential_scope: CredentialScope
    spec: ResponseSpec
    span: Span


class Progress:
    """What is known of one request under way, for those who count and log it."""

    __slots__ = ("admission", "cached", "items", "model", "origin", "outcome", "request_id", "span")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.origin: Origin | None = None  # the upstream that it is for
        self.admission = Admission()
        self.outcome = "error"
        self.model: str | None = None  # as the client wrote it; once it is answered, as it may be shown
        self.items = 0
        self.cached = 0  # of the items
        self.span: Span = NO_SPAN

    def repeated(self, repeat: FastPathHit) -> None:
        """It is a request that came again."""
        self.outcome = "hit"
        known = repeat.known
        self.origin = known.origin
        self.model = known.spec.model
        self.items = self.cached = len(known.spec.keys)
        self.span.looked_up(repeat.looked_up_s, items=self.items, cached=self.cached)


class EmbeddingsRoute:
    def __init__(
        self,
        cache: Cache,
        fetcher: Fetcher,
        origins: Router,
        *,
        bodies: BodyReader,
        responses: ResponseBuilder,
        repeats: FastPath,
        metrics: Metrics,
        access: Access,
        validations: Validations,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._bodies = bodies
        self._answers = responses
        self._reader = Reader(origins, access, bodies)
        self._access = access
        self._validations = validations
        self._sentinels = Revalidator(fetcher, metrics)
        self._repeats = repeats
        self._metrics = metrics
        self._stages = metrics.stage_seconds
        self._in_flight = 0
        metrics.requests_in_flight.set_function(lambda: self._in_flight)
        self._is_draining = is_draining
        self._said: set[tuple[str, str]] = set()
        self._header_watch = HeaderWatch()

    async def handle(self, request: BaseRequest, progress: Progress) -> StreamResponse:
        """Answer ``POST …/embeddings``. Raises `ProxyError`."""
        started = time.perf_counter()
        status = CLIENT_LEFT
        own = self._access.identity(request.headers, request.raw_path)
        reservation = self._bodies.reserve(self._access.tenant(own, progress.admission))
        if isinstance(request.protocol, Connection):
            request.protocol.tenant = reservation.tenant
        self._in_flight += 1
        try:
            progress.outcome, response = await self._serve(request, reservation, own, progress)
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
            reservation.release()
            self.count(progress, status, started)
        return response

    def count(self, progress: Progress, status: int, started_s: float) -> None:
        """A request that began at ``started_s`` has been answered, or left."""
        self._metrics.of_model(progress.model).answered(progress.outcome, status)
        progress.model = self._metrics.label_of(progress.model)
        self._metrics.request_seconds[progress.outcome].observe(time.perf_counter() - started_s)

    async def _serve(
        self, request: BaseRequest, reservation: BodyReservation, own: Identity, progress: Progress
    ) -> tuple[str, StreamResponse]:
        sent = await self._bodies.read(request, reservation)
        began_s = time.perf_counter()
        mark = self._repeats.mark(request, own, sent.content)
        repeat = (
            self._repeats.answer(request, mark, began_s, keys_version=progress.admission.keys_version) if mark else None
        )
        if repeat is not None:
            progress.repeated(repeat)
            return "hit", self._answers.hit(
                repeat.known.spec, repeat.found, from_memory=len(repeat.found), reservation=reservation
            )
        read = await self._reader.read(request, sent, own, reservation)
        origin = progress.origin = read.origin
        progress.model = read.model
        credential_id = self._validations.credential_id(reservation.tenant.name, origin, read.own)
        if isinstance(read, Unread):
            progress.items = read.items
            return "bypass", await self._bypass(request, progress, credential_id, sent.content, read)
        asked = read.asked
        if asked.doubt is not None:
            self._metrics.whole_bodies.labels(asked.doubt.reason).inc()
            self._say_once(_named(asked.doubt), f"requests to {origin.name} are cached by their whole body")
        context = RequestContext(
            request,
            reservation,
            origin,
            read.target,
            read.url,
            asked,
            cache_control(request.headers),
            read.identity,
            credential_id,
            CredentialScope(read.keyed_url, asked.model),
            ResponseSpec(
                read.model,
                asked.encoding,
                read.keys,
                origin.provider.responses_have_id,
                is_keyed_whole=asked.is_keyed_whole,
            ),
            progress.span,
        )
        parsed_s = time.perf_counter()
        self._stages["parse"].observe(parsed_s - began_s)
        return await self._look_up(context, mark, progress, parsed_s)

    async def _look_up(
        self, context: RequestContext, mark: bytes | None, progress: Progress, parsed_s: float
    ) -> tuple[str, StreamResponse]:
        min_stored_at_s = self._cache.freshness_cutoff_s(context.directives.max_age_s)
        # While everything is in memory there is no await between here and the answer.
        found = (
            {}
            if context.directives.no_cache
            else self._cache.peek(context.spec.keys, min_stored_at_s=min_stored_at_s, confirmed=True)
        )
        from_memory = len(found)
        to_do = plan(context.spec.keys, found)
        if to_do.missing and not context.directives.no_cache:
            missing = [context.spec.keys[i] for i in to_do.missing]
            stored = await self._cache.read(missing, min_stored_at_s=min_stored_at_s)
            # While the store was read, a flight may have brought more; `Fetcher.fetch` counts on this look.
            found |= stored | self._cache.peek(missing, min_stored_at_s=min_stored_at_s)
            from_memory = len(found) - len(stored)
            to_do = plan(context.spec.keys, found)
        if context.asked.is_keyed_whole and to_do.missing:
            found, from_memory, to_do = {}, 0, plan(context.spec.keys, ())
        if found:  # of another process's life, perhaps
            self._metrics.admit_model(context.spec.model)
        self._stages["lookup"].observe(time.perf_counter() - parsed_s)
        self._watch_headers(context, is_hit=bool(found))
        is_moved = epochs(found) > 1
        if is_moved:
            found, to_do = {}, plan(context.spec.keys, ())
        progress.items, progress.cached = len(context.spec.keys), len(context.spec.keys) - len(to_do.missing)
        progress.span.looked_up(parsed_s, items=progress.items, cached=progress.cached)
        is_valid, is_shared = self._is_valid(context), self._access.is_shared_scope(context.identity)
        if not to_do.missing and is_valid:
            if mark is not None and from_memory == len(found):
                self._repeats.remember(
                    mark,
                    MemoEntry(
                        context.spec,
                        context.credential_id,
                        context.credential_scope,
                        context.origin,
                        Tenant(context.credential_id.tenant),
                    ),
                )
            return "hit", self._answers.hit(
                context.spec, found, from_memory=from_memory, reservation=context.reservation
            )
        if context.directives.only_if_cached:
            if not is_valid and (is_shared or not to_do.missing):  # a stranger does not learn what others have cached
                raise NotCached("The upstream has not accepted this credential of late, so it gets no cached items.")
            raise NotCached(f"{len(to_do.missing)} of {len(context.spec.keys)} items are not cached.")
        # What is fetched anew anyway needs no question.
        is_refresh = is_moved or context.directives.no_cache
        is_refused = self._validations.is_refused(context.credential_id, context.credential_scope)
        if not is_valid and not is_refresh and (is_shared or not to_do.missing or (found and is_refused)):
            return await self._ask_first(context, to_do, found, from_memory)
        return await self._fetch_and_answer(context, found, from_memory, refresh=is_moved)

    def _watch_headers(self, context: RequestContext, *, is_hit: bool) -> None:
        if is_hit:
            self._header_watch.hit(context.identity, context.asked.model)
        elif context.directives == NO_DIRECTIVES:
            for name in self._header_watch.missed(context.identity, context.asked.model):
                self._metrics.varying_header(name, MANY_VALUES)
                self._say_once(
                    f"{MANY_VALUES} values of {name} from one credential for one model, and no hit; if it does not"
                    f" change the vector, set --neutral-headers {name}",
                    "a header field that is part of the key costs hits",
                )

    def _is_valid(self, context: RequestContext) -> bool:
        is_good = self._access.may_serve(context.credential_id, context.credential_scope)
        return is_good and self._access.may_read(context.origin, context.request.headers)

    async def _ask_first(
        self, context: RequestContext, to_do: Plan, found: dict[bytes, Entry], from_memory: int
    ) -> tuple[str, StreamResponse]:
        """Nobody knows what this credential is worth now: the upstream shall say, by the request's smallest item.

        Entries in a credential's own scope are there because the upstream once accepted it. So while it says nothing,
        these are served; entries in a scope that is shared are not.
        """
        errand = self._smallest(context, to_do)
        is_shared = self._access.is_shared_scope(context.identity)
        timeout_s = None if is_shared or to_do.missing else _PATIENCE_S
        said = await self._sentinels.ask((context.credential_id, context.credential_scope), errand, timeout_s=timeout_s)
        found = standing(found)
        failure = None if said is None else said.fetched.failure
        is_unusable = failure is not None and failure.confirms
        if said is None or (failure is not None and not is_unusable):
            return await self._answer_unvalidated(context, errand, failure, found, from_memory)
        if failure is not None and to_do.missing and errand.is_whole:
            return await self._answer_failure(context, errand, failure)  # the response to this very body
        fetched = replace(said.fetched, failure=None)
        is_confirmed = is_unusable or fetched.is_by_origin
        first = fetched if said.is_own else NOTHING
        if not is_confirmed and (
            is_shared or self._validations.is_refused(context.credential_id, context.credential_scope)
        ):
            # Who stands in can't vouch for what the upstream itself was paid for, by others or before it refused.
            return await self._fetch_and_answer(context, {}, 0, refresh=False, is_private=True, first=first.bill)
        if epochs(found, fetched.entries) > 1:
            return await self._fetch_and_answer(context, {}, 0, refresh=True, first=first.bill)
        if not to_do.missing:
            return "hit", self._answers.hit(
                context.spec,
                found,
                from_memory=from_memory,
                reservation=context.reservation,
                deliveries=first.deliveries,
                detail="validated",
            )
        # `Fetcher.fetch` counts on a look into memory since the last await.
        there = self._cache.peek([context.spec.keys[i] for i in to_do.missing], min_stored_at_s=errand.min_stored_at_s)
        first = replace(first, entries=there | first.entries)
        return await self._fetch_and_answer(context, found, from_memory, refresh=False, first=first)

    async def _answer_unvalidated(
        self,
        context: RequestContext,
        errand: FetchRequest,
        failure: Failure | None,
        found: dict[bytes, Entry],
        from_memory: int,
    ) -> tuple[str, StreamResponse]:
        """What a credential gets that the upstream has not vouched for: it failed, or said nothing in time."""
        is_refusal = failure is not None and failure.is_verdict
        if failure is not None and failure.is_answer and found.keys() >= set(errand.keys):
            self._validations.refuse(
                context.credential_id, context.credential_scope
            )  # it accepted the credential for just this before
        if failure is not None and (
            self._access.is_shared_scope(context.identity) or is_refusal or blame(failure.cause) is Blame.CALL
        ):
            return await self._answer_failure(context, errand, failure)
        if self._validations.is_refused(context.credential_id, context.credential_scope):  # no answer is no permission
            if failure is not None:
                return await self._answer_failure(context, errand, failure)
            raise CredentialRefused("The upstream refused this API key, and has not accepted it since.")
        return "hit", self._answers.hit(
            context.spec, found, from_memory=from_memory, reservation=context.reservation, detail="unvalidated"
        )

    def _smallest(self, context: RequestContext, to_do: Plan) -> FetchRequest:
        """An errand for the item that costs least: of the missing ones, or if none is, one that is stored."""
        asked = context.asked
        places = to_do.missing or range(len(asked.items))
        credential_scope = min(places, key=lambda i: tokens.weight(asked.kind, asked.items[i]))
        errand = self._errand(context, plan(context.spec.keys, ()), refresh=False).only(
            [context.spec.keys[credential_scope]]
        )
        return replace(errand, is_shared=False, is_stored=errand.is_stored and bool(to_do.missing))

    async def _bypass(
        self, request: BaseRequest, progress: Progress, credential_id: CredentialId, body: bytes, unread: Unread
    ) -> StreamResponse:
        origin, reason = unread.origin, unread.bypass.reason
        if cache_control(request.headers).only_if_cached:
            raise NotCached(f"The request is one that is not cached ({reason}).")
        self._say_once(_named(unread.bypass), f"requests to {origin.name} are relayed without caching")
        extra = cache_headers("BYPASS", f"fwd=bypass; detail={reason}", saved_tokens=0)
        target = origin.target(request.raw_path)
        route = origin.routes.find(target)
        url = route.url if route else origin.routes.embeddings(target)
        with (
            progress.span.calls(model=lambda: self._metrics.label_of(progress.model)) as calls,
            calls.call("POST", url, upstream=origin.name, provider=origin.provider.name, items=progress.items) as call,
        ):
            response = await relay(
                request,
                origin.client,
                url,
                call.outbound(origin.outbound(headers.to_upstream(request.headers))),
                request_id=progress.request_id,
                body=body,
                extra_headers=extra,
                is_draining=self._is_draining,
                owns_key=bool(origin.key),
                on_head=partial(origin.cors.relayed, origin_of(request.headers)),
            )
            call.answered(response.status)
        self._metrics.bypasses.labels(reason).inc()
        self._metrics.of_model(progress.model).items["bypass"].inc(progress.items)
        if response.status in CREDENTIAL_REFUSALS:
            self._validations.note(credential_id, CredentialScope(url, None), response.status)
        elif is_success(response.status):
            self._validations.accept(credential_id.tenant)
        return response

    # --- up

    async def _fetch_and_answer(
        self,
        context: RequestContext,
        found: dict[bytes, Entry],
        from_memory: int,
        *,
        refresh: bool,
        is_private: bool = False,
        first: FetchResult = NOTHING,
    ) -> tuple[str, StreamResponse]:
        """Fetch what was neither ``found`` nor has come ``first``; ``is_private``: for this client alone."""
        to_do = plan(context.spec.keys, found.keys() | first.settled)
        errand = self._errand(context, to_do, refresh=refresh)
        if is_private:
            errand = replace(errand, is_shared=False, is_stored=False)
        fetched = (await self._fetcher.fetch(errand) if to_do.missing else NOTHING).after(first)
        found = standing(found)
        if fetched.failure is None and epochs(found, fetched.entries) > 1:
            # The upstream now serves other weights under the same name. One answer must not mix the two, and what
            # is stored is out of date.
            found = {}
            errand = self._errand(context, plan(context.spec.keys, ()), refresh=True)
            fetched = (await self._fetcher.fetch(errand)).after(fetched.bill)
        if fetched.failure is not None:
            return await self._answer_failure(context, errand, fetched.failure)
        entries = found | fetched.entries
        if epochs(entries) > 1 or not entries:  # it serves two versions by turns, or nothing that can be stored
            return self._relayed(context, await self._fetcher.replay(errand))
        if not (fetched.deliveries or fetched.unusable or self._is_valid(context)):
            # All of it was in the store after all, or in the flight of another replica.
            return await self._ask_first(context, plan(context.spec.keys, entries), entries, from_memory)
        return ("partial" if found else "miss"), self._answers.fetched(
            context.spec,
            found,
            fetched,
            from_memory=from_memory,
            reservation=context.reservation,
            is_stored=errand.is_stored,
        )

    def _errand(self, context: RequestContext, to_do: Plan, *, refresh: bool) -> FetchRequest:
        directives = context.directives
        group = keys.group(
            context.asked,
            url=context.url,
            credentials=context.identity.credentials,
            vector_headers=context.identity.vector_affecting,
            page=origin_of(context.request.headers),
        )
        return FetchRequest(
            asked=context.asked,
            origin=context.origin,
            target=context.target,
            headers=_as_plain(headers.to_upstream(context.request.headers)),
            group=group,
            tenant=context.reservation.tenant,
            reservation=context.reservation,
            credential_id=context.credential_id,
            credential_scope=context.credential_scope,
            keys=[context.spec.keys[i] for i in to_do.missing],
            items=[context.asked.items[i] for i in to_do.missing],
            is_whole=not to_do.is_reduced,
            min_stored_at_s=self._cache.freshness_cutoff_s(directives.max_age_s),
            is_shared=not (refresh or directives.no_cache or directives.no_store),
            is_stored=not directives.no_store,
            overwrite=refresh or directives.no_cache or directives.max_age_s is not None,
            may_merge=not (context.asked.is_keyed_whole or context.origin.provider.is_fused_model(context.asked.model)),
            span=context.span,
        )

    async def _answer_failure(
        self, context: RequestContext, errand: FetchRequest, failure: Failure
    ) -> tuple[str, StreamResponse]:
        """The upstream's response to the client's own body, or the failure that this client would have had alone."""
        cause = failure.cause
        if isinstance(cause, ProxyError):
            is_of_part = failure.call is not None and not failure.call.is_whole
            if is_of_part and cause.may_be_about_call and self._fetcher.takes_retry(context.origin):
                return self._relayed(context, await self._fetcher.replay(errand))
            raise cause.again()
        if isinstance(cause, InvalidResponse):
            self._say_once(cause.reason, "a response of the upstream is relayed and not stored")
        is_everybodys = isinstance(cause, ErrorResponse) and blame(cause) is Blame.EVERYBODY
        if cause.body != context.asked.body and not is_everybodys:
            # It may name the place of the item it blames, which is another one in the client's list; and part of a
            # response can't be relayed as the whole.
            if blame(cause) is Blame.UNKNOWN and not self._fetcher.takes_retry(context.origin):
                return self._relayed(context, in_own_words(cause.answer))
            return self._relayed(context, await self._fetcher.replay(errand))
        return self._relayed(context, cause.answer)

    def _relayed(self, context: RequestContext, answer: UpstreamResponse) -> tuple[str, StreamResponse]:
        status = answer.status
        if context.origin.key is not None and status_of(answer) in CREDENTIAL_REFUSALS:  # inside a 200 as well
            self._say_once(f"{context.origin.name} answers {status}", "an upstream refuses the key that is held for it")
            raise KeyRefused
        if status in _NOT_THERE and not context.origin.client.has_succeeded:
            url = context.url.partition("?")[0]
            self._say_once(f"{status} from {url}", "perhaps the base URL is wrong, or the model's name")
        items = self._metrics.of_model(context.asked.model).items
        if not is_success(status_of(answer)):
            return "error", relayed(answer, context.reservation)
        items["upstream"].inc(len(context.spec.keys))
        return "miss", relayed(answer, context.reservation)

    def _say_once(self, reason: str, what: str) -> None:
        if (reason, what) not in self._said and len(self._said) < _MAX_SAID:
            self._said.add((reason, what))
            _log.warning("%s: %s (said once; counted in metrics)", what, reason)


def _named(bypass: Bypass) -> str:
    """What it is about, for the log; what is no name of a field may be somebody's text."""
    return f"{bypass.reason} {bypass.field!r}" if _FIELD.fullmatch(bypass.field) else bypass.reason


def status_of_error(error: Exception) -> int:
    """The status under which a request that ended with ``error`` is counted: what its client was told, or would have
    been if its answer had not begun."""
    if isinstance(error, ProxyError):
        return error.status
    return CLIENT_LEFT if isinstance(error, ConnectionError) else ProxyError.status


def _as_plain(forwarded: CIMultiDict[str]) -> CIMultiDict[str]:
    """What goes up for an understood request is not compressed, whatever came."""
    forwarded.popall("Content-Encoding", None)
    return forwarded
