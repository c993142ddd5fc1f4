"""The parts that know nothing of clients: the upstreams, the cache, and the fetcher between them."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from proxy.access.validations import Validations
from proxy.app.drift import open_canary
from proxy.app.lifecycle import Lifecycle
from proxy.app.storage import open_cache
from proxy.app.upstreams import open_router
from proxy.cache.cache import Cache
from proxy.cache.change_feed import POLL_S
from proxy.cache.store import CounterStore
from proxy.canary.canary import Canary
from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.fetch.batcher import Batcher
from proxy.fetch.fetcher import Fetcher
from proxy.fetch.lane import Lanes
from proxy.fetch.spending import REPORT_S, Spending
from proxy.fetch.write_through import WriteThrough
from proxy.ledger.ledger import MAX_PSEUDONYMS, Ledger
from proxy.pacing.pacer import Pacer
from proxy.periodic import every
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import Traces
from proxy.upstream.router import Router, matches

_MIN_COUNT_S = 0.5  # a call may wait longer for the count of its budget than a hit waits for the store


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    lifecycle: Lifecycle
    metrics: Metrics
    traces: Traces
    router: Router
    cache: Cache
    validations: Validations
    fetcher: Fetcher
    canary: Canary | None


async def open_core(
    stack: AsyncExitStack, settings: Settings, *, clock: Callable[[], float], monotonic: Callable[[], float]
) -> Core:
    """Open the parts. Closing ``stack`` ends each part before the parts that it depends on."""
    lifecycle = Lifecycle()
    metrics = Metrics(prices=settings.prices, ledger=_make_ledger(settings))
    traces = _open_traces(settings)
    lifecycle.close_at_exit(stack, "sending traces", traces.aclose)
    router = await open_router(stack, settings, metrics)
    cache, counters = open_cache(settings, metrics, clock=clock, monotonic=monotonic)
    lifecycle.close_at_exit(stack, "writing to the store", cache.aclose)
    await stack.enter_async_context(every(POLL_S, cache.feed.poll))
    validations = Validations(ttl_s=settings.revalidate_s, clock=monotonic)
    batcher = _make_batcher(settings, metrics, cache, validations, clock=clock)
    spending = _make_spending(settings, counters, metrics, clock=clock)
    lifecycle.close_at_exit(stack, "reporting what was spent", spending.aclose)
    await stack.enter_async_context(every(REPORT_S, lambda _: spending.report_all()))
    fetcher = Fetcher(
        cache,
        batcher,
        validations,
        timeout_s=settings.upstream_timeout_s,
        spending=spending,
        shares_all=settings.shares_all,
    )
    lifecycle.close_at_exit(stack, "fetching from upstreams", fetcher.drain)
    canary = await open_canary(stack, settings, metrics, router, cache, clock=clock)
    return Core(
        lifecycle=lifecycle,
        metrics=metrics,
        traces=traces,
        router=router,
        cache=cache,
        validations=validations,
        fetcher=fetcher,
        canary=canary,
    )


def _make_spending(
    settings: Settings, counters: CounterStore | None, metrics: Metrics, *, clock: Callable[[], float]
) -> Spending:
    budgets = settings.budgets
    return Spending(
        budgets.budgets,
        store=counters,
        prices=settings.prices,
        metrics=metrics,
        fails_open=budgets.fails_open,
        timeout_s=max(_MIN_COUNT_S, settings.store_timeout_s),
        clock=clock,
    )


def _make_ledger(settings: Settings) -> Ledger:
    max_clients = None if settings.client_keys is not None else MAX_PSEUDONYMS
    return Ledger(is_on=settings.counts_clients, max_clients=max_clients)


def _open_traces(settings: Settings) -> Traces:
    if settings.traces == "off":
        return Traces()
    try:
        from proxy.telemetry import otlp  # noqa: PLC0415 - its dependencies are an extra
    except ImportError as error:
        raise ConfigError(
            f"--traces {settings.traces} needs OpenTelemetry ({error}): pip install 'embedding-cache-proxy[otel]',"
            f" or in a clone: .venv/bin/pip install '.[otel]'"
        ) from error
    return otlp.start()


def _make_batcher(
    settings: Settings, metrics: Metrics, cache: Cache, validations: Validations, *, clock: Callable[[], float]
) -> Batcher:
    return Batcher(
        metrics,
        WriteThrough(cache, validations, clock=clock),
        window_s=settings.batch_window_s,
        concurrency=settings.upstream_concurrency,
        timeout_s=settings.upstream_timeout_s,
        max_queued_items=settings.max_queued_items,
        max_queued_bytes=settings.max_held_bytes,
        # A response is in memory twice while it is joined from its chunks.
        max_incoming_bytes=settings.max_held_bytes // 4,
        room=cache.room,
        lanes=Lanes(partial(_new_pacer, settings)) if settings.rate_limit_wait_s > 0 else None,
    )


def _new_pacer(settings: Settings, upstream: str, model: str | None) -> Pacer:
    limits = (limit for own in settings.upstreams if own.name == upstream for limit in own.limits)
    for limit in limits:
        if matches(model or "", limit.models):
            return Pacer(requests_per_minute=limit.requests_per_minute, tokens_per_minute=limit.tokens_per_minute)
    return Pacer()
