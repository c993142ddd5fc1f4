"""The requests in their order, as numbers: a few bytes for each item, and some 170 for each distinct one (pure)."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The part of a key that is kept. Among a billion keys, two have the same part with a probability below 10⁻²⁰.
_KEY_BYTES = 16
_MAX_KINDS = 65_535  # a hostile log may name any number of models


class RequestKind(NamedTuple):
    """The common properties of requests that are counted together."""

    model: str | None
    dimensions: int
    reads_numbers: bool  # the vectors are requested as JSON numbers and not as base64
    shortest: bool  # these numbers are the shortest texts of float32
    is_keyed_whole: bool


OTHER_KIND = RequestKind("(other models)", 1536, reads_numbers=False, shortest=True, is_keyed_whole=False)


class Recording:
    """Requests and their items, each item with the number of its key."""

    def __init__(self) -> None:
        self.kinds: list[RequestKind] = []
        self._kinds: dict[RequestKind, int] = {}
        self._numbers: dict[bytes, int] = {}
        self._ids = array("I")  # of each item
        self._sizes = array("I")  # items of each request
        self._kind_of = array("H")  # of each request
        self._times_s = array("d")  # of each request; NaN: not known
        self._tokens = array("I")  # of each distinct item

    def add(self, kind: RequestKind, keys: Sequence[bytes], at_s: float | None) -> list[int]:
        """Add a request. Returns the positions in ``keys`` of the items that no request had before."""
        fresh = []
        numbers, ids = self._numbers, self._ids
        for position, key in enumerate(keys):
            short = key[:_KEY_BYTES]
            number = numbers.get(short)
            if number is None:
                number = numbers[short] = len(numbers)
                fresh.append(position)
            ids.append(number)
        self._sizes.append(len(keys))
        self._kind_of.append(self._kind_number(kind))
        self._times_s.append(np.nan if at_s is None else at_s)
        return fresh

    def set_tokens(self, tokens: Iterable[int]) -> None:
        """The tokens of the items that `add` called new, in that order."""
        self._tokens.extend(min(count, 2**32 - 1) for count in tokens)

    def _kind_number(self, kind: RequestKind) -> int:
        number = self._kinds.get(kind)
        if number is None:
            if len(self.kinds) >= _MAX_KINDS and kind != OTHER_KIND:
                return self._kind_number(OTHER_KIND)
            number = self._kinds[kind] = len(self.kinds)
            self.kinds.append(kind)
        return number

    def finished(self) -> "Requests":
        """All requests, in the order of their times if each has one. Nothing can be added any more."""
        self._numbers.clear()
        requests = Requests(
            ids=np.frombuffer(self._ids, np.uint32) if self._ids else np.zeros(0, np.uint32),
            sizes=np.frombuffer(self._sizes, np.uint32) if self._sizes else np.zeros(0, np.uint32),
            kind_of=np.frombuffer(self._kind_of, np.uint16) if self._kind_of else np.zeros(0, np.uint16),
            times_s=np.frombuffer(self._times_s, np.float64) if self._times_s else np.zeros(0),
            tokens=np.frombuffer(self._tokens, np.uint32) if self._tokens else np.zeros(0, np.uint32),
            kinds=self.kinds,
        )
        return requests.by_time() if requests.has_times else requests


class Requests(NamedTuple):
    """All requests. ``ids`` are concatenated: those of the first request are the first ``sizes[0]``."""

    ids: NDArray[Any]
    sizes: NDArray[Any]
    kind_of: NDArray[Any]
    times_s: NDArray[Any]
    tokens: NDArray[Any]  # of each distinct item, by its id
    kinds: list[RequestKind]

    @property
    def distinct(self) -> int:
        return len(self.tokens)

    @property
    def has_times(self) -> bool:
        return len(self.times_s) > 0 and not bool(np.isnan(self.times_s).any())

    @property
    def starts(self) -> NDArray[Any]:
        """Where the items of each request begin."""
        return np.concatenate(([0], np.cumsum(self.sizes, dtype=np.int64)[:-1])) if len(self.sizes) else self.sizes

    def by_time(self) -> "Requests":
        """In the order of their times. Requests of one moment stay in the order of the files."""
        order = np.argsort(self.times_s, kind="stable")
        if bool((order[1:] > order[:-1]).all()):
            return self
        starts = self.starts
        sizes = self.sizes[order]
        offsets = np.repeat(starts[order] - np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)[:-1])), sizes)
        ids = self.ids[np.arange(len(self.ids)) + offsets]
        return self._replace(ids=ids, sizes=sizes, kind_of=self.kind_of[order], times_s=self.times_s[order])
