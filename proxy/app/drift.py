"""The canary, if the settings ask for one: what it checks, and where it keeps the results."""

from collections.abc import Callable
from contextlib import AsyncExitStack

from proxy.cache.cache import Cache
from proxy.canary.canary import TICK_S, Canary
from proxy.canary.epochs import POLL_S, Epochs
from proxy.canary.in_use import SubjectsInUse
from proxy.canary.kept import KeptValues
from proxy.canary.report import Report
from proxy.config.settings import Settings
from proxy.periodic import every
from proxy.protocol.records import RecordKey
from proxy.telemetry.metrics import Metrics
from proxy.upstream.router import Router


async def open_canary(
    stack: AsyncExitStack,
    settings: Settings,
    metrics: Metrics,
    router: Router,
    cache: Cache,
    *,
    clock: Callable[[], float],
) -> Canary | None:
    """Check models until ``stack`` is closed. When this returns, the store's epochs are known, if the store works."""
    if settings.canary_interval_s is None:
        return None
    record_key = None if settings.record_key is None else RecordKey(settings.record_key)
    kept = KeptValues(cache.store, record_key=record_key, clock=clock)
    epochs = Epochs(kept, must_agree=settings.begins_epochs)
    await epochs.poll()
    canary = Canary(
        router.all,
        kept,
        SubjectsInUse(metrics.items_of_model, clock=clock),
        epochs,
        Report(metrics),
        interval_s=settings.canary_interval_s,
        begins_epochs=settings.begins_epochs,
        clock=clock,
    )
    if not kept.is_local:
        await stack.enter_async_context(every(POLL_S, epochs.poll))
    await stack.enter_async_context(every(TICK_S, canary.tick))
    return canary
