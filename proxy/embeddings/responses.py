"""Responses of the cached route, made from entries."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from aiohttp.web import StreamResponse
from multidict import CIMultiDict

from proxy.cache.entry import Entry, base64_texts
from proxy.cache.memory import Memory
from proxy.embeddings import long_body
from proxy.embeddings.cache_headers import add_cache_headers, cache_headers, detail_of
from proxy.embeddings.hit_head import head
from proxy.errors import ResponseTooLarge
from proxy.fetch.outcomes import EmbedResult, usage_of
from proxy.fetch.result import FetchResult
from proxy.http.long_response import LongResponse, Response
from proxy.http.plain_response import AssembledResponse
from proxy.http.streamed import Streamed
from proxy.labels import ItemResult
from proxy.ledger.row import Row
from proxy.protocol import embedding_response
from proxy.protocol.memo import memoized
from proxy.protocol.response_spec import ResponseSpec
from proxy.protocol.vectors import Encoding
from proxy.reservation import MemoryReservation
from proxy.telemetry.metrics import Metrics

_MANY_ITEMS, _MAX_BODY_BYTES = 2048, 512 * 1024**2
# A larger body is streamed, or written in turns. A smaller one is written at once, which is faster. A client that does
# not read its response ties up no more memory: a connection serves no request before the last response has been read.
LARGE_BYTES = 1024**2
MAX_LONG_BYTES = 4 * LARGE_BYTES  # of a body that is written in turns; its length must be known
_FEW_NUMBERS = LARGE_BYTES // 32  # a number takes less than 32 bytes in any encoding
_NOTHING: Mapping[Any, Any] = {}
_MAX_MODEL_LENGTH = 256  # of a name in an end of body that is kept
_NO_USAGE = {"prompt_tokens": 0, "total_tokens": 0}


class ResponseBuilder:
    """``found`` are entries from the cache, ``from_memory`` of them from the memory tier."""

    def __init__(self, memory: Memory, metrics: Metrics, *, reports_full_usage: bool) -> None:
        self._memory = memory
        self._metrics = metrics
        self._assemble_seconds = metrics.stage_seconds["assemble"]
        self._reports_full_usage = reports_full_usage

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
        usage = usage_of(deliveries) if deliveries else _NO_USAGE
        saved = max(0, sum([found[key].tokens for key in spec.keys]) - usage["prompt_tokens"])
        self._count_items(spec, found, client, from_memory, own=0, joined=0, saved=saved)
        detail = detail or detail_of(spec)
        extra = cache_headers("HIT", f"hit; detail={detail}" if detail else "hit", saved_tokens=saved)
        extra["Content-Type"] = "application/json"
        end = self._end(spec, found, usage, saved)
        if is_large:
            return self._streamed(spec, found, end, headers=extra)
        return AssembledResponse(self._body(spec, found, end), headers=extra)

    def is_large(self, spec: ResponseSpec, found: dict[bytes, Entry]) -> bool:
        """Whether the response is too large for `bytes_of_hit`, unless it gets texts. Raises `ResponseTooLarge`."""
        limit_bytes = MAX_LONG_BYTES if spec.encoding is Encoding.BASE64 else LARGE_BYTES
        return self._size_bytes(spec, found) > limit_bytes

    async def numbers(
        self, spec: ResponseSpec, found: dict[bytes, Entry], reservation: MemoryReservation | None
    ) -> list[bytes] | None:
        """The texts for `bytes_of_hit`, made in turns; None: too large. Raises `ResponseTooLarge`, `Overloaded`."""
        size = self._size_bytes(spec, found)
        if size > MAX_LONG_BYTES or spec.encoding is Encoding.BASE64:
            return None
        return await long_body.numbers(self._memory, spec.keys, found, size, reservation)

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
        end = self._end(spec, found, _NO_USAGE, saved)
        rest: Iterable[bytes] = ()
        if texts is not None:
            rest = body = embedding_response.parts(texts, end)
            length = sum(map(len, body))
        elif len(keys) > 1 and self._size_bytes(spec, found) > LARGE_BYTES:
            length, rest = long_body.base64_length(ordered, end), long_body.base64_parts(ordered, end)
        else:
            body = self._ordered_body(spec, ordered, end)
            length = sum(map(len, body))
        top = head(length=length, saved=saved, detail=detail_of(spec), cors=cors, request_id=request_id)
        self._metrics.of_model(spec.model).count_hit(
            items=len(keys), distinct=len(found), from_memory=from_memory, saved=saved
        )
        row.hits += 1
        row.hit_items += len(keys)
        row.saved += saved
        if from_memory < len(keys):
            row.duplicates += len(keys) - len(found)
            row.from_store += len(found) - from_memory
        return LongResponse([top], long_body.in_turns(rest)) if rest else [top, *body]

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
        state, status = ("PARTIAL", "fwd=partial") if found else ("MISS", "fwd=miss")
        upstream_status = fetched.deliveries[-1].status if fetched.deliveries else HTTPStatus.OK
        status += f"; fwd-status={upstream_status}" + ("; stored" if is_stored else "")
        status += "; collapsed" if joined else ""
        status += f"; detail={detail_of(spec)}" if spec.is_keyed_whole else ""
        deliveries = fetched.deliveries
        merged = [delivery for delivery in deliveries if not delivery.is_unmerged]
        extra = (merged or deliveries)[0].relayed.copy() if deliveries else CIMultiDict[str]()
        add_cache_headers(extra, state, status, saved_tokens=saved)
        if found:
            extra["X-Cache-Hits"] = str(sum(map(found.__contains__, spec.keys)))
        extra["Content-Type"] = "application/json"
        extra_fields = deliveries[0].extra_fields if len(deliveries) == 1 and deliveries[0].is_own_body else _NOTHING
        unusable = {key: response.embedding or b"null" for key, response in fetched.unusable.items()}
        end = self._end(spec, entries, usage_of(deliveries), saved, extra_fields)
        if is_large:
            return self._streamed(spec, entries, end, headers=extra, status=upstream_status)
        body = self._body(spec, entries, end, unusable=unusable)
        return AssembledResponse(body, status=upstream_status, headers=extra)

    def _size_bytes(self, spec: ResponseSpec, entries: dict[bytes, Entry]) -> int:
        """The approximate size of the body, from that of one embedding: all of them have as many numbers. 0 if it is
        small."""
        key = spec.keys[0]
        if key not in entries:
            key = next(iter(entries), b"")
        if not entries or entries[key].dimensions * len(spec.keys) < _FEW_NUMBERS:
            return 0
        size = len(spec.keys) * self._memory.text_length(key, entries[key], spec.encoding)
        if size > _MAX_BODY_BYTES and len(spec.keys) > _MANY_ITEMS:
            raise ResponseTooLarge(
                f"The response would have {size:,} bytes; at most {_MAX_BODY_BYTES:,} are accepted. Send fewer items."
            )
        return size

    def _reserve(self, spec: ResponseSpec, entries: dict[bytes, Entry], reservation: MemoryReservation) -> bool:
        """Whether the response is large. If so, it holds its entries until it is written, even if memory evicts
        them, so ``reservation`` takes their memory. Raises `ResponseTooLarge`, `Overloaded`."""
        is_large = self._size_bytes(spec, entries) > LARGE_BYTES
        if is_large:
            reservation.take(sum([len(entry.payload) for entry in entries.values()]), may_exceed=True)
        return is_large

    def _streamed(
        self,
        spec: ResponseSpec,
        entries: dict[bytes, Entry],
        end: bytes,
        *,
        headers: CIMultiDict[str],
        status: int = HTTPStatus.OK,
    ) -> Streamed:
        if spec.encoding is Encoding.BASE64:
            ordered = [entries[key] for key in spec.keys]
            length, parts = long_body.base64_length(ordered, end), long_body.base64_parts(ordered, end)
        else:
            length, parts = None, embedding_response.stream_parts(self._numbers(spec, entries), len(spec.keys), end)
        return Streamed(parts, length=length, status=status, headers=headers)

    def _numbers(self, spec: ResponseSpec, entries: dict[bytes, Entry]) -> Iterator[bytes]:
        """Each embedding as numbers, made when it is written: their text takes more memory than the vector."""
        last, text = b"", b""
        for key in spec.keys:
            if key != last:
                last, text = key, self._memory.text(key, entries[key], Encoding.FLOAT)
            yield text

    def _body(
        self,
        spec: ResponseSpec,
        entries: dict[bytes, Entry],
        end: bytes,
        *,
        unusable: Mapping[bytes, bytes] = _NOTHING,
    ) -> list[bytes]:
        """A body in parts; ``unusable`` is in place of embeddings."""
        if not unusable:
            return self._ordered_body(spec, [entries[key] for key in spec.keys], end)
        began_s = time.perf_counter()
        text, encoding = self._memory.text, spec.encoding
        quote = b'"' if encoding is Encoding.BASE64 else b""
        texts = [unusable.get(key) or quote + text(key, entries[key], encoding) + quote for key in spec.keys]
        parts = embedding_response.parts(texts, end)
        self._assemble_seconds.observe(time.perf_counter() - began_s)
        return parts

    def _ordered_body(self, spec: ResponseSpec, entries: list[Entry], end: bytes) -> list[bytes]:
        """The same from the entries of the items, in input order."""
        began_s = time.perf_counter()
        is_base64 = spec.encoding is Encoding.BASE64
        if is_base64:
            texts = base64_texts(entries)
        else:
            text = self._memory.text
            texts = [text(key, entry, spec.encoding) for key, entry in zip(spec.keys, entries, strict=True)]
        parts = embedding_response.parts(texts, end, are_base64=is_base64)
        self._assemble_seconds.observe(time.perf_counter() - began_s)
        return parts

    def _end(
        self,
        spec: ResponseSpec,
        entries: dict[bytes, Entry],
        usage: dict[str, Any],
        saved: int,
        extra_fields: Mapping[str, Any] = _NOTHING,
    ) -> bytes:
        """What follows the last embedding; ``extra_fields`` are those of the upstream's own response."""
        first = entries.get(spec.keys[0])
        model = first.model if first else None
        model = model or next((entry.model for entry in entries.values() if entry.model), None) or spec.model or ""
        if usage is _NO_USAGE and not spec.has_id:
            return _end_of_hit(model, saved if self._reports_full_usage else 0)
        extra = {"id": uuid4().hex, **extra_fields} if spec.has_id else extra_fields
        if self._reports_full_usage:
            usage = usage | {name: usage[name] + saved for name in ("prompt_tokens", "total_tokens")}
        return embedding_response.ending(model, usage, extra)

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


@memoized(max_length=_MAX_MODEL_LENGTH)
def _end_of_hit(model: str, tokens: int) -> bytes:
    return embedding_response.ending(model, {"prompt_tokens": tokens, "total_tokens": tokens}, _NOTHING)
