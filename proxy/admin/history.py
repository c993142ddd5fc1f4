"""Traffic of the last minutes, in steps of ten seconds (pure)."""

from collections import deque
from dataclasses import dataclass
from math import inf

from proxy.admin.window import Counts, Window, window_of
from proxy.labels import FROM_CACHE

STEP_S = 10.0
_STEPS = 60
RECENT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of the history. It is `STEP_S` long, except the last, which is still growing."""

    seconds: float
    requests: int
    from_cache: int  # items
    asked: int  # items


class History:
    """Counts of the last ten minutes, sampled every `STEP_S`."""

    def __init__(self, started_s: float) -> None:
        self._samples = deque([(started_s, Counts())], maxlen=_STEPS + 1)
        self._steps: deque[Step] = deque(maxlen=_STEPS)

    def note(self, now_s: float, counts: Counts) -> None:
        self._steps.append(self._step(now_s, counts))
        self._samples.append((now_s, counts))

    def recent(self, now_s: float, counts: Counts) -> Window:
        """Traffic of the last `RECENT_S`, or since the start if that is shorter."""
        old = [sample for sample in self._samples if sample[0] <= now_s - RECENT_S]
        then_s, earlier = old[-1] if old else self._samples[0]
        return window_of(counts.since(earlier), now_s - then_s)

    def steps(self, now_s: float, counts: Counts) -> list[Step]:
        return [*self._steps, self._step(now_s, counts)]

    def _step(self, now_s: float, counts: Counts) -> Step:
        then_s, earlier = self._samples[-1]
        increase = counts.since(earlier)
        from_cache = sum(increase.items.get(result, 0) for result in FROM_CACHE)
        return Step(
            seconds=now_s - then_s,
            requests=int(sum(buckets[inf] for buckets in increase.seconds.values())),
            from_cache=int(from_cache),
            asked=int(sum(increase.items.values()) - from_cache),
        )
