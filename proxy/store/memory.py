"""The tier in front: records ready to be served, bounded in bytes, synchronous.

TinyLFU decides who stays: a re-index of a corpus larger than memory is a loop, of which LRU keeps nothing.
"""

from collections.abc import Callable

from moka_py import Moka

from proxy import vectors
from proxy.record import Record
from proxy.vectors import DType, Vector
from proxy.wire import Encoding

# An entry's Python objects, its key and its place in the cache: measured with tracemalloc and RSS, rounded up.
_OVERHEAD_BYTES = 600


class Entry:
    """A record as the hot path wants it: the base64 text ready, the numbers' text from when it is first asked for."""

    __slots__ = ("_numbers", "_wide", "base64", "dtype", "epoch", "model", "stored_at_s", "tokens")

    def __init__(self, record: Record) -> None:
        vector = record.vector
        self.base64 = vectors.base64_json(vector)
        self._numbers: bytes | None = None
        self.dtype = vector.dtype
        # base64 holds all there is of a float32; other types keep their payload for when numbers are asked for.
        self._wide = None if vector.dtype in (DType.FLOAT32, DType.FLOAT32_SHORTEST) else vector.payload
        self.model = record.model
        self.tokens = record.tokens
        self.stored_at_s = record.stored_at_s
        # Entries of one answer must be of one epoch: the same model, as the upstream names it, and one length.
        self.epoch = (record.model, vector.dimensions)

    def __repr__(self) -> str:
        return f"<Entry {self.model!r} {self.epoch[1]} x {self.dtype.name}, {self.weight_bytes} bytes>"

    @property
    def weight_bytes(self) -> int:
        return _OVERHEAD_BYTES + len(self.base64) + len(self._numbers or b"") + len(self._wide or b"")

    @property
    def has_numbers(self) -> bool:
        return self._numbers is not None

    def numbers(self) -> bytes:
        if self._numbers is None:
            if self._wide is None:
                vector = vectors.from_base64_json(self.base64, self.dtype)
            else:
                vector = Vector(self.dtype, self._wide)
            self._numbers = vectors.numbers_json(vector)
        return self._numbers


class Memory:
    def __init__(self, max_bytes: int, *, on_evicted: Callable[[Entry], None] = lambda _: None) -> None:
        """``on_evicted`` is told of every entry that leaves for want of room."""
        self.max_bytes = max_bytes

        def on_left(_: bytes, entry: Entry, cause: str) -> None:
            if cause == "size":
                on_evicted(entry)

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
        return text

    @property
    def entries(self) -> int:
        self._entries.run_pending_tasks()
        return self._entries.count()

    @property
    def bytes(self) -> int:
        self._entries.run_pending_tasks()
        return self._entries.weighted_size()
