"""Entries of the cache: records ready to be served, and how sure it is that the store has them."""

from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Self

from msgspec import Struct

from proxy.protocol import vectors
from proxy.protocol.memo import memoized
from proxy.protocol.records import Record
from proxy.protocol.vectors import DType, Vector

# An entry's Python objects, its key and its slot in the cache: measured by RSS, rounded up.
_OVERHEAD_BYTES = 600
_MAX_MODEL_LENGTH = 256  # of a name that is kept once for all entries


class Certainty(Enum):
    """What is known of the store's record under an entry's key. Every process serves the first record that the store
    has, so that record supersedes an entry that may be another."""

    CONFIRMED = "confirmed"  # the store has this record, or there is no store
    # The store is to keep this record if it is the first, and has not replied, or was down. Whatever the store turns
    # out to have supersedes it.
    INSERTING = "inserting"
    # The store has replaced an older record by this one. Another process may have done the same since, so a record
    # that is read from the store supersedes it; a late reply about a record inserted before does not.
    REPLACED = "replaced"
    # The store is to replace an older record by this one, and has not replied, or was down. Only newer records
    # supersede it.
    REPLACING = "replacing"


class _Source(Struct, frozen=True, eq=False, gc=False):
    """What the entries of one upstream call have in common, so that they share it."""

    model: str
    dtype: DType
    dimensions: int
    tokens_exact: bool
    stored_at_s: int
    scope: bytes
    # Entries of one response must have one version: the same model, as the upstream names it, and one length.
    model_version: tuple[str, int]


@lru_cache(maxsize=4096)
def _shared(scope: bytes) -> bytes:
    """An equal one, the same for most sources of a scope."""
    return scope


@memoized(max_length=_MAX_MODEL_LENGTH)
def _source(  # noqa: PLR0917 - memoized by position
    model: str, dtype: DType, dimensions: int, tokens_exact: bool, stored_at_s: int, scope: bytes
) -> _Source:
    return _Source(model, dtype, dimensions, tokens_exact, stored_at_s, _shared(scope), (model, dimensions))


class Entry(Struct, eq=False, gc=False):
    """A record as the hot path uses it, with the text of its numbers once that has been needed.

    The garbage collector does not visit entries (``gc=False``): there may be a million, and all would stop while it
    does. So no entry may be part of a cycle of references.
    """

    _payload: bytes
    _source: _Source
    tokens: int
    certainty: Certainty
    _successor: "Entry | None" = None
    _numbers: bytes | None = None

    @classmethod
    def of(cls, record: Record, certainty: Certainty = Certainty.CONFIRMED) -> Self:
        vector = record.vector
        source = _source(
            record.model, vector.dtype, vector.dimensions, record.tokens_exact, record.stored_at_s, record.scope
        )
        return cls(vector.payload, source, record.tokens, certainty, None, record.numbers)

    @property
    def model(self) -> str:
        return self._source.model

    @property
    def model_version(self) -> tuple[str, int]:
        return self._source.model_version

    @property
    def dimensions(self) -> int:
        return self._source.dimensions

    @property
    def stored_at_s(self) -> int:
        return self._source.stored_at_s

    @property
    def is_confirmed(self) -> bool:
        return self.certainty is Certainty.CONFIRMED

    @property
    def is_undecided(self) -> bool:
        """Whether the store is yet to reply whether it takes this entry's record."""
        return self.certainty in (Certainty.INSERTING, Certainty.REPLACING)

    @property
    def overwrites(self) -> bool:
        """Whether the store is to replace an older record by this one."""
        return self.certainty is Certainty.REPLACING

    @property
    def yields_to_read(self) -> bool:
        """Whether any record that is read from the store supersedes this entry, however old it is."""
        return self.certainty in (Certainty.INSERTING, Certainty.REPLACED)

    @property
    def yields_to_insert(self) -> bool:
        """Whether a record that was inserted before supersedes this entry."""
        return self.certainty is Certainty.INSERTING

    @property
    def current(self) -> "Entry":
        """The entry to serve: this one, or the one that superseded it."""
        entry = self
        while entry._successor is not None:
            entry = entry._successor
        return entry

    def set_successor(self, winner: "Entry") -> None:
        """Requests that still refer to this entry serve ``winner`` from now on."""
        if winner.current is not self:
            self._successor = winner

    def mark_stored(self, certainty: Certainty) -> None:
        """The store has accepted this entry's record: it is the one to serve, even if it was superseded before."""
        self._successor = None
        self.certainty = certainty

    def record(self) -> Record:
        source = self._source
        return Record(
            vector=self._vector, model=source.model, tokens=self.tokens, tokens_exact=source.tokens_exact,
            stored_at_s=source.stored_at_s, scope=source.scope,
        )  # fmt: skip

    def __repr__(self) -> str:
        source = self._source
        return f"<Entry {source.model!r} {source.dimensions} x {source.dtype.name}, {self.weight_bytes} bytes>"

    @property
    def weight_bytes(self) -> int:
        return _OVERHEAD_BYTES + len(self._payload) + len(self._numbers or b"")

    @property
    def packed_bytes(self) -> int:
        """The weight after `pack`, without the overhead."""
        return len(self._payload)

    def pack(self) -> None:
        """Drop the numbers' text, which `numbers` can make again."""
        self._numbers = None

    @property
    def base64(self) -> bytes:
        """The embedding as base64. It is made each time: holding it would take more memory than the vector."""
        return vectors.base64_text(self._source.dtype, self._payload)

    @property
    def base64_length(self) -> int:
        return vectors.base64_length(self._source.dtype, self._payload)

    @property
    def has_numbers(self) -> bool:
        return self._numbers is not None

    def numbers(self) -> bytes:
        """The embedding as a JSON array. It is kept: making it takes fifty times as long as base64."""
        if self._numbers is None:
            # A copy, as orjson leaves its text in the buffer that it doubled while it wrote.
            self._numbers = bytes(memoryview(vectors.numbers_json(self._vector)))
        return self._numbers

    @property
    def _vector(self) -> Vector:
        return Vector(self._source.dtype, self._payload)


def current(entries: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
    """The entries to serve for entries that were looked up before an await."""
    return {key: entry.current for key, entry in entries.items()}
