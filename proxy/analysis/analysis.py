"""From what was read to the report: repetition, money, and caches of several sizes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from proxy import __version__
from proxy.analysis import models, simulation, statistics
from proxy.analysis.intake import Intake
from proxy.analysis.recording import Requests
from proxy.analysis.report import Assumptions, Money, Report, Scenario
from proxy.analysis.simulation import Lookups, Outcome
from proxy.analysis.statistics import ModelTotals
from proxy.analysis.token_counter import TokenCounter
from proxy.prices import price_of

_MILLION = 1_000_000


def judge(
    intake: Intake,
    counter: TokenCounter,
    *,
    memory_bytes: Sequence[int],
    store_bytes: Sequence[int | None],
    prices: Mapping[str, float],
    rate: float,
    provider: str,
    advanced: Callable[[int], object] = lambda _: None,
) -> Report:
    """The report on all that ``intake`` has read. ``prices`` are by patterns of models; ``advanced`` is called with 1
    after each size of memory."""
    requests = intake.recording.finished()
    seen = statistics.occurrences(requests)
    by_model = statistics.by_model(requests, seen)
    repetition = statistics.repetition(requests, seen)
    lookups = Lookups(requests, seen)
    del seen
    model_prices = {of.model: price_of(of.model, prices) for of in by_model}
    runner = _Runner(lookups, rate)
    scenarios: list[Scenario] = []
    for size in sorted(memory_bytes):
        scenarios += runner.scenarios(size, store_bytes, model_prices)
        advanced(1)
    return Report(
        version=__version__,
        files=intake.files,
        unread=intake.unread,
        skipped=intake.skipped,
        repetition=repetition,
        models=by_model,
        bypasses=intake.bypasses,
        refused_requests=intake.refused_requests,
        memory_needed_bytes=runner.memory_needed,
        store_needed_bytes=runner.store_needed,
        money=_money(by_model, model_prices) if prices else None,
        scenarios=scenarios,
        assumptions=_assumptions(intake, counter, requests, rate=rate, provider=provider),
        begins_at_s=float(requests.times_s[0]) if requests.has_times else None,
        ends_at_s=float(requests.times_s[-1]) if requests.has_times else None,
    )


class _Runner:
    """Runs each tier once for each size at which it evicts."""

    def __init__(self, lookups: Lookups, rate: float) -> None:
        self._lookups = lookups
        self._rate = rate
        self.memory_needed = simulation.memory_needed(lookups.requests)
        self.store_needed = simulation.store_needed(lookups.requests)

    def scenarios(
        self, memory_bytes: int, stores: Sequence[int | None], model_prices: Mapping[str | None, float | None]
    ) -> list[Scenario]:
        evicts = memory_bytes < self.memory_needed
        is_found = simulation.run_memory(self._lookups, memory_bytes) if evicts else ~self._lookups.is_first
        return [self._scenario(memory_bytes, store, is_found, model_prices) for store in stores]

    def _scenario(
        self,
        memory_bytes: int,
        store_bytes: int | None,
        in_memory: NDArray[Any],
        model_prices: Mapping[str | None, float | None],
    ) -> Scenario:
        lookups = self._lookups
        evicts = memory_bytes < self.memory_needed
        if store_bytes is None or not evicts:
            in_store = lookups.nowhere()
        elif store_bytes < self.store_needed:
            in_store = simulation.run_store(lookups, in_memory, store_bytes, rate=self._rate)
        else:  # it keeps everything
            in_store = ~in_memory & ~lookups.is_first
            evicts = False
        outcome = lookups.outcome(in_memory, in_store)
        return Scenario(
            memory_bytes=memory_bytes,
            store_bytes=store_bytes,
            evicts=evicts,
            hit_rate=outcome.hit_rate,
            items=outcome,
            tokens_upstream=sum(outcome.upstream_tokens),
            money_upstream=self._cost(outcome, model_prices),
        )

    def _cost(self, outcome: Outcome, model_prices: Mapping[str | None, float | None]) -> float | None:
        if not any(price is not None for price in model_prices.values()):
            return None
        kinds = zip(self._lookups.requests.kinds, outcome.upstream_tokens, strict=True)
        return sum(tokens * (model_prices[kind.model] or 0.0) for kind, tokens in kinds) / _MILLION


def _money(totals: Sequence[ModelTotals], model_prices: Mapping[str | None, float | None]) -> Money:
    return Money(
        without_cache=sum(of.tokens * (model_prices[of.model] or 0.0) for of in totals) / _MILLION,
        at_best=sum(of.tokens_distinct * (model_prices[of.model] or 0.0) for of in totals) / _MILLION,
        models_without_price=sorted(str(model) for model, price in model_prices.items() if price is None),
    )


def _assumptions(
    intake: Intake, counter: TokenCounter, requests: Requests, *, rate: float, provider: str
) -> Assumptions:
    assumed = intake.assumed_dimensions
    has_texts = any(file.texts for file in intake.files)
    return Assumptions(
        tokens=counter.basis,
        dimensions={str(model): own or models.UNKNOWN_DIMENSIONS for model, own in assumed.items()},
        guessed_dimensions=[str(model) for model, own in assumed.items() if own is None],
        model=intake.model if has_texts else None,
        batch=intake.batch,
        rate=None if requests.has_times else rate,
        provider=provider,
    )
