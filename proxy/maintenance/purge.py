"""Removes entries from a store, and so from the memory of every proxy that uses it."""

from collections import Counter
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum, auto
from fnmatch import fnmatchcase

from proxy.cache.store import Purge, PurgedModels, Store
from proxy.maintenance.transfer import Advance, pages
from proxy.protocol import records
from proxy.protocol.records import InvalidRecord

_EVERY_MODEL = "*"
_KEYS_PER_DELETION = 256
# If more keys were announced, they would push each other out of the store's log.
_MAX_ANNOUNCED_KEYS = 4096
_TIMEOUT_S = 30.0
# In place of the model:
NO_RECORD = "(invalid)"  # for a value that is no valid record
OWN = "(of the canary)"  # for what the proxy keeps for itself


class Unselected(Enum):
    """Why an entry is not selected."""

    OTHER = auto()
    NO_SCOPE = auto()  # it meets the other conditions, but an earlier version stored it without its scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Selects the entries that meet all conditions. Without conditions it selects everything, including invalid values
    and what the proxy keeps for itself."""

    model: str | None = None  # a pattern
    stored_before_s: float | None = None  # Unix time
    scopes: AbstractSet[bytes] | None = None  # fingerprints

    @property
    def is_everything(self) -> bool:
        return self.model is None and self.stored_before_s is None and self.scopes is None

    @property
    def announced(self) -> frozenset[PurgedModels]:
        pattern = _EVERY_MODEL if self.model is None else self.model
        scopes = (None,) if self.scopes is None else self.scopes
        return frozenset(PurgedModels(pattern, scope, self.stored_before_s) for scope in scopes)

    def model_of(self, key: bytes, value: bytes) -> "str | Unselected":
        """The model of an entry that is selected."""
        try:
            record, _ = records.inspect(key, value)
        except InvalidRecord:
            return NO_RECORD if self.is_everything else Unselected.OTHER
        if record.model == records.OWN:
            return OWN if self.is_everything else Unselected.OTHER
        if self.model is not None and not fnmatchcase(record.model, self.model):
            return Unselected.OTHER
        if self.stored_before_s is not None and record.stored_at_s >= self.stored_before_s:
            return Unselected.OTHER
        if self.scopes is not None and record.scope not in self.scopes:
            return Unselected.OTHER if record.scope else Unselected.NO_SCOPE
        return record.model


@dataclass(slots=True)
class Purged:
    entries: Counter[str] = field(default_factory=Counter)  # by model
    bytes: int = 0  # of keys and values
    unknown: int = 0  # entries that stay, though they may be of the scope


async def purge(store: Store, selection: Selection, *, is_dry_run: bool, advance: Advance) -> Purged:
    """Remove the selected entries. Raises `StoreError`.

    The purge is announced to every process. Each drops its whole memory tier, which may have entries that the store has
    evicted, and does not store what it is fetching if that would be selected too. The purge is announced before the
    deletions and again after them, because they may push the first announcement out of the store's log.
    """
    announced = Purge(models=selection.announced)
    if not is_dry_run:
        await store.announce_purge(announced)
    purged = Purged()
    async for values, _ in pages(store):
        found = {key: selection.model_of(key, value) for key, value in values.items()}
        selected = {key: model for key, model in found.items() if isinstance(model, str)}
        purged.unknown += sum(model is Unselected.NO_SCOPE for model in found.values())
        await _delete(store, selected, values, purged, is_dry_run=is_dry_run)
        advance(len(values))
    if not is_dry_run:
        await store.announce_purge(announced)
    return purged


async def purge_keys(store: Store, keys: Collection[bytes], *, is_dry_run: bool, advance: Advance) -> Purged:
    """Remove the entries of ``keys``, as `purge` does."""
    distinct = list(dict.fromkeys(keys))
    is_large = len(distinct) > _MAX_ANNOUNCED_KEYS
    announced = Purge(models=Selection().announced) if is_large else Purge(keys=frozenset(distinct))
    if not is_dry_run:
        await store.announce_purge(announced)
    purged = Purged()
    everything = Selection()
    for start in range(0, len(distinct), _KEYS_PER_DELETION):
        some = distinct[start : start + _KEYS_PER_DELETION]
        values = await store.get_many(some, timeout_s=_TIMEOUT_S)
        found = {key: str(everything.model_of(key, value)) for key, value in values.items()}
        # All keys, because a process may have entries in memory that are no longer in the store.
        await _delete(store, found, values, purged, is_dry_run=is_dry_run, also=some)
        advance(len(some))
    if not is_dry_run:
        await store.announce_purge(announced)
    return purged


async def _delete(
    store: Store,
    models: Mapping[bytes, str],
    values: Mapping[bytes, bytes],
    purged: Purged,
    *,
    is_dry_run: bool,
    also: Collection[bytes] = (),
) -> None:
    keys = list(dict.fromkeys([*models, *also]))
    if keys and not is_dry_run:
        await store.delete_many(keys)
    purged.entries.update(models.values())
    purged.bytes += sum(len(key) + len(values[key]) for key in models)
