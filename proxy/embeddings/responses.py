"""Responses of the cached route, made from entries."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from aiohttp.web import StreamResponse
from multidict import CIMultiDict

from proxy.cache.entry import Entry
from proxy.cache.memory import Memory
from proxy.embeddings.cache_headers import add_cache_headers, cache_headers, detail_of
from proxy.embeddings.hit_head import head
from proxy.embeddings.lookup import Lookup
from proxy.embeddings.response_body import LARGE_BYTES, NO_USAGE, BodyBuilder, base64_parts, part_bytes_of
from proxy.fetch.outcomes import EmbedResult, usage_of
from proxy.fetch.request import ClientRequest
from proxy.fetch.result import FetchResult
from proxy.http.long_response import MAX_LONG_BYTES, LongResponse, Response
from proxy.http.plain_response import AssembledResponse
from proxy.labels import ItemResult
from proxy.ledger.row import Row
from proxy.protocol import embedding_response
from proxy.protocol.response_spec import ResponseSpec
from proxy.protocol.vectors import Encoding
from proxy.reservation import MemoryReservation
from proxy.telemetry.metrics import Metrics

_NOTHING: Mapping[Any, Any] = {}


class ResponseBuilder:
    """``found`` are entries from the cache, ``from_memory`` of them from the memory tier."""

    def __init__(self, memory: Memory, metrics: Metrics, *, reports_full_usage: bool) -> None:
        self._metrics = metrics
        self._bodies = BodyBuilder(memory, metrics, reports_full_usage=reports_full_usage)

    def hit(
        self,
        spec: ResponseSpec,
        found: dict[bytes, Entry],
        client: str | None,
        *,
        from_memory: int,
        reservation: MemoryReservation,
        deliveries: Sequence[EmbedResult] = (),
        detail: str = "",
    ) -> StreamResponse:
        """Raises `ResponseTooLarge`, `Overloaded`."""
        is_large = self._reserve(spec, found, reservation)
        usage = usage_of(deliveries) if deliveries else NO_USAGE
        saved = max(0, sum([found[key].tokens for key in spec.keys]) - usage["prompt_tokens"])
        self._count_items(spec, found, client, from_memory, own=0, joined=0, saved=saved)
        detail = detail or detail_of(spec)
        extra = cache_headers("HIT", f"hit; detail={detail}" if detail else "hit", saved_tokens=saved)
        extra["Content-Type"] = "application/json"
        end = self._bodies.end(spec, found, usage, saved)
        if is_large:
            return self._bodies.streamed(spec, found, end, status=HTTPStatus.OK, headers=extra)
        return AssembledResponse(self._bodies.parts(spec, found, end), headers=extra)

    def hit_of(
        self, client_request: ClientRequest, found: Lookup, *, deliveries: Sequence[EmbedResult] = (), detail: str = ""
    ) -> StreamResponse:
        """`hit` for a request all of whose items were ``found``. Raises `ResponseTooLarge`, `Overloaded`."""
        return self.hit(
            client_request.spec,
            found.entries,
            client_request.client,
            from_memory=found.from_memory,
            reservation=client_request.reservation,
            deliveries=deliveries,
            detail=detail,
        )

    def is_large(self, spec: ResponseSpec, found: dict[bytes, Entry]) -> bool:
        """Whether the response is too large for `bytes_of_hit`, unless it gets texts. Raises `ResponseTooLarge`."""
        limit_bytes = MAX_LONG_BYTES if spec.encoding is Encoding.BASE64 else LARGE_BYTES
        return self._bodies.size_bytes(spec, found) > limit_bytes

    async def numbers(
        self, spec: ResponseSpec, found: dict[bytes, Entry], reservation: MemoryReservation | None
    ) -> list[bytes] | None:
        """The texts for `bytes_of_hit`, made in turns; None: too large. Raises `ResponseTooLarge`, `Overloaded`."""
        size = self._bodies.size_bytes(spec, found)
        if size > MAX_LONG_BYTES or spec.encoding is Encoding.BASE64:
            return None
        return await self._bodies.texts_in_turns(spec, found, size, reservation)

    def bytes_of_hit(
        self,
        spec: ResponseSpec,
        found: dict[bytes, Entry],
        row: Row,
        *,
        from_memory: int,
        request_id: str,
        cors: str,
        texts: list[bytes] | None = None,
    ) -> Response | LongResponse:
        """What aiohttp would write for a `hit` that is not large, in parts. ``cors`` are whole lines of the head, or
        "". ``texts`` are the `numbers` of a large one. The request is counted, in its client's ``row`` as well."""
        keys = spec.keys
        ordered = [found[key] for key in keys]
        saved = sum([entry.tokens for entry in ordered])
        end = self._bodies.end(spec, found, NO_USAGE, saved)
        rest: Iterable[bytes] = ()
        if texts is not None:
            rest = body = embedding_response.parts(texts, end)
            length = sum(map(len, body))
        elif len(keys) > 1 and self._bodies.size_bytes(spec, found) > LARGE_BYTES:
            length, rest = base64_parts(ordered, end)
        else:
            body = self._bodies.ordered_parts(spec, ordered, end)
            length = sum(map(len, body))
        top = head(length, saved, detail_of(spec), cors=cors, request_id=request_id)
        self._metrics.of_model(spec.model).count_hit(
            items=len(keys), distinct=len(found), from_memory=from_memory, saved=saved
        )
        row.hits += 1
        row.hit_items += len(keys)
        row.saved += saved
        if from_memory < len(keys):
            row.duplicates += len(keys) - len(found)
            row.from_store += len(found) - from_memory
        if rest:
            return LongResponse.of([top], rest, part_bytes=part_bytes_of(length, len(keys)))
        return [top, *body]

    def fetched(
        self,
        spec: ResponseSpec,
        found: dict[bytes, Entry],
        fetched: FetchResult,
        client: str | None,
        *,
        from_memory: int,
        reservation: MemoryReservation,
        is_stored: bool,
    ) -> StreamResponse:
        """Raises `ResponseTooLarge`, `Overloaded`."""
        self._metrics.admit_model(spec.model)  # another replica may have fetched all of it
        entries = found | fetched.entries
        is_large = self._reserve(spec, entries, reservation) and not fetched.unusable
        cost = [entries[key].tokens for key in spec.keys if key in entries]
        saved = sum(cost) - sum([entries[key].tokens for key in fetched.asked])
        joined = len(fetched.entries) - len(fetched.asked)
        own = len(fetched.asked) + len(fetched.unusable)
        self._count_items(spec, found, client, from_memory, own=own, joined=joined, saved=saved)
        deliveries = fetched.deliveries
        status = deliveries[-1].status if deliveries else HTTPStatus.OK
        detail = f"fwd-status={status}" + ("; stored" if is_stored else "") + ("; collapsed" if joined else "")
        fields = _fetched_head(spec, found, deliveries, detail, saved=saved)
        extra_fields = deliveries[0].extra_fields if len(deliveries) == 1 and deliveries[0].is_own_body else _NOTHING
        unusable = {key: response.embedding or b"null" for key, response in fetched.unusable.items()}
        end = self._bodies.end(spec, entries, usage_of(deliveries), saved, extra_fields)
        if is_large:
            return self._bodies.streamed(spec, entries, end, status=status, headers=fields)
        body = self._bodies.parts(spec, entries, end, unusable=unusable)
        return AssembledResponse(body, status=status, headers=fields)

    def _reserve(self, spec: ResponseSpec, entries: dict[bytes, Entry], reservation: MemoryReservation) -> bool:
        """Whether the response is large. If so, it holds its entries until it is written, even if memory evicts
        them, so ``reservation`` takes their memory. Raises `ResponseTooLarge`, `Overloaded`."""
        is_large = self._bodies.size_bytes(spec, entries) > LARGE_BYTES
        if is_large:
            reservation.take(sum([entry.source.payload_bytes for entry in entries.values()]), may_exceed=True)
        return is_large

    def _count_items(
        self,
        spec: ResponseSpec,
        found: dict[bytes, Entry],
        client: str | None,
        from_memory: int,
        *,
        own: int,
        joined: int,
        saved: int,
    ) -> None:
        """``found`` is empty if the entries were of different model versions and all items were fetched again."""
        metrics = self._metrics
        metrics.ledger.admit(client)
        counters, row = metrics.of_model(spec.model), metrics.row(client, spec.model)
        counters.save(saved)
        row.saved += saved
        from_memory = min(from_memory, len(found))
        results = (
            (ItemResult.MEMORY, from_memory),
            (ItemResult.STORE, len(found) - from_memory),
            (ItemResult.UPSTREAM, own),
            (ItemResult.JOINED, joined),
            (ItemResult.DUPLICATE, len(spec.keys) - len(found) - own - joined),
        )
        for result, count in results:
            if count:
                row.count_items(result, count)
                counters.items[result].inc(count)


def _fetched_head(
    spec: ResponseSpec, found: dict[bytes, Entry], deliveries: Sequence[EmbedResult], detail: str, *, saved: int
) -> CIMultiDict[str]:
    """The header fields of a response with items that were fetched. ``detail`` is for `Cache-Status`."""
    merged = [delivery for delivery in deliveries if not delivery.is_unmerged]
    fields = (merged or deliveries)[0].relayed.copy() if deliveries else CIMultiDict[str]()
    state, forwarded = ("PARTIAL", "fwd=partial") if found else ("MISS", "fwd=miss")
    whole = f"; detail={detail_of(spec)}" if spec.is_keyed_whole else ""
    add_cache_headers(fields, state, f"{forwarded}; {detail}{whole}", saved_tokens=saved)
    if found:
        fields["X-Cache-Hits"] = str(sum(map(found.__contains__, spec.keys)))
    fields["Content-Type"] = "application/json"
    return fields
