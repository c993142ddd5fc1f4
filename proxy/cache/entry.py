"""Entries of the cache: records ready to be served, and how sure it is that the store has them."""

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import lru_cache
from typing import Self

from msgspec import Struct
from pybase64 import b64encode

from proxy.protocol import vectors
from proxy.protocol.records import Record, RecordFields
from proxy.protocol.vectors import DType, Vector

# An entry's Python objects, its key and its slot in the cache: measured by RSS, rounded up.
_OVERHEAD_BYTES = 600
_MAX_MODEL_LENGTH = 256  # of a name that is kept once for all entries; longer ones may come from the store
_MAX_CHAR_BYTES = 4  # in CPython


class Certainty(Enum):
    """What is known of the store's record under an entry's key. Every process serves the first record that the store
    has, so that record supersedes an entry that may be another."""

    CONFIRMED = "confirmed"  # the store has this record, or there is no store
    # The store was to insert this record unless it has one, but has not replied yet or was down. If the store then has
    # another record, that one supersedes this one.
    INSERTING = "inserting"
    # The store has replaced an older record by this one. Another process may have replaced this one since, so a record
    # read from the store supersedes it. A late reply to an earlier insert does not.
    REPLACED = "replaced"
    # The store was to replace an older record by this one, but has not replied yet or was down. Only newer records
    # supersede it.
    REPLACING = "replacing"

    __hash__ = object.__hash__  # an Enum's own is a function in Python


class Source(Struct, frozen=True, eq=False, gc=False):
    """What the entries of one upstream call have in common, so that they share it. The hot path reads it directly:
    a property of each entry takes longer than the rest of a look-up."""

    model: str
    dtype: DType
    dimensions: int
    tokens_exact: bool
    stored_at_s: int
    scope: bytes
    certainty: Certainty
    # Entries of one response must have one version: the same model, as the upstream names it, and one length.
    model_version: tuple[str, int]
    is_base64_as_stored: bool
    base64_length: int  # of an embedding
    payload_bytes: int  # its vector
    overhead_bytes: int  # of an entry: what it takes besides its vector and the text of its numbers


@lru_cache(maxsize=4096)
def _shared(scope: bytes) -> bytes:
    """An equal object, so that most sources of a scope share one copy."""
    return scope


def _new_source(  # noqa: PLR0917 - memoized by position
    model: str,
    dtype: DType,
    dimensions: int,
    tokens_exact: bool,
    stored_at_s: int,
    scope: bytes,
    certainty: Certainty,
) -> Source:
    return Source(
        model, dtype, dimensions, tokens_exact, stored_at_s, _shared(scope), certainty, (model, dimensions),
        vectors.is_base64_as_stored(dtype), vectors.base64_length(dtype, dimensions),
        vectors.ITEM_BYTES[dtype] * dimensions,
        _OVERHEAD_BYTES + (_MAX_CHAR_BYTES * len(model) if len(model) > _MAX_MODEL_LENGTH else 0),
    )  # fmt: skip


_cached_source = lru_cache(maxsize=4096)(_new_source)


def _source(model: str) -> Callable[..., Source]:
    """Makes a source of a model's entries. This returns the function, since a call of that by another would take longer
    than the rest of making an entry."""
    return _cached_source if len(model) <= _MAX_MODEL_LENGTH else _new_source


class Entry(Struct, eq=False, gc=False):
    """A record as the hot path uses it, with the text of its numbers once that has been needed.

    The garbage collector does not visit entries (``gc=False``): there may be a million, and all would stop while it
    does. So no entry may be part of a cycle of references. Every 16 bytes of an entry are 16 MB for a million.
    """

    payload: bytes
    source: Source
    tokens: int
    # The text of the numbers; or the entry that superseded this one, which is served instead.
    _numbers_or_successor: "bytes | Entry | None" = None

    @classmethod
    def of(cls, record: Record, certainty: Certainty = Certainty.CONFIRMED) -> Self:
        vector = record.vector
        source = _source(record.model)(
            record.model, vector.dtype, vector.dimensions, record.tokens_exact, record.stored_at_s, record.scope,
            certainty,
        )  # fmt: skip
        return cls(vector.payload, source, record.tokens, record.numbers)

    @classmethod
    def of_fields(cls, its: RecordFields) -> Self:
        """The entry of a record that is in the store."""
        source = _source(its.model)(
            its.model, its.dtype, its.dimensions, its.tokens_exact, its.stored_at_s, its.scope, Certainty.CONFIRMED
        )
        return cls(its.payload, source, its.tokens)

    @property
    def model(self) -> str:
        return self.source.model

    @property
    def model_version(self) -> tuple[str, int]:
        return self.source.model_version

    @property
    def dimensions(self) -> int:
        return self.source.dimensions

    @property
    def stored_at_s(self) -> int:
        return self.source.stored_at_s

    @property
    def certainty(self) -> Certainty:
        return self.source.certainty

    @property
    def is_confirmed(self) -> bool:
        return self.certainty is Certainty.CONFIRMED

    @property
    def is_undecided(self) -> bool:
        """Whether the store has not replied yet if it keeps this entry's record."""
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
        while isinstance(successor := entry._numbers_or_successor, Entry):
            entry = successor
        return entry

    def set_successor(self, winner: "Entry") -> None:
        """Requests that still refer to this entry serve ``winner`` from now on, unless that already leads here."""
        entry: bytes | Entry | None = winner
        while isinstance(entry, Entry) and entry is not self:
            entry = entry._numbers_or_successor  # noqa: SLF001 - of the same class
        if entry is not self:
            self._numbers_or_successor = winner

    def mark_stored(self, certainty: Certainty) -> None:
        """The store has accepted this entry's record: it is the one to serve, even if it was superseded before."""
        if isinstance(self._numbers_or_successor, Entry):
            self._numbers_or_successor = None
        its = self.source
        self.source = _source(its.model)(
            its.model, its.dtype, its.dimensions, its.tokens_exact, its.stored_at_s, its.scope, certainty
        )

    def record(self) -> Record:
        source = self.source
        return Record(
            vector=self._vector, model=source.model, tokens=self.tokens, tokens_exact=source.tokens_exact,
            stored_at_s=source.stored_at_s, scope=source.scope,
        )  # fmt: skip

    def __repr__(self) -> str:
        source = self.source
        return f"<Entry {source.model!r} {source.dimensions} x {source.dtype.name}, {self.weight_bytes} bytes>"

    @property
    def weight_bytes(self) -> int:
        return weight_bytes(b"", self)

    def pack(self) -> None:
        """Drop the numbers' text, which `numbers` can make again."""
        if isinstance(self._numbers_or_successor, bytes):
            self._numbers_or_successor = None

    @property
    def base64(self) -> bytes:
        """The embedding as base64. It is made each time: holding it would take more memory than the vector."""
        return vectors.base64_text(self.source.dtype, self.payload)

    @property
    def base64_length(self) -> int:
        return self.source.base64_length

    @property
    def has_numbers(self) -> bool:
        return isinstance(self._numbers_or_successor, bytes)

    def numbers(self) -> bytes:
        """The embedding as a JSON array. It is kept: making it takes fifty times as long as base64."""
        text = self._numbers_or_successor
        if not isinstance(text, bytes):
            text = self.numbers_json()
            if self._numbers_or_successor is None:
                self._numbers_or_successor = text
        return text

    def numbers_json(self) -> bytes:
        """The same, made each time, for an entry that is in memory no more."""
        return vectors.numbers_json(self._vector)

    @property
    def _vector(self) -> Vector:
        return Vector(self.source.dtype, self.payload)


def weight_bytes(_: bytes, entry: Entry) -> int:
    """The memory that an entry takes in the cache under its key."""
    text = entry._numbers_or_successor  # noqa: SLF001 - in one call, because it is made for each entry that is put
    return entry.source.overhead_bytes + len(entry.payload) + (len(text) if isinstance(text, bytes) else 0)


def current(entries: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """The entries to serve for entries that were looked up before an await: mostly ``entries`` itself."""
    if Entry not in [type(entry._numbers_or_successor) for entry in entries.values()]:  # noqa: SLF001 - in this module
        return entries
    return {key: entry.current for key, entry in entries.items()}


def base64_texts(entries: Iterable[Entry]) -> list[bytes]:
    """`Entry.base64` of each."""
    return [b64encode(entry.payload) if entry.source.is_base64_as_stored else entry.base64 for entry in entries]


def generated_base64(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The same, each made when it is needed."""
    return (b64encode(entry.payload) if entry.source.is_base64_as_stored else entry.base64 for entry in entries)
