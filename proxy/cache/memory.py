"""The memory tier: records ready to be served, bounded in bytes, synchronous.

TinyLFU decides what to evict: re-indexing a corpus larger than memory is a loop, of which LRU would keep nothing.
"""

from collections.abc import Callable, Mapping
from enum import Enum

from moka_py import Moka

from proxy.protocol import vectors
from proxy.protocol.records import Record
from proxy.protocol.vectors import DType, Encoding, Vector

# An entry's Python objects, its key and its slot in the cache: measured with tracemalloc and RSS, rounded up.
_OVERHEAD_BYTES = 600


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


class Entry:
    """A record as the hot path uses it: with its base64 text, and the numbers' text once it has been needed."""

    __slots__ = (
        "_exact", "_numbers", "_successor", "_wide", "base64", "certainty", "dtype", "model", "model_version",
        "stored_at_s", "tokens",
    )  # fmt: skip

    def __init__(self, record: Record, certainty: Certainty = Certainty.CONFIRMED) -> None:
        vector = record.vector
        self.certainty = certainty
        self._successor: Entry | None = None
        self.base64 = vectors.base64_json(vector)
        self._numbers: bytes | None = None
        self.dtype = vector.dtype
        # A float32 vector can be restored from the base64 text; other types keep their payload to write numbers.
        self._wide = None if vector.dtype in (DType.FLOAT32, DType.FLOAT32_SHORTEST) else vector.payload
        self.model = record.model
        self.tokens = record.tokens
        self._exact = record.tokens_exact
        self.stored_at_s = record.stored_at_s
        # Entries of one response have the same: the model, as the upstream names it, and the vector length.
        self.model_version = (record.model, vector.dimensions)

    @property
    def is_confirmed(self) -> bool:
        return self.certainty is Certainty.CONFIRMED

    @property
    def standing(self) -> "Entry":
        """The entry to serve: this one, or the one that superseded it."""
        entry = self
        while entry._successor is not None:
            entry = entry._successor
        return entry

    def set_successor(self, winner: "Entry") -> None:
        """Requests that still refer to this entry serve ``winner`` from now on."""
        if winner.standing is not self:
            self._successor = winner

    def mark_stored(self, certainty: Certainty) -> None:
        """The store has accepted this entry's record: it is the one to serve, even if it was superseded before."""
        self._successor = None
        self.certainty = certainty

    def record(self) -> Record:
        return Record(
            vector=self._vector(), model=self.model, tokens=self.tokens, tokens_exact=self._exact,
            stored_at_s=self.stored_at_s,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Entry {self.model!r} {self.model_version[1]} x {self.dtype.name}, {self.weight_bytes} bytes>"

    @property
    def weight_bytes(self) -> int:
        return _OVERHEAD_BYTES + len(self.base64) + len(self._numbers or b"") + len(self._wide or b"")

    @property
    def packed_bytes(self) -> int:
        """The weight after `pack`, without the overhead."""
        return len(self.base64) + len(self._wide or b"")

    def pack(self) -> None:
        """Drop the numbers' text, which `numbers` can make again."""
        self._numbers = None

    @property
    def has_numbers(self) -> bool:
        return self._numbers is not None

    def numbers(self) -> bytes:
        if self._numbers is None:
            self._numbers = vectors.numbers_json(self._vector())
        return self._numbers

    def _vector(self) -> Vector:
        if self._wide is None:
            return vectors.from_base64_json(self.base64, self.dtype)
        return Vector(self.dtype, self._wide)


def standing(entries: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
    """The entries to serve for entries that were looked up before an await."""
    return {key: entry.standing for key, entry in entries.items()}


class Memory:
    def __init__(self, max_bytes: int, *, on_evicted: Callable[[Entry], None] = lambda _: None) -> None:
        """``on_evicted`` is called with every entry that is evicted to make room."""
        self.max_bytes = max_bytes

        def on_left(_: bytes, entry: Entry, cause: str) -> None:
            if cause == "size":
                on_evicted(entry)
                entry.pack()  # a response that is being written may still refer to it

        self._entries: Moka[bytes, Entry] = Moka(
            max_bytes,
            policy="tiny_lfu",
            weigher=lambda _, entry: entry.weight_bytes,
            eviction_listener=on_left,
        )
        self.get = self._entries.get

    def put(self, key: bytes, entry: Entry) -> None:
        self._entries.set(key, entry)

    def text(self, key: bytes, entry: Entry, encoding: Encoding) -> bytes:
        """The entry's embedding as JSON."""
        if encoding is Encoding.BASE64:
            return entry.base64
        if entry.has_numbers:
            return entry.numbers()
        text = entry.numbers()
        if self._entries.get(key) is entry:
            self._entries.set(key, entry)  # it weighs more now
        else:
            entry.pack()
        return text

    @property
    def entries(self) -> int:
        self._entries.run_pending_tasks()
        return self._entries.count()

    @property
    def bytes(self) -> int:
        self._entries.run_pending_tasks()
        return self._entries.weighted_size()
