"""Stores vectors that were paid for before, under the keys that requests for their texts have."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import orjson

from proxy.cache.store import NOTHING
from proxy.errors import ConfigError
from proxy.fetch.request import ClientRequest
from proxy.filling.paid import PaidCall, PaidText
from proxy.filling.paid_vectors import NotAVector, lengths_that_count, response_of, vector_of, why_unusable
from proxy.filling.results import Loaded, RefusedText
from proxy.protocol import records, tokens
from proxy.protocol.records import InvalidRecord, Record, RecordKey

# The texts whose keys are derived with one request, and the records of one write. A model's first write decides how
# long its vectors are.
_TEXTS, _RECORDS = 256, 512
_READ_TIMEOUT_S = 30.0

ReadTexts = Callable[[Sequence[str]], Awaitable[ClientRequest]]
ReadCall = Callable[[bytes, str], Awaitable[ClientRequest]]


class StoresVectors(Protocol):
    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]: ...

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: float | None,
        overwrite: bool,
        invalid: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]: ...


class LoadPolicy(NamedTuple):
    """``response_model`` is the name that the upstream's responses give the model of texts; "" if it is not known."""

    overwrite: bool = False
    is_dry_run: bool = False
    response_model: str = ""
    ttl_s: float | None = None
    record_key: RecordKey | None = None


class _Ready(NamedTuple):
    line: int
    group: bytes  # all vectors of one group have the same length
    wanted_dimensions: int | None  # by the request
    records: dict[bytes, Record]  # all of them are stored, or none


class Loader:
    """``read_texts`` and ``read_call`` return the request that a proxy would understand, and raise `ConfigError` if it
    would not cache it. ``advance`` is called with how many more lines are done."""

    def __init__(
        self,
        store: StoresVectors,
        read_texts: ReadTexts,
        read_call: ReadCall,
        policy: LoadPolicy,
        *,
        advance: Callable[[int], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._read_texts = read_texts
        self._read_call = read_call
        self._policy = policy
        self._advance = advance
        self._clock = clock
        self._texts: list[PaidText] = []
        self._ready: list[_Ready] = []
        self._lengths: dict[bytes, int] = {}
        self._seen: set[bytes] = set()
        self.loaded = Loaded()

    async def run(self, paid: Iterable[PaidText | PaidCall | RefusedText]) -> None:
        """Raises `ConfigError` for a file that can't be read and `StoreError`; what was loaded until then stays."""
        for one in paid:
            self.loaded.lines += 1
            self._advance(1)
            if isinstance(one, RefusedText):
                self.loaded.refuse(one.line, one.reason)
            elif isinstance(one, PaidCall):
                await self._take_call(one)
            else:
                self._texts.append(one)
                if len(self._texts) >= _TEXTS:
                    await self._take_texts()
            if len(self._ready) >= _RECORDS:
                await self._store_ready()
        await self._take_texts()
        await self._store_ready()
        self.loaded.refusals.sort()

    async def _take_texts(self) -> None:
        texts, self._texts = self._texts, []
        if not texts:
            return
        try:
            request = await self._read_texts([paid.text for paid in texts])
        except ConfigError as error:
            if len(texts) == 1:
                self.loaded.refuse(texts[0].line, str(error))
                return
            for paid in texts:  # perhaps one of them is a text that is not cached
                self._texts = [paid]
                await self._take_texts()
            return
        for paid, key in zip(texts, request.spec.keys, strict=True):
            self._take_text(paid, key, request)

    def _take_text(self, paid: PaidText, key: bytes, request: ClientRequest) -> None:
        try:
            vector = vector_of(paid, request)
        except NotAVector as error:
            self.loaded.refuse(paid.line, str(error))
            return
        record = Record(
            vector=vector,
            model=self._policy.response_model,
            tokens=tokens.typical_tokens(paid.text) if paid.tokens is None else paid.tokens,
            tokens_exact=paid.tokens is not None,
            stored_at_s=int(self._clock()),
            scope=request.scope_fingerprint,
        )
        self._add(paid.line, request, {key: record})

    async def _take_call(self, paid: PaidCall) -> None:
        try:
            request = await self._read_call(paid.body, paid.path)
            response = response_of(paid, request)
        except (ConfigError, NotAVector) as error:
            self.loaded.refuse(paid.line, str(error))
            return
        parsed = request.parsed
        weights = tokens.weights(parsed.kind, parsed.items)
        billed = tokens.share_tokens(response.usage["prompt_tokens"], weights)
        found: dict[bytes, Record] = {}
        for key, vector, cost in zip(request.spec.keys, response.vectors, billed, strict=True):
            if vector is not None:
                found.setdefault(
                    key,
                    Record(
                        vector=vector,
                        model=response.model or parsed.model or "",
                        tokens=cost,
                        tokens_exact=len(weights) == 1,
                        stored_at_s=int(self._clock()),
                        scope=request.scope_fingerprint,
                    ),
                )
        if None in response.vectors:
            position = list(response.vectors).index(None)
            self.loaded.refuse(paid.line, f"item {position} of the request: {why_unusable(response)}")
            if request.spec.is_keyed_whole:  # entries of a part of it would never be served
                return
        self._add(paid.line, request, found)

    def _add(self, line: int, request: ClientRequest, found: dict[bytes, Record]) -> None:
        parsed = request.parsed
        group = orjson.dumps([parsed.model, _without_input(parsed.parameters)], option=orjson.OPT_SORT_KEYS)
        wanted = parsed.fields.get("dimensions", parsed.fields.get("output_dimension"))
        self._ready.append(_Ready(line, group, wanted if type(wanted) is int else None, found))

    async def _store_ready(self) -> None:
        ready, self._ready = self._ready, []
        self._learn_lengths(ready)
        fresh: dict[bytes, Record] = {}
        for one in ready:
            if (reason := self._wrong_length(one)) is not None:
                self.loaded.refuse(one.line, reason)
                continue
            for key, record in one.records.items():
                if key in self._seen:
                    self.loaded.repeated += 1
                else:
                    self._seen.add(key)
                    fresh[key] = record
        if fresh:
            await self._put(fresh)

    def _learn_lengths(self, ready: Sequence[_Ready]) -> None:
        lengths: dict[bytes, list[int]] = {}
        for one in ready:
            if one.group not in self._lengths:
                found = lengths.setdefault(one.group, [])
                found += [record.vector.dimensions for record in one.records.values()]
        self._lengths |= {group: lengths_that_count(found) for group, found in lengths.items() if found}

    def _wrong_length(self, one: _Ready) -> str | None:
        for record in one.records.values():
            length = record.vector.dimensions
            if one.wanted_dimensions is not None and length != one.wanted_dimensions:
                return f"a vector of {length} numbers, and the request asks for {one.wanted_dimensions}"
            if length != self._lengths[one.group]:
                return f"a vector of {length} numbers, and others of the model have {self._lengths[one.group]}"
        return None

    async def _put(self, fresh: dict[bytes, Record]) -> None:
        before = await self._store.get_many(list(fresh), timeout_s=_READ_TIMEOUT_S)
        existing = {key: record for key, value in before.items() if (record := self._served(key, value)) is not None}
        if not self._policy.is_dry_run:
            # A record that can't be served does not count as existing. Another process may have stored something since.
            invalid = {key: value for key, value in before.items() if key not in existing}
            values = {key: records.encode(key, record, self._policy.record_key) for key, record in fresh.items()}
            overwrite = self._policy.overwrite
            taken = await self._store.put_many(values, ttl_s=self._policy.ttl_s, overwrite=overwrite, invalid=invalid)
            if not overwrite:
                existing = {key: self._served(key, value) or fresh[key] for key, value in taken.items()}
        self._count(fresh, existing)

    def _served(self, key: bytes, value: bytes) -> Record | None:
        """The record that a proxy would serve; None for one that is damaged or expired."""
        try:
            record = records.decode(key, value, self._policy.record_key)
        except InvalidRecord:
            return None
        ttl_s = self._policy.ttl_s
        return record if ttl_s is None or record.stored_at_s >= self._clock() - ttl_s else None

    def _count(self, fresh: Mapping[bytes, Record], existing: Mapping[bytes, Record]) -> None:
        loaded = self.loaded
        for key, record in fresh.items():
            if key not in existing:
                loaded.stored += 1
            elif existing[key].vector == record.vector:
                loaded.same += 1
            elif self._policy.overwrite:
                loaded.replaced += 1
            else:
                loaded.kept += 1


def _without_input(parameters: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in parameters.items() if name != "input"}
