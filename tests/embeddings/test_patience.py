"""How requests wait for a rate limit, one at a time: patience, order, what they are told. On a virtual clock."""

import asyncio
from unittest.mock import patch

import orjson
import pytest

from proxy.pacing.pacer import Pacer
from proxy.protocol import rate_limits
from tests.support.limited_route import WAIT_S, Answer, LimitedRoute, Scripted
from tests.support.limiters import LIMITERS, REFUSAL, Concurrency, Limiter, Verdict
from tests.support.samples import samples
from tests.support.virtual_loop import virtually

ACCEPTED = Verdict(is_accepted=True)


def refused(**headers: str) -> Verdict:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Verdict(is_accepted=False, status=429, headers=fields, body=REFUSAL)


def refusing(times: int, **headers: str) -> Scripted:
    return Scripted(lambda n: refused(**headers) if n < times else ACCEPTED)


@virtually
async def test_patience_ends_with_the_last_refusal() -> None:
    route = LimitedRoute(Concurrency(0))  # accepts nothing
    answer = await route.send(["a"])
    assert answer.status == 429
    assert WAIT_S / 2 <= answer.took_s <= WAIT_S  # no further attempt would have been in time
    assert answer.held_s == pytest.approx(answer.took_s, abs=0.5)
    await route.assert_idle()


@virtually
async def test_each_request_that_waited_in_vain_is_counted() -> None:
    """Those that are sent again are no errors to clients, and these are: alerts tell them apart."""
    route = LimitedRoute(Scripted(lambda n: refused(Retry_After="5") if n in (0, 2) else ACCEPTED))
    assert (await route.send(["a"])).status == 200
    assert samples(route.metrics, "upstream_rate_limit_refusals_total") == {("o",): 1}
    assert samples(route.metrics, "upstream_rate_limit_given_up_total") == {}
    waiting = [route.start(["b"], fields={"Prefer": "wait=1"}) for _ in range(2)]
    assert [(await task).status for task in waiting] == [429, 429]
    assert samples(route.metrics, "upstream_rate_limit_refusals_total") == {("o",): 2}
    assert samples(route.metrics, "upstream_rate_limit_given_up_total") == {("o",): 2}


@virtually
async def test_what_is_blocked_for_longer_than_the_patience_is_refused_at_once() -> None:
    route = LimitedRoute(refusing(10**9, Retry_After="3000"))
    for text in ("a", "b", "c"):
        answer = await route.send([text])
        assert (answer.status, answer.headers["Retry-After"]) == (429, "3000")
        assert answer.took_s < 1
    assert len(route.upstream.calls) == 1
    await route.assert_idle()


@virtually
async def test_a_block_of_an_hour_is_tried_now_and_then() -> None:
    route = LimitedRoute(refusing(2, Retry_After="999999999999999999999999"))
    statuses = []
    for n in range(6):
        statuses.append((await route.send([str(n)])).status)
        await asyncio.sleep(61)
    assert statuses == [429, 429, 429, 429, 200, 200]
    assert len(route.upstream.calls) == 4


@virtually
async def test_a_date_that_nobody_can_read_hangs_nobody() -> None:
    route = LimitedRoute(refusing(1, Retry_After="1 Jan 99999999999999999999 00:00:00"))
    assert (await route.send(["a"])).status == 200


@virtually
async def test_an_error_while_a_call_ends_hangs_nobody() -> None:
    route = LimitedRoute(Limiter(calls_per_s=100, items_per_s=1000))
    with patch.object(rate_limits, "of_headers", side_effect=OverflowError):
        answers = await asyncio.gather(*(route.send([text]) for text in "abc"))
    assert [answer.status for answer in answers] == [500, 500, 500]
    assert (await route.send(["d"])).status == 200
    await route.assert_idle()


@virtually
async def test_refusals_that_state_no_wait_are_not_answered_in_a_loop() -> None:
    route = LimitedRoute(refusing(10**9, Retry_After="0"))
    answer = await route.send(["a"])
    assert answer.status == 429
    assert len(route.upstream.calls) <= 15


@virtually
async def test_a_burst_that_is_refused_whole_teaches_no_rate() -> None:
    route = LimitedRoute(refusing(8, Retry_After="1"))
    answers = await asyncio.gather(*(route.send([str(n)], user=str(n)) for n in range(8)))
    assert [answer.status for answer in answers] == [200] * 8


@virtually
async def test_what_fits_of_a_merged_call_is_sent() -> None:
    """A call for all that wait would exceed what is left of the tokens, and a call for the first would not."""
    fields = {"x-ratelimit-limit-tokens": "100", "x-ratelimit-remaining-tokens": "10", "x-ratelimit-reset-tokens": "9s"}
    route = LimitedRoute(Scripted(lambda _: Verdict(is_accepted=True, headers=fields)))
    first = route.start(["x" * 8])
    await asyncio.sleep(0)
    rest = [route.start([letter * 200]) for letter in "abcd"]
    answers = await asyncio.gather(first, *rest)
    assert [answer.status for answer in answers] == [200] * 5
    assert max(answer.took_s for answer in answers) < 60


@virtually
async def test_a_client_that_joins_has_its_own_patience() -> None:
    route = LimitedRoute(refusing(1, Retry_After="20"))
    first = route.start(["a"])
    await asyncio.sleep(1)
    short = route.start(["a"], fields={"Prefer": "wait=5"})
    long = route.start(["a"])
    answer = await short
    assert answer.status == 429
    assert answer.took_s == pytest.approx(5)
    assert answer.held_s == pytest.approx(5)
    assert [(await one).status for one in (first, long)] == [200, 200]
    assert route.upstream.calls == [["a"], ["a"]]
    assert (await long).headers["X-RateLimit-Wait-Ms"] == str(round((await long).held_s * 1000))
    assert (await long).held_s == pytest.approx(19, abs=0.1)
    await route.assert_idle()


@virtually
async def test_a_client_that_joins_may_wait_longer() -> None:
    route = LimitedRoute(Scripted(lambda n: refused() if n < 3 else ACCEPTED))
    first = route.start(["a"], fields={"Prefer": "wait=2"})
    await asyncio.sleep(0.1)
    second = route.start(["a"])
    assert (await first).status == 429
    assert (await second).status == 200


@virtually
async def test_time_in_which_several_parts_wait_counts_once() -> None:
    fields = {"x-ratelimit-limit-tokens": "40", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "8s"}
    route = LimitedRoute(Scripted(lambda _: Verdict(is_accepted=True, headers=fields)))
    await route.send(["a" * 100])
    answer = await route.send([f"{n:0100}" for n in range(5)])
    assert answer.status == 200
    assert answer.held_s <= answer.took_s


@virtually
async def test_nothing_is_left_of_clients_that_leave() -> None:
    route = LimitedRoute(refusing(1, Retry_After="30"))
    tasks = [route.start([str(n)], user=str(n % 3)) for n in range(9)]
    await asyncio.sleep(1)
    for task in tasks:
        task.cancel()
    answer = await route.send(["other"])
    assert answer.status == 200
    sent = [text for call in route.upstream.calls[1:] for text in call if text != "other"]
    assert len(set(sent)) == len(sent)
    await asyncio.sleep(60)
    await route.assert_idle()


@virtually
async def test_what_waits_when_the_proxy_stops_is_refused_in_time() -> None:
    route = LimitedRoute(refusing(10**9, Retry_After="15"), concurrency=2)
    tasks = [route.start([str(n)], user=str(n % 3)) for n in range(9)]
    await asyncio.sleep(1)
    tasks[3].cancel()
    route.fetcher.stop_holding(40)  # and half of that for what waits
    began_s = asyncio.get_running_loop().time()
    answers = [await task for task in tasks if task is not tasks[3]]
    assert asyncio.get_running_loop().time() - began_s <= 20
    assert {answer.status for answer in answers} == {503}
    assert {answer.headers["Retry-After"] for answer in answers} == {"1"}
    await route.assert_idle()


@virtually
async def test_parts_that_are_refused_alone_are_seen() -> None:
    """A merged call fails for another reason, and the upstream refuses one of its parts for its limits."""
    error = Verdict(is_accepted=False, status=400, body=orjson.dumps({"error": {"message": "an item is too long"}}))
    verdicts = [ACCEPTED, error, ACCEPTED, refused(Retry_After="7")]
    route = LimitedRoute(Scripted(lambda n: verdicts[n] if n < len(verdicts) else ACCEPTED))
    first = route.start(["a"])
    await asyncio.sleep(0.001)
    answers = await asyncio.gather(first, route.send(["b"]), route.send(["c"]))
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert answers[2].took_s > 7


@virtually
async def test_a_lane_in_use_is_kept() -> None:
    made = 0

    def new_pacer() -> Pacer:
        nonlocal made
        made += 1
        return Pacer()

    route = LimitedRoute(refusing(1, Retry_After="10"), new_pacer, lanes=1)
    held = route.start(["a"], "held")
    await asyncio.sleep(1)
    for n in range(5):
        assert (await route.send(["b"], f"other {n}")).status == 200
    second = route.start(["c"], "held")
    answers = await asyncio.gather(held, second)
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[1].took_s > 8  # it waited in the same lane
    assert made == 6


@virtually
async def test_bulk_keeps_a_share_beside_endless_queries() -> None:
    route = LimitedRoute(Limiter(calls_per_s=1, items_per_s=4))
    bulk = route.start([f"bulk {n}" for n in range(8)])
    queries: list[asyncio.Task[Answer]] = []
    while not bulk.done():
        queries.append(route.start([f"query {len(queries)}", f"and {len(queries)}"]))
        await asyncio.sleep(0.5)
    assert (await bulk).status == 200
    for query in queries:
        query.cancel()
    await asyncio.gather(*queries, return_exceptions=True)


@virtually
async def test_groups_of_one_lane_take_turns() -> None:
    """Requests that can't be merged with each other, of one tenant, as many as the limit takes."""
    route = LimitedRoute(Limiter(calls_per_s=2, items_per_s=1000))
    loud = [route.start([f"loud {n}"], user="a") for n in range(4)]
    quiet = route.start(["quiet"], user="b")
    while not quiet.done():
        loud.append(route.start([f"loud {len(loud)}"], user="a"))
        await asyncio.sleep(0.1)
    assert (await quiet).status == 200
    assert (await quiet).took_s < 5
    await asyncio.gather(*loud)


@virtually
async def test_tenants_take_turns() -> None:
    route = LimitedRoute(LIMITERS["nothing stated"]())
    loud = [route.start([f"loud {n} {i}" for i in range(40)], "a") for n in range(60)]
    await asyncio.sleep(1.5)
    answer = await route.send([f"quiet {i}" for i in range(40)], "b")
    assert answer.status == 200
    assert answer.took_s < 5
    await asyncio.gather(*loud)
