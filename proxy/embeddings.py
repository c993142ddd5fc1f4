"""The request path of the cached route: one way, read from `EmbeddingsRoute.handle` down."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiohttp.web import BaseRequest, HTTPRequestEntityTooLarge, Response, StreamResponse
from multidict import CIMultiDict

from proxy import headers, keys, wire
from proxy.errors import BodyTooLarge, NotCached
from proxy.headers import Directives
from proxy.metrics import Metrics
from proxy.passthrough import relay
from proxy.plan import Plan, plan
from proxy.providers import Fields
from proxy.record import Record
from proxy.store.memory import Entry
from proxy.store.tiered import Cache
from proxy.upstream import Answer, Upstream
from proxy.wire import Bypass, EmbeddingAnswer, EmbeddingRequest, InvalidAnswer

_log = logging.getLogger(__name__)

_OK = 200
_CACHE_NAME = "embedding-proxy"
# Of a relayed answer these describe bytes that the rebuilt body does not have.
_BODY_HEADERS = ("Content-Length", "Content-Encoding", "Content-Type", "ETag", "Content-MD5", "Digest")


class _Job(NamedTuple):
    """One understood request on its way through."""

    request: BaseRequest
    url: str
    asked: EmbeddingRequest
    directives: Directives
    keys: list[bytes]


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What an upstream call brought: ``entries`` of the keys asked for, as they now stand in the cache."""

    entries: dict[bytes, Entry]
    usage: dict[str, Any]
    headers: CIMultiDict[str]


class EmbeddingsRoute:
    def __init__(
        self,
        cache: Cache,
        upstream: Upstream,
        metrics: Metrics,
        *,
        fields: Fields,
        max_body_bytes: int,
        reports_full_usage: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._upstream = upstream
        self._metrics = metrics
        self._fields = fields
        self._max_body_bytes = max_body_bytes
        self._reports_full_usage = reports_full_usage
        self._clock = clock
        self._logged_bypasses: set[str] = set()

    async def handle(self, request: BaseRequest, url: str) -> StreamResponse:
        """Answer ``POST …/embeddings``, which goes to ``url`` for whatever is not cached. Raises `ProxyError`."""
        started = time.perf_counter()
        outcome = "error"
        try:
            outcome, response = await self._serve(request, url)
        finally:
            self._metrics.requests[outcome].inc()
            self._metrics.request_seconds[outcome].observe(time.perf_counter() - started)
        return response

    async def _serve(self, request: BaseRequest, url: str) -> tuple[str, StreamResponse]:
        body = await self._read_body(request)
        try:
            _require_plain_json(request)
            asked = wire.parse_request(body, self._fields)
        except Bypass as bypass:
            return "bypass", await self._bypass(request, url, body, bypass.reason)
        job = _Job(request, url, asked, headers.cache_control(request.headers), _keys(request, url, asked))
        not_before = self._cache.oldest_fresh(job.directives.max_age_s)

        # While everything is in memory there is no await between here and the answer.
        found = {} if job.directives.no_cache else self._cache.peek(job.keys, not_before=not_before)
        from_memory = len(found)
        to_do = plan(job.keys, found)
        if to_do.missing and not job.directives.no_cache:
            found |= await self._cache.read([job.keys[i] for i in to_do.missing], not_before=not_before)
            to_do = plan(job.keys, found)
        is_moved = _epochs(found) > 1
        if is_moved:
            found, to_do = {}, plan(job.keys, ())
        self._count_items(job, to_do, found, from_memory)
        if not to_do.missing:
            return "hit", self._answer_hit(job, found)
        if job.directives.only_if_cached:
            raise NotCached(f"{len(to_do.missing)} of {len(job.keys)} items are not cached.")
        return await self._fetch_and_answer(job, to_do, found, refresh=is_moved)

    # --- in

    async def _read_body(self, request: BaseRequest) -> bytes:
        try:
            if (request.content_length or 0) <= self._max_body_bytes:
                return await request.read()
        except HTTPRequestEntityTooLarge:
            pass
        raise BodyTooLarge(f"The request body is larger than {self._max_body_bytes} bytes.")

    async def _bypass(self, request: BaseRequest, url: str, body: bytes, reason: str) -> StreamResponse:
        self._metrics.bypasses.labels(reason).inc()
        if reason not in self._logged_bypasses:
            self._logged_bypasses.add(reason)
            _log.warning("a request is relayed without caching: %s (said once; counted in metrics)", reason)
        extra = _cache_headers("BYPASS", f"fwd=bypass; detail={reason}", saved_tokens=0)
        return await relay(request, self._upstream, url, body=body, extra_headers=extra)

    # --- up

    async def _fetch_and_answer(
        self, job: _Job, to_do: Plan, found: dict[bytes, Entry], *, refresh: bool
    ) -> tuple[str, StreamResponse]:
        fetched = await self._fetch(job, to_do, refresh=refresh)
        if isinstance(fetched, _Fetched) and _epochs(found | fetched.entries) > 1:
            # The upstream now serves other weights under the same name. One answer must not mix the two, and what
            # is stored is out of date.
            found, to_do = {}, plan(job.keys, ())
            fetched = await self._fetch(job, to_do, refresh=True)
        if isinstance(fetched, Answer):
            return "error", _relayed(fetched)
        return ("partial" if found else "miss"), self._answer_fetched(job, to_do, found, fetched)

    async def _fetch(self, job: _Job, to_do: Plan, *, refresh: bool) -> _Fetched | Answer:
        """Ask for the missing items in one call; an `Answer` is to be relayed as it is."""
        asked = job.asked
        items = [asked.items[i] for i in to_do.missing]
        body = wire.reduced_body(asked, items) if to_do.is_reduced else asked.body
        answer = await self._call(job, body, len(items))
        if answer.status != _OK:
            return answer
        try:
            parsed = wire.parse_answer(answer.plain_body(), items=len(items), dimensions=asked.dimensions)
        except InvalidAnswer as invalid:
            self._metrics.upstream_rejected.labels(invalid.reason).inc()
            _log.warning("the upstream's answer is relayed and not stored: %s", invalid.reason)
            # Part of an answer can't be relayed as the whole: ask again for all the client asked for.
            return await self._call(job, asked.body, len(asked.items)) if to_do.is_reduced else answer
        self._metrics.tokens_billed.inc(parsed.usage["prompt_tokens"])
        records = self._records(job, to_do, items, parsed)
        return _Fetched(
            entries=await self._store(job, records, refresh=refresh),
            usage=parsed.usage,
            headers=headers.end_to_end(answer.headers),
        )

    async def _call(self, job: _Job, body: bytes, items: int) -> Answer:
        return await self._upstream.embed(job.url, headers.to_upstream(job.request.headers), body, items=items)

    def _records(self, job: _Job, to_do: Plan, items: list[Any], parsed: EmbeddingAnswer) -> dict[bytes, Record]:
        weights = [wire.weight(job.asked.kind, item) for item in items]
        tokens = wire.share_tokens(parsed.usage["prompt_tokens"], weights)
        now = int(self._clock())
        return {
            job.keys[position]: Record(
                vector=vector,
                model=parsed.model or job.asked.model,
                tokens=share,
                tokens_exact=len(items) == 1,
                stored_at_s=now,
            )
            for position, vector, share in zip(to_do.missing, parsed.vectors, tokens, strict=True)
        }

    async def _store(self, job: _Job, records: dict[bytes, Record], *, refresh: bool) -> dict[bytes, Entry]:
        if job.directives.no_store:
            return {key: Entry(record) for key, record in records.items()}
        overwrite = refresh or job.directives.no_cache or job.directives.max_age_s is not None
        return await self._cache.write(records, overwrite=overwrite)

    # --- out

    def _answer_hit(self, job: _Job, found: dict[bytes, Entry]) -> Response:
        saved = sum(found[key].tokens for key in job.keys)
        extra = _cache_headers("HIT", "hit", saved_tokens=saved)
        return self._answer(job, found, {"prompt_tokens": 0, "total_tokens": 0}, saved, extra)

    def _answer_fetched(self, job: _Job, to_do: Plan, found: dict[bytes, Entry], fetched: _Fetched) -> Response:
        entries = found | fetched.entries
        saved = sum(entries[key].tokens for key in job.keys) - sum(entries[job.keys[i]].tokens for i in to_do.missing)
        stored = "" if job.directives.no_store else "; stored"
        state, forward = ("PARTIAL", "partial") if found else ("MISS", "miss")
        extra = _cache_headers(state, f"fwd={forward}; fwd-status=200{stored}", saved_tokens=saved)
        for name in _BODY_HEADERS:
            fetched.headers.popall(name, None)
        fetched.headers.extend(extra)
        return self._answer(job, entries, fetched.usage, saved, fetched.headers)

    def _answer(
        self,
        job: _Job,
        entries: dict[bytes, Entry],
        usage: dict[str, Any],
        saved: int,
        extra: CIMultiDict[str],
    ) -> Response:
        self._metrics.tokens_saved.inc(saved)
        if self._reports_full_usage:
            usage = usage | {name: usage[name] + saved for name in ("prompt_tokens", "total_tokens")}
        text = self._cache.memory.text
        encoding = job.asked.encoding
        texts = [text(key, entries[key], encoding) for key in job.keys]
        extra["Content-Type"] = "application/json"
        return Response(body=wire.assemble(texts, entries[job.keys[0]].model, usage), headers=extra)

    def _count_items(self, job: _Job, to_do: Plan, found: dict[bytes, Entry], from_memory: int) -> None:
        items = self._metrics.items
        from_memory = min(from_memory, len(found))
        items["memory"].inc(from_memory)
        if len(job.keys) == from_memory:
            return
        items["store"].inc(len(found) - from_memory)
        items["upstream"].inc(len(to_do.missing))
        items["duplicate"].inc(len(job.keys) - len(found) - len(to_do.missing))


def _require_plain_json(request: BaseRequest) -> None:
    content_type = request.headers.get("Content-Type", "")
    if content_type != "application/json" and request.content_type != "application/json":
        raise Bypass("content-type")
    if "Content-Encoding" in request.headers:
        raise Bypass("content-encoding")


def _keys(request: BaseRequest, url: str, asked: EmbeddingRequest) -> list[bytes]:
    credentials, affecting = headers.identity(request.headers)
    return keys.derive(asked, url=url, credentials=credentials, vector_headers=affecting)


def _epochs(entries: dict[bytes, Entry]) -> int:
    return len({entry.epoch for entry in entries.values()})


def _cache_headers(state: str, status: str, *, saved_tokens: int) -> CIMultiDict[str]:
    """What the cache did, for people (X-Cache) and by RFC 9211 (Cache-Status)."""
    return CIMultiDict(
        {
            "X-Cache": state,
            "Cache-Status": f"{_CACHE_NAME}; {status}",
            "X-Cache-Saved-Tokens": str(saved_tokens),
        }
    )


def _relayed(answer: Answer) -> Response:
    extra = headers.end_to_end(answer.headers)
    extra.popall("Content-Length", None)
    extra.extend(_cache_headers("MISS", f"fwd=miss; fwd-status={answer.status}", saved_tokens=0))
    return Response(status=answer.status, reason=answer.reason, headers=extra, body=answer.body)
