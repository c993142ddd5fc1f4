"""From an understood request to its response: look its items up, validate its credential, fetch what is missing."""

import time

from msgspec.structs import replace

from proxy.access.access import Access
from proxy.access.validations import Validations
from proxy.cache.cache import Cache
from proxy.cache.entry import current
from proxy.embeddings.cached_only import all_cached, not_cached
from proxy.embeddings.failures import FailureResponses, Resolved
from proxy.embeddings.fast_path import FastPath
from proxy.embeddings.fetch_plan import FetchPlan, policy_of
from proxy.embeddings.header_watch import MANY_VALUES
from proxy.embeddings.hitless_report import HitlessReport
from proxy.embeddings.log_once import LogOnce
from proxy.embeddings.lookup import Lookup, count_model_versions, look_up
from proxy.embeddings.progress import Progress
from proxy.embeddings.responses import ResponseBuilder
from proxy.embeddings.revalidation import Revalidator
from proxy.embeddings.sighting import Sighting
from proxy.embeddings.unvalidated import UnvalidatedRequests
from proxy.fetch.fetcher import Fetcher
from proxy.fetch.request import ClientRequest
from proxy.fetch.result import NOTHING
from proxy.labels import RequestOutcome
from proxy.protocol.directives import NO_DIRECTIVES, prefers_minimal
from proxy.telemetry.metrics import Metrics
from proxy.turns import are_many, turn


class Resolver:
    def __init__(
        self,
        cache: Cache,
        fetcher: Fetcher,
        *,
        responses: ResponseBuilder,
        fast_path: FastPath,
        metrics: Metrics,
        access: Access,
        validations: Validations,
        log_once: LogOnce,
        hitless_report: HitlessReport,
    ) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._responses = responses
        self._failures = FailureResponses(fetcher, metrics, log_once)
        self._access = access
        self._unvalidated = UnvalidatedRequests(
            cache,
            responses,
            self._failures,
            Revalidator(fetcher, metrics),
            access=access,
            validations=validations,
        )
        self._fast_path = fast_path
        self._metrics = metrics
        self._lookup_seconds = metrics.stage_seconds["lookup"]
        self._log_once = log_once
        self._hitless_report = hitless_report

    async def respond(
        self,
        client_request: ClientRequest,
        found: Lookup,
        sighting: Sighting | None,
        progress: Progress,
        parsed_s: float,
    ) -> Resolved:
        """The outcome and response of a request that was parsed at ``parsed_s`` and then looked up. With a
        ``sighting``, a hit is remembered for the fast path. Raises `ProxyError`."""
        if are_many(client_request.spec.keys):
            await turn()
            found = found.current()
        self._lookup_seconds.observe(time.perf_counter() - parsed_s)
        self._watch_headers(client_request, is_hit=bool(found.entries))
        is_moved = len(found.entries) > 1 and count_model_versions(found.entries) > 1
        if is_moved:
            found = Lookup.nothing(client_request.spec.keys)
        progress.items = len(client_request.spec.keys)
        progress.cached = progress.items - len(found.missing)
        progress.span.looked_up(parsed_s, items=progress.items, cached=progress.cached)
        is_valid = self._unvalidated.is_valid(client_request)
        if is_valid and not found.missing:
            if client_request.directives.only_if_cached and prefers_minimal(client_request.received):
                return RequestOutcome.HIT, all_cached()
            if sighting is not None:
                from_memory = found.from_memory == len(found.entries)
                self._fast_path.remember(sighting, client_request, from_memory=from_memory)
                if are_many(client_request.spec.keys):
                    await turn()  # the response has one of its own
            return RequestOutcome.HIT, self._responses.hit_of(client_request, found)
        if client_request.directives.only_if_cached:
            is_shared = self._access.is_shared_scope(client_request.identity)
            raise not_cached(client_request.spec.keys, found.missing, is_valid=is_valid, is_shared=is_shared)
        step = self._first_step(client_request, found, is_moved=is_moved, is_valid=is_valid)
        return await self._take_steps(client_request, step)

    def _first_step(
        self, client_request: ClientRequest, found: Lookup, *, is_moved: bool, is_valid: bool
    ) -> Lookup | FetchPlan:
        """``is_moved``: what was stored is of several model versions, so all of it is fetched again."""
        policy = policy_of(client_request, self._cache)
        if is_moved:
            return FetchPlan(found, policy.refreshing())
        if is_valid or client_request.directives.no_cache or not self._unvalidated.must_validate(client_request, found):
            return FetchPlan(found, policy)
        return found

    async def _take_steps(self, client_request: ClientRequest, step: Lookup | FetchPlan) -> Resolved:
        """Take the steps that lead to a response: a `Lookup` is to be validated first, a `FetchPlan` to be fetched.

        The loop takes at most four steps. `_fetch` returns a `Lookup` only if it has every item and no call was billed.
        Nothing is missing then, so `validate` plans another fetch only if that joins no other request's. Such a fetch
        is billed or fails, and the loop ends.
        """
        next_step: Lookup | FetchPlan | Resolved = step
        while True:
            match next_step:
                case Lookup():
                    next_step = await self._unvalidated.validate(client_request, next_step)
                case FetchPlan():
                    next_step = await self._fetch(client_request, next_step)
                case _:
                    return next_step

    async def look_up(self, client_request: ClientRequest) -> Lookup:
        """What the cache has of a request, as far as its directives allow."""
        keys, directives = client_request.spec.keys, client_request.directives
        if are_many(keys):
            await turn()
        if directives.no_cache:
            return Lookup.nothing(keys)
        min_stored_at_s = self._cache.freshness_cutoff_s(directives.max_age_s)
        found = await look_up(self._cache, keys, min_stored_at_s=min_stored_at_s)
        if found.missing and client_request.spec.is_keyed_whole:
            return Lookup.nothing(keys)
        if found.entries:  # which another process may have stored
            self._metrics.admit_model(client_request.spec.model)
        return found

    def _watch_headers(self, client_request: ClientRequest, *, is_hit: bool) -> None:
        if is_hit:
            self._fast_path.header_watch.hit(client_request.identity, client_request.parsed.model)
        elif client_request.directives == NO_DIRECTIVES:
            for name in self._fast_path.header_watch.missed(client_request.identity, client_request.parsed.model):
                self._metrics.varying_header(name, MANY_VALUES)
                self._hitless_report.varying_header(client_request.tenant.name, name)
                self._log_once.warn(
                    f"{MANY_VALUES} values of {name} from one credential for one model, and no hit; if it does not"
                    f" change the vector, set --neutral-headers {name}",
                    "a header field that is part of the key costs hits",
                )

    async def _fetch(self, client_request: ClientRequest, plan: FetchPlan) -> Lookup | Resolved:
        """Fetch what is missing. The result is a `Lookup` if all of it was in the store after all, or was fetched by
        other requests or replicas: then the credential is not validated yet."""
        found, policy, first = plan
        missing = found.missing
        if first is not NOTHING:
            settled = first.settled
            missing = [key for key in missing if key not in settled]
        fetched = await self._fetcher.fetch(client_request.request(missing, policy)) if missing else NOTHING
        if are_many(missing):
            await turn()
        if first is not NOTHING:
            fetched = fetched.after(first)
        cached, fetched = current(found.entries), replace(fetched, entries=current(fetched.entries))
        versions = count_model_versions(cached, fetched.entries)
        if fetched.failure is None and versions > 1:
            # The upstream now serves another model under the same name. A response must not mix the two, and what is
            # stored is obsolete.
            cached = {}
            request = client_request.request(list(dict.fromkeys(client_request.spec.keys)), policy.refreshing())
            fetched = (await self._fetcher.fetch(request)).after(fetched.bill)
            versions = count_model_versions(fetched.entries)
        if fetched.failure is not None:
            return await self._failures.respond(client_request, fetched.failure)
        if versions != 1:  # the upstream alternates between two models, or nothing can be stored
            return await self._failures.send_own_body(client_request)
        if not (fetched.is_billed or self._unvalidated.is_valid(client_request)):
            return Lookup(cached | fetched.entries, [], found.from_memory)
        if are_many(missing):
            await turn()  # the response has one of its own
        response = self._responses.fetched(
            client_request.spec,
            cached,
            fetched,
            client_request.client,
            from_memory=found.from_memory,
            reservation=client_request.reservation,
            is_stored=policy.is_stored,
        )
        return (RequestOutcome.PARTIAL if cached else RequestOutcome.MISS), response
