"""The epochs that proxies on a store have begun (`proxy.canary.epochs`), for commands that derive keys."""

import time

from proxy.cache.store import Store
from proxy.canary.epochs import FIRST_EPOCH, EpochOf, Epochs
from proxy.canary.kept import KeptValues
from proxy.config.settings import Settings
from proxy.protocol.records import RecordKey


async def epochs_of_proxy(settings: Settings, store: Store, record_key: RecordKey | None) -> EpochOf:
    """The epochs in which a proxy by ``settings`` derives keys. Without a canary it knows of none.

    Raises `StoreError`.
    """
    if settings.canary_interval_s is None:
        return FIRST_EPOCH
    return (await _read(store, record_key)).of


async def largest_epoch(store: Store, record_key: RecordKey | None) -> int:
    """The largest epoch of all models. Raises `StoreError`."""
    return (await _read(store, record_key)).largest


async def _read(store: Store, record_key: RecordKey | None) -> Epochs:
    epochs = Epochs(KeptValues(store, record_key=record_key, clock=time.time), must_agree=False)
    await epochs.refresh()
    return epochs
