"""The epochs of models: the present generation of their entries' keys. Processes agree on it through the store.

An epoch only grows. Every process keeps the greatest that it has seen, and writes it again if the store has lost it, so
that no process returns to entries of weights that are gone.
"""

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

import msgspec

from proxy.canary.kept import Kept, KeptValues
from proxy.canary.subject import epoch_digest, key_of
from proxy.errors import StoreError

POLL_S = 0.5
EPOCHS_KEY = key_of("epochs")
_Table = dict[bytes, int]
_decode = msgspec.msgpack.Decoder(_Table).decode
_MAX_EPOCH = 2**53
# Limits, since clients choose these texts: URLs with any query, models of any name.
_MAX_REMEMBERED, _MAX_CHARS = 4096, 1024
_ATTEMPTS = 5


# The epoch of requests for a model at a URL.
EpochOf = Callable[[str, str | None], int]


def in_epoch(epoch: int) -> EpochOf:
    """The same epoch for all requests."""
    return lambda url, model: epoch


FIRST_EPOCH = in_epoch(0)


class _Epochs(NamedTuple):
    """Replaced as a whole, since other threads derive keys too. ``default`` is for models not in ``table``."""

    table: Mapping[bytes, int]
    default: int
    remembered: dict[tuple[str, str | None], int]


class Epochs:
    """The epoch of any request's model: 0 until its weights have changed.

    ``on_change`` is called, in the event loop, whenever an epoch has changed: keys derived before are outdated.
    """

    def __init__(self, kept: KeptValues, *, must_agree: bool) -> None:
        """With ``must_agree``, no other process shares its entries until it has read the store's epochs once."""
        self._kept = kept
        # Random, so no other process derives the same keys, and no vector of other weights gets from or into the store.
        self._now = _Epochs({}, _MAX_EPOCH + secrets.randbits(62) if must_agree else 0, {})
        self.is_known = False
        self.on_change: Callable[[], object] = lambda: None

    def of(self, url: str, model: str | None) -> int:
        """The epoch of requests for ``model`` at the ``url`` that is part of their keys. Safe in any thread."""
        table, default, remembered = self._now
        if not table:
            return default
        epoch = remembered.get((url, model))
        if epoch is None:
            epoch = table.get(epoch_digest(url, model), default)
            if len(remembered) < _MAX_REMEMBERED and len(url) + len(model or "") <= _MAX_CHARS:
                remembered[url, model] = epoch
        return epoch

    def current(self, digest: bytes) -> int:
        """The epoch of a subject."""
        return self._now.table.get(digest, 0)

    @property
    def largest(self) -> int:
        """The largest epoch of any subject."""
        return max(self._now.table.values(), default=0)

    async def poll(self, _late_s: float = 0.0) -> None:
        """Take over what other processes have written, and write again what the store has lost."""
        with suppress(StoreError):  # the epochs known so far apply until the next poll
            await self.refresh()

    async def refresh(self) -> None:
        """As `poll`. Raises `StoreError`."""
        found = await self._kept.read(EPOCHS_KEY)
        stored = _table_of(found)
        self._adopt(stored)
        if self._now.table != stored:
            await self._kept.swap(EPOCHS_KEY, msgspec.msgpack.encode(self._now.table), found)

    async def advance(self, digest: bytes, epoch: int) -> int:
        """Begin the epoch after ``epoch``, unless another process has done so. Returns the one that counts.

        Raises `StoreError`; then nothing has changed here.
        """
        for _ in range(_ATTEMPTS):
            found = await self._kept.read(EPOCHS_KEY)
            table = _merged(self._now.table, _table_of(found))
            if table.get(digest, 0) > epoch:
                break
            table[digest] = epoch + 1
            if await self._kept.swap(EPOCHS_KEY, msgspec.msgpack.encode(table), found):
                break
        else:
            raise StoreError("busy", "other processes changed the epochs at the same time")
        self._adopt(table)
        return table[digest]

    def _adopt(self, table: Mapping[bytes, int]) -> None:
        before, merged = self._now, _merged(self._now.table, table)
        if self.is_known and merged == before.table:
            return
        self._now = _Epochs(merged, 0, {})
        self.is_known = True
        if merged != before.table or before.default:
            self.on_change()


def _table_of(found: Kept) -> _Table:
    """The epochs that the store has; none if it has something else."""
    if found.content is None:
        return {}
    try:
        table = _decode(found.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return {digest: epoch for digest, epoch in table.items() if 0 < epoch <= _MAX_EPOCH}


def _merged(one: Mapping[bytes, int], other: Mapping[bytes, int]) -> _Table:
    return {digest: max(one.get(digest, 0), other.get(digest, 0)) for digest in {*one, *other}}
