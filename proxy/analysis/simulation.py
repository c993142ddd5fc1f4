"""The hits that a proxy with a memory tier and a store of given sizes would have had.

The memory tier is the proxy's own (`proxy.cache.memory`), filled with entries of realistic weights. Its items do not
depend on the store behind it: every item that it misses is put into it, from the store or from the upstream. So it is
run once for each size, and each store is run on its misses.

Requests come one after the other. An item that a real proxy would still be fetching counts as a hit, since it is not
paid for twice either.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from proxy.analysis.recording import RequestKind, Requests
from proxy.analysis.statistics import Occurrences
from proxy.analysis.store_model import StoreModel, entry_bytes
from proxy.cache.entry import Certainty, Entry
from proxy.cache.memory import Memory
from proxy.config.settings import MIB
from proxy.protocol.records import Record
from proxy.protocol.vectors import DType, Vector

# Bytes of a number as text, measured on unit vectors of 256 to 3,072 dimensions.
_SHORTEST_TEXT_BYTES, _WIDENED_TEXT_BYTES = 12.5, 21.0
# How often a proxy looks for a missing item in memory before it puts the item there; TinyLFU counts each look. For the
# first requests of a connection, which are parsed, it looks once less.
_LOOKS = 4
_CHUNK = 65_536  # requests
_STORE_MARGIN = 1.02  # covers the error in the estimated number of pages


class Outcome(Struct, frozen=True):
    """Where items came from, by the names of `proxy.labels.ItemResult`. ``upstream_tokens`` by number of kind."""

    memory: int
    store: int
    duplicate: int
    upstream: int
    upstream_calls: int
    upstream_tokens: list[int]

    @property
    def hit_rate(self) -> float:
        """The part of all items for which the upstream was not asked."""
        from_cache = self.memory + self.store + self.duplicate
        return from_cache / max(1, from_cache + self.upstream)


class _Weight(Entry, eq=False, gc=False):
    """An entry that stands for all entries of one weight, so it must not change."""

    def pack(self) -> None:
        pass


class _Weights(NamedTuple):
    packed: Entry
    with_numbers: Entry  # what a request for JSON numbers leaves in memory


def memory_needed(requests: Requests) -> int:
    """The bytes at which nothing would be evicted from memory."""
    weights = [
        (own.with_numbers if kind.reads_numbers else own.packed).weight_bytes
        for kind in requests.kinds
        for own in [_weights(kind)]
    ]
    return _needed(requests, weights)


def store_needed(requests: Requests) -> int:
    """The bytes at which nothing would be evicted from the store."""
    needed = _needed(requests, [entry_bytes(kind.dimensions) for kind in requests.kinds])
    return int(needed * _STORE_MARGIN) + MIB


def _needed(requests: Requests, bytes_of: Sequence[float]) -> int:
    """``bytes_of`` an item by its request's kind. If requests of several kinds have an item, the largest counts."""
    largest = np.zeros(requests.distinct)
    np.maximum.at(largest, requests.ids, np.repeat(np.array(bytes_of)[requests.kind_of], requests.sizes))
    return int(largest.sum())


class Lookups:
    """The requests as a cache sees them: each item once a request."""

    def __init__(self, requests: Requests, seen: Occurrences) -> None:
        is_looked_up = ~seen.is_in_request
        self.requests = requests
        self.ids = requests.ids[is_looked_up]
        self.request_of = seen.request_of[is_looked_up].astype(np.uint32)
        self.is_first = seen.is_first[is_looked_up]
        self.duplicates = len(requests.ids) - len(self.ids)

    def outcome(self, in_memory: NDArray[Any], in_store: NDArray[Any]) -> Outcome:
        """``in_memory`` and ``in_store`` are for each lookup whether it found the item there."""
        requests = self.requests
        is_missing = ~(in_memory | in_store)
        tokens = requests.tokens[self.ids[is_missing]]
        kinds = requests.kind_of[self.request_of[is_missing]]
        by_kind = np.bincount(kinds, tokens, minlength=len(requests.kinds))
        return Outcome(
            memory=int(in_memory.sum()),
            store=int(in_store.sum()),
            duplicate=self.duplicates,
            upstream=int(is_missing.sum()),
            upstream_calls=len(np.unique(self.request_of[is_missing])),
            upstream_tokens=[int(count) for count in by_kind],
        )

    def nowhere(self) -> NDArray[Any]:
        return np.zeros(len(self.ids), bool)

    def each(self, part: NDArray[Any] | None = None) -> Iterator[tuple[int, int, list[int]]]:
        """For each request with lookups in ``part``, a mask: the position of the first of them within ``part``, the
        request's number, and the items. Without ``part``, all lookups are in it."""
        positions = np.arange(len(self.ids)) if part is None else np.flatnonzero(part)
        numbers = self.request_of[positions]
        ends = np.append(np.flatnonzero(np.diff(numbers)) + 1, len(numbers)) if len(numbers) else numbers
        start = 0
        for at in range(0, len(ends), _CHUNK):
            some = ends[at : at + _CHUNK].tolist()
            base, items = start, self.ids[positions[start : some[-1]]].tolist()
            of = numbers[start : some[-1]].tolist()
            for end in some:
                yield start, of[start - base], items[start - base : end - base]
                start = end


def run_memory(lookups: Lookups, memory_bytes: int) -> NDArray[Any]:
    """Whether each lookup finds its item in a memory tier of this size."""
    kinds = lookups.requests.kinds
    weights = [_weights(kind) for kind in kinds]
    memory = Memory(memory_bytes)
    # The keys are numbers here.
    get, put = cast(Callable[[int], Entry | None], memory.get), cast(Any, memory.put)
    kind_of = _view(lookups.requests.kind_of)
    found = bytearray(b"\1") * len(lookups.ids)
    for start, number, items in lookups.each():
        kind = kind_of[number]
        packed, with_numbers = weights[kind]
        fresh = with_numbers if kinds[kind].reads_numbers else packed
        is_missing = False
        for position, item in enumerate(items, start):
            entry = get(item)
            if entry is None:
                found[position] = 0
                is_missing = True
                for _ in range(_LOOKS - 1):
                    get(item)
                put(item, fresh)
            elif entry is not fresh and fresh is with_numbers:
                put(item, fresh)
        if is_missing and kinds[kind].is_keyed_whole:  # then memory serves none of its items
            found[start : start + len(items)] = bytes(len(items))
    return np.frombuffer(found, bool)


def run_store(lookups: Lookups, in_memory: NDArray[Any], store_bytes: int, *, rate: float) -> NDArray[Any]:
    """Whether each lookup that does not find its item in memory finds it in a store of this size. Requests without
    times come at ``rate`` a second."""
    requests = lookups.requests
    store = StoreModel(store_bytes, requests.distinct)
    times_s = requests.times_s if requests.has_times else np.arange(len(requests.sizes)) / rate
    times, kind_of = _view(times_s), _view(requests.kind_of)
    found = bytearray()
    for _, number, items in lookups.each(~in_memory):
        now_s, kind = times[number], requests.kinds[kind_of[number]]
        stored = [store.read(item, now_s) for item in items]
        missing = [item for item, is_stored in zip(items, stored, strict=True) if not is_stored]
        if missing:
            store.put(missing, kind.dimensions, now_s)
            if kind.is_keyed_whole:
                stored = [False] * len(items)
        found += bytes(stored)
    in_store = lookups.nowhere()
    in_store[~in_memory] = np.frombuffer(found, bool)
    return in_store


def _view(array: NDArray[Any]) -> memoryview:
    """A view that returns single elements faster than numpy does."""
    return memoryview(cast(Any, np.ascontiguousarray(array)))


def _weights(kind: RequestKind) -> _Weights:
    dtype = DType.FLOAT32_SHORTEST if kind.shortest else DType.FLOAT32
    vector = Vector(dtype, bytes(4 * kind.dimensions))
    text = bytes(int(kind.dimensions * (_SHORTEST_TEXT_BYTES if kind.shortest else _WIDENED_TEXT_BYTES)))

    def entry(numbers: bytes | None) -> Entry:
        record = Record(vector=vector, model="", tokens=0, tokens_exact=True, stored_at_s=0, numbers=numbers)
        return _Weight.of(record, Certainty.CONFIRMED)

    return _Weights(entry(None), entry(text))
