"""The bodies of responses, made from entries."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from multidict import CIMultiDict

from proxy import turns
from proxy.cache.entry import Entry, base64_texts, generated_base64
from proxy.cache.memory import Memory
from proxy.errors import ResponseTooLarge
from proxy.http.long_response import MAX_LONG_BYTES
from proxy.http.streamed import Streamed
from proxy.protocol import embedding_response
from proxy.protocol.memo import memoized
from proxy.protocol.response_spec import ResponseSpec
from proxy.protocol.vectors import Encoding
from proxy.reservation import MemoryReservation
from proxy.steps import Steps
from proxy.telemetry.metrics import Metrics

_MANY_ITEMS, _MAX_BODY_BYTES = 2048, 512 * 1024**2
# A larger body is streamed, or written in turns. A smaller one is written at once, which is faster. A client that does
# not read its response ties up no more memory: a connection serves no request before the last response has been read.
LARGE_BYTES = 1024**2
_FEW_NUMBERS = LARGE_BYTES // 32  # a number takes less than 32 bytes in any encoding
_NOTHING: Mapping[Any, Any] = {}
_MAX_MODEL_LENGTH = 256  # of a name in an end of body that is kept
NO_USAGE = {"prompt_tokens": 0, "total_tokens": 0}  # of every hit, so that its `BodyBuilder.end` can be kept


class BodyBuilder:
    def __init__(self, memory: Memory, metrics: Metrics, *, reports_full_usage: bool) -> None:
        self._memory = memory
        self._assemble_seconds = metrics.stage_seconds["assemble"]
        self._reports_full_usage = reports_full_usage

    def size_bytes(self, spec: ResponseSpec, entries: dict[bytes, Entry]) -> int:
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

    def parts(
        self,
        spec: ResponseSpec,
        entries: dict[bytes, Entry],
        end: bytes,
        *,
        unusable: Mapping[bytes, bytes] = _NOTHING,
    ) -> list[bytes]:
        """A body in parts; ``unusable`` is in place of embeddings."""
        if not unusable:
            return self.ordered_parts(spec, [entries[key] for key in spec.keys], end)
        began_s = time.perf_counter()
        text, encoding = self._memory.text, spec.encoding
        quote = b'"' if encoding is Encoding.BASE64 else b""
        texts = [unusable.get(key) or quote + text(key, entries[key], encoding) + quote for key in spec.keys]
        parts = embedding_response.parts(texts, end)
        self._assemble_seconds.observe(time.perf_counter() - began_s)
        return parts

    def ordered_parts(self, spec: ResponseSpec, entries: list[Entry], end: bytes) -> list[bytes]:
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

    async def texts_in_turns(
        self, spec: ResponseSpec, entries: Mapping[bytes, Entry], size: int, reservation: MemoryReservation | None
    ) -> list[bytes]:
        """The vector of each item as numbers. While they are made, memory of ``size`` bytes is reserved for them.
        Raises `Overloaded`."""
        if reservation is not None:
            reservation.take(size)
        try:
            return await turns.run(self._texts_in_steps(spec, entries))
        finally:
            if reservation is not None:
                reservation.give_back(size)

    def _texts_in_steps(self, spec: ResponseSpec, entries: Mapping[bytes, Entry]) -> Steps[list[bytes]]:
        texts = []
        for key in spec.keys:
            texts.append(self._memory.text(key, entries[key], Encoding.FLOAT))
            yield
        return texts

    def streamed(
        self,
        spec: ResponseSpec,
        entries: Mapping[bytes, Entry],
        end: bytes,
        *,
        status: int,
        headers: CIMultiDict[str],
    ) -> Streamed:
        """A response with a large body, whose parts are made when they are written."""
        ordered = [entries[key] for key in spec.keys]
        length: int | None
        parts: Iterable[bytes]
        if spec.encoding is Encoding.BASE64:
            length, parts = base64_parts(ordered, end)
        elif (texts := _texts_at_hand(ordered)) is not None:
            parts = embedding_response.parts(texts, end)
            length = sum(map(len, parts))
        else:
            length = None
            parts = embedding_response.stream_parts(self._numbers(spec, entries), len(ordered), end)
        part_bytes = None if length is None else part_bytes_of(length, len(ordered))
        return Streamed(parts, length=length, part_bytes=part_bytes, status=status, headers=headers)

    def _numbers(self, spec: ResponseSpec, entries: Mapping[bytes, Entry]) -> Iterator[bytes]:
        """Each embedding as numbers, made when it is written: their text takes more memory than the vector."""
        last, text = b"", b""
        for key in spec.keys:
            if key != last:
                last, text = key, self._memory.text(key, entries[key], Encoding.FLOAT)
            yield text

    def end(
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
        if usage is NO_USAGE and not spec.has_id:
            return _end_of_hit(model, saved if self._reports_full_usage else 0)
        extra = {"id": uuid4().hex, **extra_fields} if spec.has_id else extra_fields
        if self._reports_full_usage:
            usage = usage | {name: usage[name] + saved for name in ("prompt_tokens", "total_tokens")}
        return embedding_response.ending(model, usage, extra)


def _texts_at_hand(entries: Sequence[Entry]) -> list[bytes] | None:
    """The texts of the vectors as numbers, if all are in memory, and may stay there until the response is written."""
    texts = [entry.numbers() for entry in entries if entry.has_numbers]
    return texts if len(texts) == len(entries) and sum(map(len, texts)) <= MAX_LONG_BYTES else None


def part_bytes_of(length: int, items: int) -> int:
    """The average size of the parts of a body: one of each embedding, and one before it."""
    return length // (2 * items)


def base64_parts(entries: list[Entry], end: bytes) -> tuple[int, Iterator[bytes]]:
    """The length of a body with base64, which is known before it is made, and its parts, each made when it is needed.
    ``end`` is what follows the last vector."""
    length = embedding_response.base64_length([entry.source.base64_length for entry in entries], end)
    return length, embedding_response.stream_parts(generated_base64(entries), len(entries), end, are_base64=True)


@memoized(max_length=_MAX_MODEL_LENGTH)
def _end_of_hit(model: str, tokens: int) -> bytes:
    return embedding_response.ending(model, {"prompt_tokens": tokens, "total_tokens": tokens}, _NOTHING)
