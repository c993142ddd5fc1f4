"""Quantiles of a histogram (pure)."""

from dataclasses import dataclass
from math import inf

from proxy.admin.samples import Buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Quantiles are estimates. None means no observations; a quantile of ``limit_s`` means that or more."""

    count: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    limit_s: float


def latency_of(buckets: Buckets) -> Latency:
    return Latency(
        count=int(buckets.get(inf, 0)),
        p50_s=quantile(buckets, 0.5),
        p95_s=quantile(buckets, 0.95),
        p99_s=quantile(buckets, 0.99),
        limit_s=max((bound for bound in buckets if bound != inf), default=0.0),
    )


def quantile(buckets: Buckets, q: float) -> float | None:
    """The ``q``-quantile as Prometheus's ``histogram_quantile`` estimates it, None without observations.

    It is linear within a bucket. For observations above the largest finite bound, it is that bound.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0
    if not total:
        return None
    rank = q * total
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank and buckets[bound] > below:
            if bound == inf:
                break
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        lower, below = (lower if bound == inf else bound), buckets[bound]
    return lower
