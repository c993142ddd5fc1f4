"""What repeats in a sequence of requests, and how soon (pure)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from proxy.analysis.recording import Requests

_MAX_STEPS = 60  # of the curve over the sequence
_SECONDS = ((60, "1 min"), (600, "10 min"), (3600, "1 h"), (86_400, "1 d"), (7 * 86_400, "7 d"), (30 * 86_400, "30 d"))
_ITEMS = ((100, "100 items"), (1000, "1,000"), (10_000, "10,000"), (100_000, "100,000"), (1_000_000, "1,000,000"))


class Interval(Struct, frozen=True):
    """How many repeated items came within ``label`` of their last time, but not within the next shorter interval."""

    label: str
    items: int


class Step(Struct, frozen=True):
    """A part of the sequence: how many of its items, and of all items up to its end, had come before."""

    items: int  # up to its end
    repeated: float
    repeated_so_far: float


class Repetition(Struct, frozen=True):
    requests: int
    items: int
    distinct: int
    in_request: int  # the same item is in the request more than once
    over_time: int  # an earlier request had the item
    requests_without_new: int  # all of their items had come before
    most_repeated: int  # how often the most frequent item came
    tokens: int
    tokens_distinct: int
    intervals: list[Interval]
    steps: list[Step]


class ModelTotals(Struct, frozen=True):
    model: str | None
    requests: int
    items: int
    distinct: int
    tokens: int
    tokens_distinct: int


class Occurrences(NamedTuple):
    """For each item, where it came before: ``previous`` is -1 the first time. ``request_of`` numbers its request."""

    previous: NDArray[Any]
    request_of: NDArray[Any]

    @property
    def is_first(self) -> NDArray[Any]:
        return self.previous < 0

    @property
    def is_in_request(self) -> NDArray[Any]:
        """Whether the same request has the item before."""
        previous = np.maximum(self.previous, 0)
        found: NDArray[Any] = ~self.is_first & (self.request_of[previous] == self.request_of)
        return found


def occurrences(requests: Requests) -> Occurrences:
    ids = requests.ids
    order = np.argsort(ids, kind="stable")
    previous = np.full(len(ids), -1, np.int64)
    is_same = ids[order[1:]] == ids[order[:-1]]
    previous[order[1:][is_same]] = order[:-1][is_same]
    return Occurrences(previous, np.repeat(np.arange(len(requests.sizes)), requests.sizes))


def repetition(requests: Requests, seen: Occurrences) -> Repetition:
    is_first, is_in_request = seen.is_first, seen.is_in_request
    tokens = requests.tokens
    has_new = np.bincount(seen.request_of[is_first], minlength=len(requests.sizes)) > 0
    return Repetition(
        requests=len(requests.sizes),
        items=len(requests.ids),
        distinct=requests.distinct,
        in_request=int(is_in_request.sum()),
        over_time=int((~is_first & ~is_in_request).sum()),
        requests_without_new=int((~has_new).sum()),
        most_repeated=int(np.bincount(requests.ids).max()) if len(requests.ids) else 0,
        tokens=int(tokens[requests.ids].sum(dtype=np.int64)),
        tokens_distinct=int(tokens.sum(dtype=np.int64)),
        intervals=_intervals(requests, seen),
        steps=_steps(is_first),
    )


def _intervals(requests: Requests, seen: Occurrences) -> list[Interval]:
    again = np.flatnonzero(~seen.is_first & ~seen.is_in_request)
    before = seen.previous[again]
    limits: Sequence[tuple[int, str]]
    if requests.has_times:
        times_s = requests.times_s
        distances, limits = times_s[seen.request_of[again]] - times_s[seen.request_of[before]], _SECONDS
    else:
        distances, limits = again - before, _ITEMS
    counts = np.bincount(np.searchsorted([limit for limit, _ in limits], distances), minlength=len(limits) + 1)
    labels = [*(label for _, label in limits), "longer"]
    return [Interval(label, int(count)) for label, count in zip(labels, counts, strict=True)]


def _steps(is_first: NDArray[Any]) -> list[Step]:
    steps, repeated_before, before = [], 0, 0
    for part in np.array_split(~is_first, min(_MAX_STEPS, len(is_first)) or 1):
        if not len(part):
            continue
        repeated, items = int(part.sum()), len(part)
        repeated_before, before = repeated_before + repeated, before + items
        steps.append(Step(before, repeated / items, repeated_before / before))
    return steps


def by_model(requests: Requests, seen: Occurrences) -> list[ModelTotals]:
    """The totals of each model, the one with the most tokens first."""
    kind_of_item = requests.kind_of[seen.request_of]
    kinds = len(requests.kinds)
    tokens = requests.tokens[requests.ids]
    first = seen.is_first
    requests_of = np.bincount(requests.kind_of, minlength=kinds)
    items_of = np.bincount(kind_of_item, minlength=kinds)
    distinct_of = np.bincount(kind_of_item[first], minlength=kinds)
    tokens_of = np.bincount(kind_of_item, tokens, minlength=kinds)
    paid_of = np.bincount(kind_of_item[first], tokens[first], minlength=kinds)
    found: dict[str | None, list[int]] = {}
    for number, kind in enumerate(requests.kinds):
        own = [int(of[number]) for of in (requests_of, items_of, distinct_of, tokens_of, paid_of)]
        total = found.get(kind.model, [0] * len(own))
        found[kind.model] = [one + other for one, other in zip(total, own, strict=True)]
    totals = [ModelTotals(model, *counts) for model, counts in found.items()]
    return sorted(totals, key=lambda of: of.tokens, reverse=True)
