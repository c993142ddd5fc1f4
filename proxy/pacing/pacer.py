"""When the next call to an upstream may be sent, by what its responses said of its rate limits (pure).

A pacer belongs to one upstream, credential and model. It is told of every call (`sent`) and of its end (`accepted`,
`refused`, `lost`), and says from when on a call of a given cost may be sent (`ready_at_s`).

Three sources limit it, and the latest time counts:

- *Quotas* that responses state (limit, remaining, reset): `StatedQuota` follows each between responses.
- *A wait* that a refusal asks for, or without one an exponential backoff. Until a call is accepted after a refusal, one
  probe at a time is sent, since some limiters start their wait again with each request. From then on the calls that may
  be in flight grow with those that are accepted (slow start, as in TCP).
- *Learned limits*, for upstreams that refuse and state nothing: calls and items a second, as token buckets, and calls
  in flight. They are set from what was accepted before a refusal, and grow while nothing is refused (additive increase,
  multiplicative decrease, as in TCP).

Of stated and learned buckets bulk leaves a call to urgent requests.

`LearnedRates` tells a limit on calls in flight from one on a rate if refusals state a wait.

All of it may be wrong, or no longer true. So one call is sent after two minutes without any, whatever was said; and
after a few seconds, if no refusal has confirmed yet what responses state. If that call is accepted against what was
stated, statements count for nothing until a call is refused.
"""

import math
from dataclasses import dataclass, field

from proxy.pacing.backoff import MIN_BACKOFF_S, Backoff
from proxy.pacing.learned_concurrency import LearnedConcurrency
from proxy.pacing.learned_rate import BURST_S
from proxy.pacing.learned_rates import CALM_CALLS, LearnedRates
from proxy.pacing.learned_size import LearnedSize
from proxy.pacing.quotas import Cost, Quotas
from proxy.pacing.sent_call import SentCall
from proxy.pacing.stated_quota import NEVER_S
from proxy.protocol.rate_limits import NOTHING_STATED, RateLimits

# Before any call was accepted, so many refusals in a row may be about the size of the calls.
_REFUSALS_OF_A_SIZE = 3
# Without a call for this long learned limits are forgotten, and one call is sent to try stated ones.
_FORGET_S = 120.0
# The same for a quota that responses state, until a refusal confirms it for so long.
_TRY_S, _CONFIRMED_S = 5.0, 300.0


@dataclass(slots=True)
class Pacer:
    """``requests_per_minute`` and ``tokens_per_minute`` are what the operator knows; None: unknown."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    # When it began to make calls wait, until a call is accepted that did not have to.
    held_since_s: float | None = None
    _configured: Quotas = field(default_factory=Quotas)
    _quotas: Quotas = field(default_factory=Quotas)  # that responses stated
    _rates: LearnedRates = field(default_factory=LearnedRates)
    _in_flight: set[SentCall] = field(default_factory=set)
    _concurrency: LearnedConcurrency = field(default_factory=LearnedConcurrency)
    _size: LearnedSize = field(default_factory=LearnedSize)
    is_paced: bool = False  # anything was configured, stated or refused
    _blocked_until_s: float = 0.0
    _backoff: Backoff = field(default_factory=Backoff)
    _called_at_s: float = -math.inf  # the last call was sent, or ended
    _is_distrusted: bool = False  # a call was accepted against what responses state

    def __post_init__(self) -> None:
        for name, per_minute in (("requests", self.requests_per_minute), ("tokens", self.tokens_per_minute)):
            if per_minute is not None:
                self._configured.configure(name, per_minute)
        self.is_paced = bool(self._configured)

    @property
    def has_calls(self) -> bool:
        return bool(self._in_flight)

    @property
    def probes_alone(self) -> bool:
        """Whether the next call is a probe after another, so that no request should fail another's."""
        return self._backoff.refusals > (0 if self._rates.is_learned else 1)

    @property
    def is_learned(self) -> bool:
        return self._rates.is_learned or self._concurrency.is_learned or self._backoff.wait_s > 0

    @property
    def calls_per_s(self) -> float:
        """The limit on calls that is known, by whatever means; infinity: none."""
        return min(self._rates.calls.per_s, self._configured.calls_per_s, self._quotas.calls_per_s)

    def ready_at_s(self, cost: Cost, now_s: float) -> float:
        """From when on a call may be sent; ``now_s`` or earlier: now. `NEVER_S`: not before a call in flight ends."""
        if not self.is_paced:
            return now_s
        self._forget(now_s)
        if self._backoff.wait_s and self._has_probe():
            ready_at_s = NEVER_S
        elif not self._concurrency.has_room(len(self._in_flight)):
            quiet_until_s = self._called_at_s + self._concurrency.patience_s
            ready_at_s = max(quiet_until_s, self._rates.ready_at_s(cost), self.stated_at_s(cost, now_s))
        elif self._rates.may_test:
            ready_at_s = self._quotas_ready_at_s(cost, now_s)
        else:
            ready_at_s = max(self._rates.ready_at_s(cost), self.stated_at_s(cost, now_s))
        tried_at_s = self._called_at_s + (_FORGET_S if self.is_confirmed(now_s) else _TRY_S)
        return max(min(ready_at_s, tried_at_s), self._configured.ready_at_s(cost, now_s))

    def _has_probe(self) -> bool:
        """Whether a call is in flight that was sent after the last refusal. Others may hang for ever."""
        return any(call.at_s >= self._backoff.refused_at_s for call in self._in_flight)

    def is_confirmed(self, now_s: float) -> bool:
        """Whether a call was refused lately, so that what is stated counts."""
        return now_s - self._backoff.refused_at_s < _CONFIRMED_S

    def stated_at_s(self, cost: Cost, now_s: float) -> float:
        """From when on a call is accepted, by what responses stated."""
        return max(self._blocked_until_s, self._quotas_ready_at_s(cost, now_s))

    def _quotas_ready_at_s(self, cost: Cost, now_s: float) -> float:
        return -math.inf if self._is_distrusted else self._quotas.ready_at_s(cost, now_s)

    def most_merged(self, items: int) -> int:
        """How many items to merge into one call, of at most so many."""
        if self._quotas and not self._quotas.has_window:
            return items  # as far as they allow it
        most = self._rates.most_merged if self._rates.is_learned else self._size.max_merged
        return max(1, int(min(items, most)))

    def largest(self, items: int, tokens: int) -> tuple[int, int]:
        """The largest call that can ever be accepted, of at most so many items and tokens."""
        return int(min(items, self._size.max_items)), self._quotas.largest(self._configured.largest(tokens))

    def sent(self, cost: Cost, now_s: float) -> SentCall:
        if self.is_paced:
            self._forget(now_s)
        call = SentCall(cost, now_s, len(self._in_flight) + 1)
        if now_s - self._called_at_s > BURST_S and not self._in_flight and not self.is_learned:
            self._rates.measure_from(now_s - BURST_S)  # a new burst after a pause
        self._in_flight.add(call)
        self._called_at_s = now_s
        if not self.is_paced:
            return call
        is_test = self._rates.take(call, now_s, is_blocked=self._blocked_until_s > now_s)
        call.is_against_stated = not is_test and self.stated_at_s(cost, now_s) > now_s
        self._configured.take(cost, now_s)
        self._quotas.take(cost, now_s)
        return call

    def accepted(self, call: SentCall, stated: RateLimits, now_s: float) -> None:
        """The upstream computed it, or refused it for another reason than its limits."""
        self._rates.accepted(call)
        self._concurrency.call_s = now_s - call.at_s
        if call.cost.items > self._size.largest or self.is_paced:
            self._size.accepted(call.cost.items)
        if not (self.is_paced or stated.quotas):  # the usual case
            self._in_flight.remove(call)
            self._called_at_s = now_s
            return
        is_test = self._end(call, stated, now_s)
        self._is_distrusted = self._is_distrusted or call.is_against_stated
        if call.at_s >= self._backoff.refused_at_s:
            self._backoff.accepted(call)
            self._blocked_until_s = min(self._blocked_until_s, now_s)
        elif call.at_s < self._blocked_until_s:
            return  # it was sent before the refusal, of which it says nothing
        self._concurrency.accepted(call, now_s)
        if is_test and self._rates.accepted_test():
            self._concurrency.is_known = True
        self._backoff.wait_s = 0.0
        self._rates.grow(now_s)
        self._concurrency.grow(call, CALM_CALLS)

    def refused(self, call: SentCall, stated: RateLimits, now_s: float, *, is_other_next: bool = False) -> None:
        """It was refused for the upstream's limits and computed nothing. ``is_other_next``: the next call is another
        request."""
        self.is_paced, is_probe, self._is_distrusted = True, self._backoff.wait_s > 0, False
        is_test = self._end(call, stated, now_s)
        self._rates.refused(call)
        if is_test:
            self._rates.learn(call, now_s, is_probe=False, largest=self._size.largest)
            self._backoff.refused_at_s = now_s
            self._wait(stated.retry_after_s or 0.0, now_s)
            return
        self._wait(self._backoff.refused(call, now_s), now_s)
        self.holds(now_s)
        is_alone = is_probe and call.at_s - self._rates.cut_at_s >= MIN_BACKOFF_S and not self._rates.calls.accepted
        if not self._size.largest:
            is_alone = is_alone and self._backoff.refusals % _REFUSALS_OF_A_SIZE == 0
        self._size.refused(call.cost.items, at_s=call.at_s, now_s=now_s, is_alone=is_alone)
        is_old = call.at_s < self._rates.cut_at_s  # sent before the last refusal that taught something
        if is_old or self._quotas.explain(call.cost, now_s):
            self._wait(stated.retry_after_s or 0.0, now_s)
            return
        if self._is_for_concurrency(call, now_s, is_probe=is_probe):
            self._refused_for_concurrency(call, stated.retry_after_s, now_s)
            return
        self._learn_rate(call, now_s, is_probe=is_probe)
        if stated.retry_after_s is None or not self._rates.is_learned:
            self._backoff.grow(self._rates.calls.per_s, is_other_next=is_other_next)
        # A quota of which nothing is left says by itself for how long nothing can be sent.
        own_wait_s = 0.0 if self._quotas.is_empty(now_s) else self._backoff.wait_s
        self._wait(own_wait_s if stated.retry_after_s is None else stated.retry_after_s, now_s)

    def _is_for_concurrency(self, call: SentCall, now_s: float, *, is_probe: bool) -> bool:
        in_flight, in_a_row = len(self._in_flight), self._backoff.refusals
        return not self._rates.explain(call, now_s) and self._concurrency.explains(
            call, in_flight, is_probe=is_probe, in_a_row=in_a_row
        )

    def _refused_for_concurrency(self, call: SentCall, retry_after_s: float | None, now_s: float) -> None:
        in_flight = len(self._in_flight)
        self._concurrency.refused(call, in_flight, now_s)
        if retry_after_s is None:
            self._wait(0.0 if in_flight else self._concurrency.call_s, now_s)
        elif not (in_flight and self._concurrency.is_known):
            self._wait(retry_after_s, now_s)
            if not self._concurrency.is_known:
                self._rates.suspect()

    def _learn_rate(self, call: SentCall, now_s: float, *, is_probe: bool) -> None:
        self._concurrency.begin_again()
        was_learned, is_explained = self._rates.is_learned, self._rates.explain(call, now_s)
        if self._quotas.has_window:  # it says what is there at once, and no more comes before it ends
            self._rates.spread()
        self._rates.learn(call, now_s, is_probe=is_probe, largest=self._size.largest)
        if self._backoff.refusals > 1 and not is_explained and self._rates.is_learned == was_learned:
            self._backoff.was_too_short()

    def refused_for_itself(self, call: SentCall, now_s: float) -> None:
        """It was refused again, while others are accepted: that says nothing about them, but perhaps about its size."""
        self._end(call, NOTHING_STATED, now_s)
        if call.cost.items > self._size.largest:
            self._size.refused(call.cost.items, at_s=call.at_s, now_s=now_s, is_alone=True)

    def lost(self, call: SentCall, now_s: float) -> None:
        """It ended without a response, if it has not ended yet."""
        if call in self._in_flight:
            self._end(call, NOTHING_STATED, now_s)

    def holds(self, now_s: float) -> None:
        """It makes something wait."""
        if self.held_since_s is None:
            self.held_since_s = now_s

    def is_free(self, now_s: float) -> None:
        """Nothing waits."""
        if now_s >= self._blocked_until_s and not self._backoff.wait_s:
            self.held_since_s = None

    def _end(self, call: SentCall, stated: RateLimits, now_s: float) -> bool:
        """Whether it tested a rate."""
        self._in_flight.remove(call)
        self._called_at_s = now_s
        if stated.quotas:
            self.is_paced = True
            self._quotas.state(stated, lambda: (other.cost for other in self._in_flight), now_s)
        return self._rates.ends(call)

    def _wait(self, wait_s: float, now_s: float) -> None:
        self._blocked_until_s = max(self._blocked_until_s, now_s + wait_s)

    def _forget(self, now_s: float) -> None:
        if now_s - max(self._called_at_s, self._blocked_until_s) > _FORGET_S and not self._in_flight:
            self._rates.forget()
            self._size, self._concurrency = LearnedSize(), LearnedConcurrency()
            self.is_paced = bool(self._configured or self._quotas)
            self._backoff = Backoff(refused_at_s=self._backoff.refused_at_s)
