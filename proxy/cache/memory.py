"""The memory tier: entries, bounded in bytes, synchronous.

TinyLFU decides what to evict. Re-indexing a corpus larger than memory asks for its texts in a loop, and LRU would evict
each of them before it is asked for again.
"""

import asyncio
from collections.abc import Callable

from moka_py import Moka

from proxy.cache.entry import Entry, Source, weight_bytes
from proxy.protocol.vectors import Encoding


class Memory:
    def __init__(self, max_bytes: int, *, on_evicted: Callable[[Entry], None] = lambda _: None) -> None:
        """``on_evicted`` is called with every entry that is evicted to make room."""
        self.max_bytes = max_bytes
        self._to_keep: list[tuple[bytes, Entry]] | None = None  # while all entries are discarded

        def on_left(key: bytes, entry: Entry, cause: str) -> None:
            if cause == "size":
                on_evicted(entry)
                entry.pack()  # a response that is being written may still refer to it
            elif self._to_keep is not None and cause == "explicit" and entry.is_undecided:
                self._to_keep.append((key, entry))

        self._entries: Moka[bytes, Entry] = Moka(
            max_bytes,
            policy="tiny_lfu",
            weigher=weight_bytes,
            eviction_listener=on_left,
        )
        self.get = self._entries.get
        self.put: Callable[[bytes, Entry], None] = self._entries.set

    def discard(self, key: bytes) -> None:
        self._entries.remove(key)

    async def clear(self, *, purges: Callable[[bytes, Source], bool] = lambda *_: False) -> int:
        """Discard all entries, except those that the store has not decided on, since they may be nowhere else, unless
        ``purges`` is true of them. Returns how many there were.

        Other tasks run meanwhile: moka hides all entries at once, but takes seconds to remove a million of them.
        """
        before = left = self.entries
        self._to_keep = []
        self._entries.clear()
        while (now_left := self.entries) < left:
            left = now_left
            await asyncio.sleep(0)
        left_over, self._to_keep = self._to_keep or [], None
        kept = [(key, entry) for key, entry in left_over if not purges(key, entry.source)]
        for key, entry in kept:
            if entry.is_undecided and entry.current is entry and self.get(key) is None:
                self.put(key, entry)
        return before - len(kept)

    def text(self, key: bytes, entry: Entry, encoding: Encoding) -> bytes:
        """The entry's embedding: its base64, or a JSON array."""
        if encoding is Encoding.BASE64:
            return entry.base64
        if entry.has_numbers:
            return entry.numbers()
        if self._entries.get(key) is not entry:
            return entry.numbers_json()
        text = entry.numbers()
        self._entries.set(key, entry)  # it weighs more now
        return text

    def text_length(self, key: bytes, entry: Entry, encoding: Encoding) -> int:
        """The length of `text`, for which base64 is not made."""
        return entry.base64_length if encoding is Encoding.BASE64 else len(self.text(key, entry, encoding))

    @property
    def entries(self) -> int:
        self._entries.run_pending_tasks()
        return self._entries.count()

    @property
    def bytes(self) -> int:
        self._entries.run_pending_tasks()
        return self._entries.weighted_size()
