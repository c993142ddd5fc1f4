"""What the cache has of a request's items, and what is missing."""

from collections.abc import Sequence
from typing import NamedTuple, Self

from proxy.cache.cache import PEEKED_A_TURN, Cache, Peeked
from proxy.cache.entry import Entry, current
from proxy.turns import in_turns


class Lookup(NamedTuple):
    """``entries`` by key, ``from_memory`` of them from memory. ``missing`` are the other keys, each once, in input
    order."""

    entries: dict[bytes, Entry]
    missing: list[bytes]
    from_memory: int

    @classmethod
    def of(cls, keys: Sequence[bytes], entries: dict[bytes, Entry], *, from_memory: int = 0) -> Self:
        """What ``entries`` have of ``keys``, which may be repeated."""
        if all(map(entries.__contains__, keys)):
            return cls(entries, [], from_memory)
        return cls(entries, [key for key in dict.fromkeys(keys) if key not in entries], from_memory)

    @classmethod
    def nothing(cls, keys: Sequence[bytes]) -> Self:
        """A lookup that found none of ``keys``, or that does not count."""
        return cls.of(keys, {})

    def current(self) -> Self:
        """The same lookup some awaits later: by then the store may have found that other records were first."""
        return self._replace(entries=current(self.entries))


async def look_up(cache: Cache, keys: Sequence[bytes], *, min_stored_at_s: float) -> Lookup:
    """Look ``keys`` up in memory and, where something is missing, in the store.

    If everything is in memory, or there is no store, only many keys wait in here.
    """
    peeked = await peek_in_turns(cache, keys, min_stored_at_s=min_stored_at_s)
    return await look_up_in_store(cache, keys, peeked, min_stored_at_s=min_stored_at_s)


async def peek_in_turns(cache: Cache, keys: Sequence[bytes], *, min_stored_at_s: float) -> Peeked:
    """`Cache.peek_confirmed`, which takes turns with other work if there are many ``keys``."""
    if len(keys) <= PEEKED_A_TURN:
        return cache.peek_confirmed(keys, min_stored_at_s=min_stored_at_s)
    found: dict[bytes, Entry] = {}
    left_out: dict[bytes, Entry] = {}
    async for some in in_turns(keys, size=PEEKED_A_TURN):
        peeked = cache.peek_confirmed(some, min_stored_at_s=min_stored_at_s)
        found |= peeked.found
        left_out |= peeked.left_out
    return Peeked(current(found), left_out)


async def look_up_in_store(cache: Cache, keys: Sequence[bytes], peeked: Peeked, *, min_stored_at_s: float) -> Lookup:
    """`look_up` for a caller that has ``peeked`` into memory."""
    found = peeked.found
    in_memory = Lookup.of(keys, found, from_memory=len(found))
    if not in_memory.missing or not cache.has_store:
        return in_memory
    stored = await cache.read(in_memory.missing, min_stored_at_s=min_stored_at_s, left_out=peeked.left_out)
    missing = [key for key in in_memory.missing if key not in stored]
    if missing:
        # While the store was read, a fetch of another request may have brought more into memory.
        async for some in in_turns(missing, size=PEEKED_A_TURN):
            found |= cache.peek(some, min_stored_at_s=min_stored_at_s)
        missing = [key for key in missing if key not in found]
    return Lookup(found | stored, missing, from_memory=len(found))


def count_model_versions(*entries: dict[bytes, Entry]) -> int:
    """The number of model versions of entries: a response must not mix any. An entry without a model name fits each."""
    found = {entry.source.model_version for some in entries for entry in some.values()}
    if len(found) <= 1:
        return len(found)
    models, lengths = {model for model, _ in found if model}, {length for _, length in found}
    return max(len(models), len(lengths))


def count_models(*entries: dict[bytes, Entry]) -> int:
    """The number of models that entries name, of whatever length their vectors are."""
    return len({entry.model for some in entries for entry in some.values() if entry.model})
