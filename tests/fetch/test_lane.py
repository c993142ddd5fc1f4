"""The lane to one upstream, credential and model: what waits in it, when it is woken, and what it tells the pacer."""

import asyncio
from dataclasses import replace
from functools import partial
from operator import is_
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.fetch.client_wait import ClientWait
from proxy.fetch.lane import Lane, Lanes
from proxy.fetch.limit_wait import LimitWait
from proxy.fetch.outcomes import EmbedResult, ErrorResponse
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.singleflight import Flights
from proxy.fetch.waiting import Waiting
from proxy.http.bodies import BodyReader
from proxy.pacing.pacer import Pacer
from proxy.pacing.quotas import Cost
from proxy.pacing.stated_quota import NEVER_S
from proxy.protocol.provider import Limits
from proxy.telemetry.lane_gauges import LaneState
from proxy.telemetry.metrics import Metrics
from proxy.tenant import Tenant
from proxy.upstream.client import UpstreamResponse
from tests.support.client_requests import client_request_for
from tests.support.fake_client import FakeClient, origin_of
from tests.support.virtual_loop import virtually

LIMITS = Limits(100, 1000, 10**6)
ONE = Cost(1, 10)
MINUTE_S = 60.0
BODIES = BodyReader(Metrics(), max_bytes=10**6, max_held_bytes=10**6)


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Bed:
    """A lane, and how often it woke whoever sends."""

    def __init__(self, pacer: Pacer | None = None) -> None:
        self.woken_at_s: list[float] = []
        self.lane = Lane(pacer or Pacer(), self._wake, upstream="u", model="m")

    def _wake(self, lane: Lane) -> None:
        assert lane is self.lane
        self.woken_at_s.append(now_s())

    def refuse(self, *batch: Waiting, **fields: str) -> float:
        lane, call = self.lane.sent(batch)
        return lane.refused(call, refusal(**fields), is_alone=len(batch) == 1, is_for_itself=False)

    def refuse_for_itself(self, one: Waiting, **fields: str) -> float:
        lane, call = self.lane.sent([one])
        return lane.refused(call, refusal(**fields), is_alone=True, is_for_itself=True)

    def accept(self, *batch: Waiting, **fields: str) -> None:
        lane, call = self.lane.sent(batch)
        lane.accepted(call, result(**fields))


def waiting(
    *names: str, tenant: str = "t", urgency: int = 3, may_merge: bool = True, began_s: float = 0.0, **more: Any
) -> Waiting:
    keys = [name.encode().ljust(32) for name in names]
    client_request = client_request_for(list(names), keys, origin=origin_of(FakeClient()), **more)
    client_request.reservation = BODIES.reserve(Tenant(tenant.encode()))
    client_request.limit_wait = LimitWait(urgency, began_s)
    request = FetchRequest(client_request, keys, Policy(0.0, may_merge=may_merge))
    wait = ClientWait(client_request, Flights[Any]().claim(keys))
    return Waiting(request, wait, asyncio.get_running_loop().create_future(), 0.0)


def response(status: int, fields: dict[str, str], body: bytes = b"{}") -> UpstreamResponse:
    headers = CIMultiDictProxy(CIMultiDict({name.replace("_", "-"): value for name, value in fields.items()}))
    return UpstreamResponse(status=status, reason="", headers=headers, body=body)


def refusal(**fields: str) -> ErrorResponse:
    return ErrorResponse(response(429, fields, b'{"error": {"message": "of a secret text"}}'), b"a secret text")


def result(**fields: str) -> EmbedResult:
    return EmbedResult(
        vectors=[],
        tokens=[],
        model="m",
        usage={},
        extra_fields={},
        status=200,
        headers=response(200, fields).headers,
        relayed=CIMultiDict(),
        is_unmerged=True,
        is_own_body=True,
        by_origin=True,
    )


@virtually
async def test_under_no_limit_every_call_goes_and_none_is_smaller() -> None:
    lane = Bed().lane
    assert lane.limits(LIMITS) is LIMITS
    assert lane.limits(LIMITS, is_merged=True) is LIMITS
    lane.queued(waiting("a"))
    assert lane.takes([waiting("b")])  # though something waits: it may be sent as well
    assert lane.is_ready(ONE)


@virtually
async def test_a_call_has_no_more_tokens_than_a_limit_ever_takes() -> None:
    lane = Bed(Pacer(tokens_per_minute=600)).lane
    assert lane.limits(LIMITS) == LIMITS._replace(tokens=600)


@virtually
async def test_after_a_refusal_little_is_merged_but_one_request_may_be_as_large_as_before() -> None:
    bed = Bed()
    bed.refuse(waiting(*map(str, range(50))))
    assert bed.lane.limits(LIMITS) == LIMITS
    assert bed.lane.limits(LIMITS, is_merged=True) == LIMITS._replace(items=4)


@virtually
async def test_under_a_limit_a_call_goes_when_it_allows_it_and_nothing_else_waits() -> None:
    bed = Bed(Pacer(requests_per_minute=60))
    first = waiting("a")
    assert bed.lane.takes([first])
    for _ in range(60):
        bed.accept(first)
    assert not bed.lane.takes([first])
    assert not bed.lane.is_ready(ONE)
    assert bed.lane.ready_at_s(ONE) == 1.0
    await asyncio.sleep(1.1)
    assert bed.lane.takes([first])
    bed.lane.queued(waiting("b"))
    assert bed.lane.is_ready(ONE)
    assert not bed.lane.takes([first])


@virtually
async def test_it_wakes_once_when_a_call_may_be_sent() -> None:
    bed = Bed()
    bed.refuse(waiting("a"), Retry_After="7")
    for _ in range(3):
        bed.lane.wake_for(ONE)
    await asyncio.sleep(MINUTE_S)
    assert bed.woken_at_s == [7.0]
    assert bed.lane.pacer.held_since_s == 0.0


@virtually
async def test_it_wakes_by_the_latest_that_is_known() -> None:
    bed = Bed()
    bed.refuse(waiting("a"), Retry_After="7")
    bed.lane.wake_for(ONE)
    bed.refuse(waiting("a"), Retry_After="20")
    bed.lane.wake_for(ONE)
    await asyncio.sleep(MINUTE_S)
    assert bed.woken_at_s == [20.0]


@virtually
async def test_it_can_wake_again() -> None:
    bed = Bed()
    for _ in range(2):
        bed.refuse(waiting("a"), Retry_After="7")
        bed.lane.wake_for(ONE)
        await asyncio.sleep(7)
    assert bed.woken_at_s == [7.0, 14.0]


class Closed(Pacer):
    """Nothing may be sent before a call in flight has ended."""

    def ready_at_s(self, cost: Cost, now_s: float) -> float:
        return NEVER_S


@virtually
async def test_it_wakes_again_if_nothing_was_sent() -> None:
    bed = Bed()
    bed.refuse(waiting("a"), Retry_After="7")
    for _ in range(2):
        bed.lane.wake_for(ONE)
        await asyncio.sleep(10)
    assert bed.woken_at_s == [7.0, 10.0]


@virtually
async def test_it_sets_no_time_where_only_the_end_of_a_call_counts() -> None:
    bed = Bed(Closed())
    bed.lane.wake_for(ONE)
    await asyncio.sleep(MINUTE_S)
    assert bed.woken_at_s == []
    assert bed.lane.pacer.held_since_s == 0.0


@virtually
async def test_with_nothing_to_send_it_wakes_nobody_and_holds_nothing() -> None:
    bed = Bed()
    bed.refuse(waiting("a"), Retry_After="7")
    bed.lane.wake_for(ONE)
    bed.lane.is_free()
    assert bed.lane.pacer.held_since_s == 0.0  # still in the wait
    await asyncio.sleep(MINUTE_S)
    assert bed.woken_at_s == []
    bed.accept(waiting("a"))
    bed.lane.is_free()
    assert bed.lane.pacer.held_since_s is None


@virtually
async def test_what_waits_leaves_by_urgency_and_among_equals_by_turns_of_tenants() -> None:
    lane = Bed().lane
    large, more, query = waiting("a", "b", urgency=4), waiting("c", urgency=4), waiting("d", urgency=3)
    other = [waiting(name, urgency=4, tenant="other") for name in "ef"]
    for one in (large, more, *other, query):
        lane.queued(one)
    order = []
    while (first := lane.queue.first(0.0)) is not None:
        order.append(first)
        lane.queue.take(0.0, partial(is_, first))
    assert order == [query, large, *other, more]  # two items of each tenant, by turns


@virtually
async def test_requests_of_one_group_leave_together() -> None:
    lane = Bed().lane
    together = [waiting("a"), waiting("b")]
    apart = [waiting("c", dimensions=7), waiting("d", may_merge=False)]
    for one in (*together, *apart):
        lane.queued(one)
    assert [lane.queue.take(0.0, lambda _one: True) for _ in range(3)] == [together, [apart[0]], [apart[1]]]


@virtually
@pytest.mark.parametrize(("alone", "in_others", "is_apart"), [(1, 0, True), (0, 2, False), (0, 3, True)])
async def test_what_was_refused_alone_or_often_leaves_alone(alone: int, in_others: int, is_apart: bool) -> None:
    lane = Bed().lane
    refused = waiting("a")
    refused.refusals_alone, refused.refusals_together = alone, in_others
    lane.queued(refused)
    lane.queued(waiting("b"))
    assert (len(lane.queue.take(0.0, lambda _one: True)) == 1) is is_apart


@virtually
async def test_what_was_queued_before_gets_its_place_again() -> None:
    lane = Bed().lane
    first, second = waiting("a", dimensions=1), waiting("b", dimensions=2)
    first.ticket, second.ticket = lane.queued(first), lane.queued(second)
    lane.queue.remove(first.ticket)
    lane.queued(first)
    assert lane.queue.first(0.0) is first
    assert len(lane.queue) == 2


@virtually
async def test_a_request_waits_since_its_client_came() -> None:
    lane = Bed().lane
    lane.queued(waiting("old", urgency=4, began_s=-20.0, dimensions=1))
    for number in range(4):
        lane.queued(waiting(str(number), urgency=0, dimensions=2 + number))
    taken = [lane.queue.take(0.0, lambda _one: True)[0].request.client_request.limit_wait.urgency for _ in range(4)]
    assert taken == [0, 0, 0, 4]  # one of four is for those that have waited for long


@virtually
async def test_it_is_in_use_while_something_waits_or_is_under_way() -> None:
    lane = Bed().lane
    assert not lane.is_in_use
    one = waiting("a")
    _, call = lane.sent([one])
    assert lane.is_in_use
    assert not lane.has_waiting
    lane.lost(call)
    lane.lost(call)  # no harm
    assert not lane.is_in_use
    ticket = lane.queued(one)
    assert lane.has_waiting
    assert lane.held == [one]
    lane.queue.remove(ticket)
    lane.resting[one] = None
    assert lane.is_in_use
    assert lane.held == [one]
    assert repr(lane).startswith("<Lane, 0 requests wait, 1 rest, Pacer(")


@virtually
async def test_what_rests_for_another_call_must_not_rest_for_ever() -> None:
    lane = Bed().lane
    one, other = waiting("a"), waiting("b")
    assert not lane.has_only_resting
    timer = asyncio.get_running_loop().call_later(1, lambda: None)
    lane.resting[one] = timer  # it comes back by itself
    assert not lane.has_only_resting
    lane.resting[other] = None
    assert lane.has_only_resting
    _, call = lane.sent([waiting("c")])
    assert not lane.has_only_resting
    lane.lost(call)
    lane.queued(waiting("d"))
    assert not lane.has_only_resting
    timer.cancel()


@virtually
async def test_a_refusal_is_remembered_for_five_minutes_without_what_was_sent() -> None:
    bed = Bed()
    assert bed.lane.last_refusal is None
    bed.refuse(waiting("a"), Retry_After="7")
    known = bed.lane.last_refusal
    assert known is not None
    assert (known.response.status, known.body) == (429, b"")
    assert b"secret" not in known.response.body
    assert known.response.headers["Retry-After"] == "7"
    await asyncio.sleep(299)
    assert bed.lane.last_refusal is not None
    await asyncio.sleep(1)
    assert bed.lane.last_refusal is None


@virtually
async def test_a_request_that_is_refused_for_itself_says_nothing_about_others() -> None:
    bed = Bed()
    await asyncio.sleep(5)
    assert bed.refuse_for_itself(waiting("a"), Retry_After="9") == 14.0
    assert bed.refuse_for_itself(waiting("a")) == 5.0
    assert bed.lane.last_refusal is None
    assert bed.lane.is_ready(ONE)
    assert bed.refuse(waiting("a"), Retry_After="9") == 5.0
    assert not bed.lane.is_ready(ONE)
    assert bed.lane.ready_at_s(ONE) == 14.0


@virtually
async def test_a_wait_grows_slower_if_the_next_probe_is_another_request() -> None:
    async def third_wait_s(batch: list[Waiting], *queued: Waiting) -> float:
        bed = Bed()
        for one in queued:
            bed.lane.queued(one)
        for _ in range(3):
            bed.refuse(*batch)
            wait_s = bed.lane.ready_at_s(ONE) - now_s()
            await asyncio.sleep(wait_s)
        return wait_s

    alone, merged = [waiting("a")], [waiting("a"), waiting("b")]
    assert await third_wait_s(alone) == pytest.approx(4.0)
    assert await third_wait_s(alone, waiting("c")) == pytest.approx(2.0 * 2.0**0.5)
    assert await third_wait_s(merged, waiting("c")) == pytest.approx(4.0)


@virtually
async def test_only_calls_that_were_sent_since_then_count_as_accepted() -> None:
    bed = Bed()
    lane, early = bed.lane.sent([waiting("a")])
    await asyncio.sleep(10)
    assert not lane.has_passed(-1.0)
    lane.accepted(early, result())
    assert lane.has_passed(-1.0)
    assert not lane.has_passed(0.0)
    bed.accept(waiting("b"))
    _, lost = lane.sent([waiting("c")])
    lane.lost(lost)
    assert lane.has_passed(9.0)
    assert not lane.has_passed(10.0)
    _, first = lane.sent([waiting("d")])
    await asyncio.sleep(1)
    bed.accept(waiting("e"))
    lane.accepted(first, result())
    assert lane.has_passed(10.5)


@virtually
async def test_what_responses_state_counts_as_known_once_a_refusal_confirmed_it() -> None:
    bed = Bed()
    stated = {"x_ratelimit_limit_requests": "9", "x_ratelimit_remaining_requests": "0", "retry_after": "7"}
    bed.accept(waiting("a"), **stated, x_ratelimit_reset_requests="90s")
    assert bed.lane.stated_at_s(ONE) == 0.0
    bed.refuse(waiting("a"), **stated, x_ratelimit_reset_requests="90s")
    assert bed.lane.stated_at_s(ONE) >= 7.0
    await asyncio.sleep(2)
    fresh = Bed().lane
    assert fresh.stated_at_s(ONE) == 2.0


@virtually
async def test_an_error_that_is_no_refusal_counts_as_accepted() -> None:
    bed = Bed()
    stated = {"x-ratelimit-limit-requests": "9", "x-ratelimit-remaining-requests": "0"}
    lane, call = bed.lane.sent([waiting("a")])
    await asyncio.sleep(1)
    lane.accepted(call, ErrorResponse(response(400, stated), b""))
    assert lane.has_passed(-1.0)
    assert not lane.is_ready(ONE)  # by its header fields


@virtually
async def test_its_state_is_how_long_it_holds_and_what_limit_is_known() -> None:
    bed = Bed()
    assert bed.lane.state == LaneState("u", "m", 0.0, None)
    bed.refuse(waiting("a"), Retry_After="60")
    await asyncio.sleep(8)
    assert bed.lane.state.held_s == 0.0  # nothing waits
    ticket = bed.lane.queued(waiting("a"))
    assert bed.lane.state.held_s == 8.0
    bed.lane.queue.remove(ticket)
    bed.lane.resting[waiting("b")] = None
    assert bed.lane.state.held_s == 8.0
    assert Bed(Pacer(requests_per_minute=120)).lane.state.calls_per_s == 2.0


class House:
    """Lanes, and for which upstream and model a pacer was made."""

    def __init__(self, max_lanes: int) -> None:
        self.made: list[tuple[str, str | None]] = []
        self.lanes = Lanes(self._new_pacer, max_lanes=max_lanes)

    def _new_pacer(self, upstream: str, model: str | None) -> Pacer:
        self.made.append((upstream, model))
        return Pacer()

    def of(self, name: str, *, model: str = "m") -> Lane:
        request = waiting("a", model=model).request.client_request
        request._lane_name = ("u", name.encode(), b"")
        return self.lanes.of(request, lambda _lane: None)


@virtually
async def test_each_name_has_one_lane() -> None:
    house = House(8)
    first = house.of("a")
    assert house.of("a") is first
    assert house.of("b") is not first
    assert house.made == [(origin_of(FakeClient()).name, "m")] * 2
    assert len(house.lanes.all()) == 2


@virtually
async def test_a_long_name_of_a_model_is_no_label_but_has_its_own_pacer() -> None:
    house = House(8)
    assert house.of("a", model="m" * 128).state.model == "m" * 128
    assert house.of("b", model="m" * 129).state.model == ""
    assert house.made[1][1] == "m" * 129


@virtually
async def test_the_lane_that_was_called_longest_ago_goes_first() -> None:
    house = House(2)
    first, second = house.of("a"), house.of("b")
    assert house.of("a") is first
    house.of("c")
    assert second not in house.lanes.all()
    assert first in house.lanes.all()


@virtually
async def test_a_lane_in_use_stays_whatever_the_bound_is() -> None:
    house = House(1)
    used = house.of("a")
    _, call = used.sent([waiting("a")])
    idle = house.of("b")
    assert house.lanes.all() == [idle, used] or house.lanes.all() == [used, idle]
    house.of("c")
    assert used in house.lanes.all()
    assert idle not in house.lanes.all()
    used.lost(call)
    house.of("d")
    house.of("e")
    assert used not in house.lanes.all()
    assert len(house.lanes.all()) == 1


@virtually
async def test_so_many_lanes_are_looked_at_and_no_more() -> None:
    house = House(1)
    for number in range(12):
        house.of(str(number)).sent([waiting("a")])
    looked_at = house.lanes.all()[:8]
    house.of("new")
    assert house.lanes.all()[-8:] == looked_at  # each in use, and so at the end again


@virtually
async def test_the_wait_counts_that_a_body_stated_and_of_a_header_field_that_one() -> None:
    stated: list[tuple[dict[str, str], float]] = [({}, 7.0), ({"Retry_After": "3"}, 3.0)]
    for fields, wait_s in stated:
        lane, call = Bed().lane.sent([waiting("a"), waiting("b")])
        refused = replace(refusal(**fields), retry_after_s=7.0)
        lane.refused(call, refused, is_alone=False, is_for_itself=False)
        assert lane.ready_at_s(ONE) == pytest.approx(now_s() + wait_s)
