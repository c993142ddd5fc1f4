"""The pacer against rate limiters of every kind, on a virtual clock."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.pacing.learned_size import LearnedSize
from proxy.pacing.pacer import Pacer
from proxy.pacing.quotas import Cost
from proxy.pacing.sent_call import SentCall
from proxy.protocol.rate_limits import NOTHING_STATED, Quota, RateLimits
from tests.support.limiters import LIMITERS, REFUSAL, BusyServer, Concurrency, Punishing, Verdict
from tests.support.paced_upstream import Simulation

# What the limits alone make 100 batches of 40 items and two queries a second take, with calls of 50 ms.
ALONE_S = {"halves after 4 s": 25.3, "4 calls at a time": 1.3, "a fixed window": 12.0}
ALONE = 11.5
ONE = Cost(1, 10)


@pytest.mark.parametrize("name", LIMITERS)
@pytest.mark.parametrize("replicas", [1, 2])
def test_no_batch_is_lost_and_few_calls_are_refused(name: str, replicas: int) -> None:
    result = Simulation(limiter=LIMITERS[name](), replicas=replicas).run()
    assert result.batches == 100
    assert result.late_ratio <= (0.05 if replicas == 1 else 0.08)
    if replicas == 1:
        assert result.took_s <= 1.2 * ALONE_S.get(name, ALONE)


@pytest.mark.parametrize("limiter", [Concurrency, BusyServer])
@pytest.mark.parametrize("most", [1, 4, 16])
def test_a_slow_server_is_kept_busy(most: int, limiter: type[Concurrency]) -> None:
    call_s = 2.0
    result = Simulation(limiter=limiter(most), batches=200, call_s=call_s, query_every_s=10.0).run()
    assert result.batches == 200
    assert result.took_s <= 1.2 * (200 + len(result.query_delays_s)) * call_s / most
    assert result.late_ratio <= 0.05


class TooMany(Concurrency):
    """States a wait as if it had a limit on a rate."""

    def refusal(self, items: int, now_s: float) -> Verdict:
        return Verdict(is_accepted=False, status=429, headers={"Retry-After": "1"}, body=REFUSAL)


@pytest.mark.parametrize("limiter", [BusyServer, TooMany])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(("most", "call_s"), [(1, 0.05), (4, 0.01), (4, 0.05), (4, 0.25), (16, 0.05)])
def test_a_fast_server_is_kept_busy_that_states_a_wait(
    most: int, call_s: float, limiter: type[Concurrency], replicas: int
) -> None:
    result = Simulation(limiter=limiter(most), batches=200, call_s=call_s, replicas=replicas).run()
    assert result.batches == 200
    most_time = 1.2 if most >= replicas else 1.7  # two that share one slot are in each other's way
    assert result.took_s <= most_time * (200 + len(result.query_delays_s)) * call_s / most + 0.2
    if replicas == 1:
        assert result.late_ratio <= 0.05


class PunishingWithWait(Punishing):
    def refusal(self, items: int, now_s: float) -> Verdict:
        headers = {"Retry-After": str(math.ceil(self._penalty_s))}
        return Verdict(is_accepted=False, status=429, headers=headers, body=REFUSAL)


def test_a_limiter_that_states_a_wait_and_punishes_is_tested_once() -> None:
    limiter = PunishingWithWait(calls_per_s=10, items_per_s=400, penalty_s=1.0)
    result = Simulation(limiter=limiter, batches=200).run()
    assert result.batches == 200
    assert result.took_s <= 1.2 * 2 * ALONE
    assert result.late_ratio <= 0.02


@pytest.mark.parametrize("name", sorted(set(LIMITERS) - {"a fixed window", "halves after 4 s", "punishes retries"}))
def test_queries_do_not_wait_for_batches(name: str) -> None:
    result = Simulation(limiter=LIMITERS[name](), batches=400).run()
    p95_s = result.query_delays_s[int(0.95 * len(result.query_delays_s))]
    assert p95_s <= 0.05 + 1.1 / 10  # the time of the call, and one slot of the limit


@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_share_a_bucket_that_responses_state(replicas: int) -> None:
    result = Simulation(limiter=LIMITERS["OpenAI's header fields"](), batches=400, replicas=replicas).run()
    assert result.batches == 400
    assert result.took_s <= 1.2 * 4 * ALONE
    assert result.late_ratio <= 0.02
    assert result.query_delays_s[int(0.95 * len(result.query_delays_s))] <= 0.05 + 1.1 / 10
    assert max(result.accepted_of) <= 1.4 * min(result.accepted_of)  # the first has all queries, which leave nothing


def test_a_refusal_that_a_stated_bucket_explains_teaches_nothing() -> None:
    pacer = Pacer()
    empty = RateLimits(quotas={"requests": Quota(limit=10, remaining=0, reset_s=1.0)})
    for _ in range(10):
        pacer.accepted(pacer.sent(ONE, 0.0), NOTHING_STATED, 0.0)
    pacer.refused(pacer.sent(ONE, 0.0), empty, 0.01)
    assert not pacer.is_learned
    assert pacer.ready_at_s(ONE, 0.01) == pytest.approx(0.11)


def test_a_call_under_no_limit_goes_at_once() -> None:
    pacer = Pacer()
    for n in range(1000):
        assert pacer.ready_at_s(ONE, n / 1000) <= n / 1000
        pacer.sent(ONE, n / 1000)
    assert pacer.held_since_s is None


def test_a_stated_wait_is_kept_to() -> None:
    pacer = Pacer()
    pacer.refused(pacer.sent(ONE, 0.0), RateLimits(quotas={}, retry_after_s=7.0), 0.1)
    assert pacer.ready_at_s(ONE, 0.1) == pytest.approx(7.1)
    assert pacer.held_since_s == 0.1


def test_one_probe_at_a_time_follows_a_refusal_without_a_wait() -> None:
    pacer = Pacer()
    pacer.refused(pacer.sent(ONE, 0.0), NOTHING_STATED, 0.0)
    probe_at_s = pacer.ready_at_s(ONE, 0.0)
    assert probe_at_s == 1.0
    probe = pacer.sent(ONE, probe_at_s)
    assert pacer.ready_at_s(ONE, probe_at_s) == probe_at_s + 120  # whatever becomes of the probe
    pacer.refused(probe, NOTHING_STATED, probe_at_s)
    assert pacer.ready_at_s(ONE, probe_at_s) == probe_at_s + 2.0
    probe = pacer.sent(ONE, 3.0)
    pacer.accepted(probe, NOTHING_STATED, 3.1)
    assert pacer.ready_at_s(ONE, 3.1) <= 3.1


BUSY = RateLimits(quotas={}, retry_after_s=1.0)


def burst_of_which_four_are_accepted() -> tuple[Pacer, list[SentCall]]:
    """The four are in flight, and a wait of 1 s is stated."""
    pacer = Pacer()
    calls = [pacer.sent(ONE, 0.0) for _ in range(8)]
    for call in calls[4:]:
        pacer.refused(call, BUSY, 0.001)
    return pacer, calls[:4]


def test_a_wait_is_tested_by_one_call_when_others_have_ended() -> None:
    pacer, accepted = burst_of_which_four_are_accepted()
    assert pacer.ready_at_s(ONE, 0.01) > 1
    for call in accepted:
        pacer.accepted(call, NOTHING_STATED, 0.05)
    assert pacer.ready_at_s(ONE, 0.05) <= 0.05
    test = pacer.sent(ONE, 0.05)
    assert pacer.ready_at_s(ONE, 0.05) > 1
    pacer.refused(test, BUSY, 0.06)
    assert pacer.ready_at_s(ONE, 0.06) == pytest.approx(1.06)
    for _ in range(4):  # what has gathered during the wait
        assert pacer.ready_at_s(ONE, 1.06) <= 1.06
        pacer.accepted(pacer.sent(ONE, 1.06), NOTHING_STATED, 1.06)
    assert pacer.ready_at_s(ONE, 1.06) == pytest.approx(1.3, abs=0.02)  # and as many a second as the burst


def test_waits_count_for_nothing_once_tests_were_accepted() -> None:
    pacer, accepted = burst_of_which_four_are_accepted()
    for call in accepted:
        pacer.accepted(call, NOTHING_STATED, 0.05)
    for n in range(3):
        assert pacer.ready_at_s(ONE, 0.05 + n / 100) <= 0.05 + n / 100
        pacer.accepted(pacer.sent(ONE, 0.05 + n / 100), NOTHING_STATED, 0.06 + n / 100)
    assert not pacer.calls_per_s < math.inf
    in_flight = [pacer.sent(ONE, 0.1) for _ in range(5)]
    pacer.refused(in_flight.pop(), BUSY, 0.11)
    pacer.accepted(in_flight.pop(), NOTHING_STATED, 0.11)
    pacer.accepted(in_flight.pop(), NOTHING_STATED, 0.11)
    assert pacer.ready_at_s(ONE, 0.11) <= 0.11


def test_a_wait_is_kept_to_again_when_no_other_call_is_in_flight() -> None:
    pacer, accepted = burst_of_which_four_are_accepted()
    for call in accepted:
        pacer.accepted(call, NOTHING_STATED, 0.05)
    for n in range(3):
        pacer.accepted(pacer.sent(ONE, 0.05 + n / 100), NOTHING_STATED, 0.06 + n / 100)
    pacer.refused(pacer.sent(ONE, 0.1), BUSY, 0.11)
    assert pacer.ready_at_s(ONE, 0.11) == pytest.approx(1.11)


def test_a_test_keeps_to_stated_quotas() -> None:
    pacer = Pacer()
    calls = [pacer.sent(ONE, 0.0) for _ in range(8)]
    stated = RateLimits(quotas={"requests": Quota(limit=4, remaining=0, reset_s=2.0)}, retry_after_s=1.0)
    for call in calls[4:]:
        pacer.refused(call, stated, 0.001)
    for call in calls[:4]:
        pacer.accepted(call, NOTHING_STATED, 0.05)
    assert pacer.ready_at_s(ONE, 0.05) > 0.4


def test_the_operators_limits_hold_before_any_response() -> None:
    pacer = Pacer(requests_per_minute=60, tokens_per_minute=1200)
    for _ in range(60):
        assert pacer.ready_at_s(ONE, 0.0) == 0.0
        pacer.sent(ONE, 0.0)
    assert pacer.ready_at_s(ONE, 0.0) == pytest.approx(1.0)
    assert pacer.ready_at_s(Cost(1, 800), 0.0) == pytest.approx(10.0)
    assert pacer.largest(2048, 100_000) == (2048, 1200)


def test_a_call_that_is_refused_by_itself_becomes_smaller() -> None:
    pacer = Pacer()
    now_s = 0.0
    for _ in range(6):
        items, _tokens = pacer.largest(1000, 10_000)
        now_s = max(now_s, pacer.ready_at_s(Cost(items, 10), now_s))
        call = pacer.sent(Cost(items, 10), now_s)
        if items <= 400:
            pacer.accepted(call, NOTHING_STATED, now_s)
            break
        pacer.refused(call, NOTHING_STATED, now_s)
    assert pacer.largest(1000, 10_000)[0] <= 400


def test_what_is_learned_is_forgotten_after_a_pause() -> None:
    pacer = Pacer()
    for n in range(20):
        pacer.accepted(pacer.sent(ONE, n / 10), NOTHING_STATED, n / 10)
    pacer.refused(pacer.sent(ONE, 2.0), NOTHING_STATED, 2.0)
    assert pacer.is_learned
    pacer.sent(ONE, 200.0)
    assert not pacer.is_learned


def test_a_burst_of_which_nothing_was_accepted_teaches_no_rate() -> None:
    pacer = Pacer()
    calls = [pacer.sent(ONE, 0.0) for _ in range(3)]
    for call in calls:
        pacer.refused(call, RateLimits(quotas={}, retry_after_s=2.0), 0.1)
    assert pacer.ready_at_s(ONE, 0.1) == pytest.approx(2.1)
    assert pacer.sent(ONE, 2.1).at_s == 2.1


def test_a_large_call_is_paid_for_in_bounded_time() -> None:
    pacer = Pacer()
    for n in range(10):
        pacer.accepted(pacer.sent(ONE, n), NOTHING_STATED, n)
    pacer.refused(pacer.sent(ONE, 10.0), NOTHING_STATED, 10.0)  # from here on it is a call a second
    probe_at_s = pacer.ready_at_s(ONE, 10.0)
    large = Cost(2048, 20480)
    pacer.accepted(pacer.sent(large, probe_at_s), NOTHING_STATED, probe_at_s)
    assert probe_at_s < pacer.ready_at_s(large, probe_at_s) <= probe_at_s + 30


def test_one_call_is_sent_after_two_minutes_whatever_was_stated() -> None:
    pacer = Pacer()
    stated = RateLimits(quotas={"requests": Quota(limit=10, remaining=0, reset_s=86400)}, retry_after_s=3600.0)
    pacer.refused(pacer.sent(ONE, 0.0), stated, 0.0)
    assert pacer.ready_at_s(ONE, 0.0) == 120
    assert pacer.stated_at_s(ONE, 0.0) > 3600
    probe = pacer.sent(ONE, 120.0)
    assert pacer.ready_at_s(ONE, 120.0) == 240
    pacer.accepted(probe, RateLimits(quotas={"requests": Quota(limit=10, remaining=9, reset_s=60)}), 121.0)
    assert pacer.ready_at_s(ONE, 121.0) <= 121.0


def test_what_responses_state_is_tried_until_a_refusal_confirms_it() -> None:
    pacer = Pacer()
    stated = RateLimits(quotas={"requests": Quota(limit=1, remaining=0, reset_s=60)})
    pacer.accepted(pacer.sent(ONE, 0.0), stated, 0.0)
    assert pacer.ready_at_s(ONE, 0.0) == 5
    pacer.refused(pacer.sent(ONE, 5.0), stated, 5.0)
    assert pacer.ready_at_s(ONE, 5.0) >= 60


def test_parts_of_what_remains_are_not_lost_by_rounding() -> None:
    """A bucket of ten calls, one refilled each 0.1 s, that states whole numbers."""
    pacer = Pacer()
    stated = RateLimits(quotas={"requests": Quota(limit=10, remaining=0, reset_s=1.0)}, retry_after_s=0.1)
    pacer.refused(pacer.sent(ONE, 0.0), stated, 0.0)
    now_s = 0.1
    for _ in range(20):
        assert pacer.ready_at_s(ONE, now_s) <= now_s + 1e-6
        stated = RateLimits(quotas={"requests": Quota(limit=10, remaining=0, reset_s=1.0)})
        pacer.accepted(pacer.sent(ONE, now_s), stated, now_s + 0.05)  # half a call has been refilled by then
        now_s += 0.1


def test_what_responses_state_wrongly_counts_for_nothing() -> None:
    pacer = Pacer()
    stated = RateLimits(quotas={"requests": Quota(limit=1, remaining=0, reset_s=60)})
    for now_s in (0.0, 5.0, 5.1, 5.2):
        assert pacer.ready_at_s(ONE, now_s) <= now_s
        pacer.accepted(pacer.sent(ONE, now_s), stated, now_s)
    pacer.refused(pacer.sent(ONE, 6.0), stated, 6.0)
    assert pacer.ready_at_s(ONE, 6.0) >= 60


def test_the_operators_limits_are_not_tried() -> None:
    pacer = Pacer(requests_per_minute=0.2)
    pacer.sent(ONE, 0.0)
    assert pacer.ready_at_s(ONE, 0.0) > 120


@pytest.mark.parametrize("retry_after_s", [None, 0.0, 0.001])
def test_refusals_in_a_row_are_waited_for_longer_each_time(retry_after_s: float | None) -> None:
    pacer, now_s, waits_s = Pacer(), 0.0, []
    for _ in range(12):
        pacer.refused(pacer.sent(ONE, now_s), RateLimits(quotas={}, retry_after_s=retry_after_s), now_s)
        waits_s.append(pacer.ready_at_s(ONE, now_s) - now_s)
        now_s += waits_s[-1]
    assert waits_s[1] >= 0.25
    assert waits_s == pytest.approx(sorted(waits_s))
    assert 8 <= waits_s[-1] <= 16.001


def test_refusals_of_calls_in_flight_together_are_one() -> None:
    pacer = Pacer()
    calls = [pacer.sent(ONE, 0.0) for _ in range(8)]
    for n, call in enumerate(calls):
        pacer.refused(call, RateLimits(quotas={}, retry_after_s=0.1), (n + 1) / 1000)
    assert pacer.ready_at_s(ONE, 0.01) < 0.2


def test_a_wrong_limit_of_a_call_is_unlearned() -> None:
    size = LearnedSize()
    for n in range(5):
        size.refused(40 // 2**n, at_s=n, now_s=n, is_alone=True)
    assert size.max_items == 1
    for _ in range(40):
        size.accepted(int(min(40, size.max_items)))
    assert size.max_items >= 40


def test_statements_of_any_names_take_bounded_memory() -> None:
    pacer = Pacer()
    for n in range(100):
        pacer.accepted(pacer.sent(ONE, n), RateLimits(quotas={f"requests-{n}": Quota(limit=9, remaining=9)}), n)
    assert len(pacer._quotas) <= 16


_stated = st.builds(
    RateLimits,
    quotas=st.dictionaries(
        st.sampled_from(["requests", "tokens", "requests-minute"]),
        st.builds(
            Quota,
            limit=st.none() | st.floats(0, 1e6),
            remaining=st.none() | st.floats(0, 1e6),
            reset_s=st.none() | st.floats(0, 1e5),
        ),
        max_size=2,
    ),
    retry_after_s=st.none() | st.floats(0, 100),
)
_steps = st.lists(
    st.tuples(
        st.sampled_from(["send", "accept", "refuse", "lose", "wait"]),
        st.integers(1, 2048),
        st.floats(0, 30),
        _stated,
    ),
    max_size=60,
)


@given(_steps)
def test_it_never_waits_for_nothing(steps: list[tuple[str, int, float, Any]]) -> None:
    """Whatever responses say: once no call is in flight, the next one may be sent at a known time."""
    pacer = Pacer()
    calls: list[SentCall] = []
    now_s = 0.0
    for what, items, wait_s, stated in steps:
        cost = Cost(items, items * 10)
        if what == "send" and pacer.ready_at_s(cost, now_s) <= now_s:
            calls.append(pacer.sent(cost, now_s))
        elif what == "wait":
            now_s += wait_s
        elif calls and what != "send":
            call = calls.pop(items % len(calls))
            match what:
                case "accept":
                    pacer.accepted(call, stated, now_s)
                case "refuse":
                    pacer.refused(call, stated, now_s)
                case _:
                    pacer.lost(call, now_s)
    for call in calls:
        pacer.lost(call, now_s)
    ready_at_s = pacer.ready_at_s(Cost(2048, 20480), now_s)
    assert ready_at_s <= now_s + 120
    assert pacer.ready_at_s(Cost(2048, 20480), ready_at_s + 1e-6) <= ready_at_s + 1e-3
    pacer.sent(Cost(2048, 20480), ready_at_s)


def refused_at_ten_a_second(stated: RateLimits = NOTHING_STATED) -> Pacer:
    """By calls of 40 items."""
    pacer, large = Pacer(), Cost(40, 400)
    for n in range(20):
        pacer.accepted(pacer.sent(large, n / 20), NOTHING_STATED, n / 20)
    pacer.refused(pacer.sent(large, 1.0), stated, 1.0)
    return pacer


def test_under_a_learned_limit_half_of_what_comes_in_a_second_is_merged() -> None:
    assert Pacer().most_merged(1000) == 1000
    assert 180 <= refused_at_ten_a_second().most_merged(1000) <= 200
    assert refused_at_ten_a_second().most_merged(30) == 30


def test_what_a_stated_bucket_allows_is_merged() -> None:
    bucket = RateLimits(quotas={"requests": Quota(limit=100, remaining=50, reset_s=5.0)})
    assert refused_at_ten_a_second(bucket).most_merged(1000) == 1000


def test_a_probe_is_sent_alone_once_a_rate_is_known() -> None:
    pacer = Pacer()
    assert not pacer.probes_alone
    pacer.refused(pacer.sent(ONE, 0.0), NOTHING_STATED, 0.0)
    assert not pacer.probes_alone
    pacer.refused(pacer.sent(ONE, 1.0), NOTHING_STATED, 1.0)
    assert pacer.probes_alone
    assert refused_at_ten_a_second().probes_alone


def test_a_query_leaves_when_bulk_has_used_the_rest() -> None:
    pacer, bulk = refused_at_ten_a_second(), Cost(40, 400, is_bulk=True)
    pacer.accepted(pacer.sent(bulk, 2.0), NOTHING_STATED, 2.0)
    while pacer.ready_at_s(bulk, 2.0) <= 2.0:
        pacer.accepted(pacer.sent(bulk, 2.0), NOTHING_STATED, 2.0)
    assert pacer.ready_at_s(ONE, 2.0) <= 2.0
