"""Loads that stay above the limit, requests that are refused whatever others do, and items that many clients ask for,
on a virtual clock."""

import asyncio
from typing import Any

import pytest

from proxy.pacing.pacer import Pacer
from tests.support.limited_route import WAIT_S, Answer, LimitedRoute, Scripted
from tests.support.limiters import LIMITERS, REFUSAL, Limiter, Verdict
from tests.support.virtual_loop import virtually

ACCEPTED = Verdict(is_accepted=True)
CULPRIT = "a text that the limit never takes"
UNLIMITED = 10.0**6


def refused(**headers: str) -> Verdict:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Verdict(is_accepted=False, status=429, headers=fields, body=REFUSAL)


class Opening(Limiter):
    """Refuses everything until ``at_s``."""

    def __init__(self, at_s: float) -> None:
        super().__init__(calls_per_s=UNLIMITED, items_per_s=UNLIMITED)
        self._at_s = at_s

    def arrives(self, items: int, now_s: float) -> Verdict:
        return ACCEPTED if now_s >= self._at_s else refused()


async def steadily(route: LimitedRoute, *, every_s: float, for_s: float, **more: Any) -> list[Answer]:
    """Answers to requests of one new item each."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + for_s
    tasks: list[asyncio.Task[Answer]] = []
    while loop.time() < until_s:
        tasks.append(route.start([f"{len(tasks)}"], **more))
        await asyncio.sleep(every_s)
    return [await task for task in tasks]


@pytest.mark.parametrize("headers", [{}, {"Retry_After": "2"}, {"Retry_After": "0"}])
@pytest.mark.parametrize("culprits", [1, 3])
@pytest.mark.parametrize("fields", [{}, {"Priority": "u=0"}])
@virtually
async def test_requests_refused_for_themselves_delay_no_others(
    headers: dict[str, str], culprits: int, fields: dict[str, str]
) -> None:
    route = LimitedRoute(Limiter(calls_per_s=UNLIMITED, items_per_s=UNLIMITED))
    route.upstream.refuses = lambda texts, _: refused(**headers) if any(CULPRIT in text for text in texts) else None
    bad = [route.start([f"{CULPRIT} {n}"], "bad", fields=fields) for n in range(culprits)]
    answers = await steadily(route, every_s=0.1, for_s=50.0, key="bad")
    assert {answer.status for answer in answers} == {200}
    assert max(answer.took_s for answer in answers) <= 16
    assert max(answer.took_s for answer in answers[200:]) <= 0.2
    for answer in await asyncio.gather(*bad):
        assert answer.status == 429
        assert answer.took_s <= WAIT_S
    await route.assert_idle()


@virtually
async def test_a_culprit_in_merged_calls_delays_its_company_for_a_while_only() -> None:
    route = LimitedRoute(Limiter(calls_per_s=UNLIMITED, items_per_s=UNLIMITED))
    route.upstream.refuses = lambda texts, _: refused() if CULPRIT in texts else None
    first = route.start(["first"])
    await asyncio.sleep(0.01)  # the others gather while it is under way
    tasks = [route.start([f"good {n}"]) for n in range(10)]
    bad = route.start([CULPRIT])
    assert (await first).status == 200
    for task in tasks:
        answer = await task
        assert answer.status == 200
        assert answer.took_s <= 20
    assert (await bad).status == 429
    await route.assert_idle()


@pytest.mark.parametrize("name", ["nothing stated", "Retry-After alone", "OpenAI's header fields"])
@virtually
async def test_a_load_above_the_limit_uses_all_of_it(name: str) -> None:
    route = LimitedRoute(LIMITERS[name](), concurrency=1000)
    wait = {"Prefer": "wait=20"}
    for_s = 120.0
    tasks = []
    for n in range(int(for_s * 20)):  # twice the limit on calls
        tasks.append(route.start([str(n)], user=str(n), fields=wait))
        await asyncio.sleep(0.05)
    answers = [await task for task in tasks]
    accepted = sum(answer.status == 200 for answer in answers)
    assert accepted >= 0.8 * 10 * for_s
    assert {answer.status for answer in answers} == {200, 429}
    assert max(answer.took_s for answer in answers) <= 21
    refusals = sum(not verdict.is_accepted for _, verdict in route.upstream.verdicts)
    assert refusals <= 0.05 * len(route.upstream.verdicts)
    await route.assert_idle()


@virtually
async def test_at_its_deadline_a_request_is_not_sent() -> None:
    route = LimitedRoute(Limiter(calls_per_s=UNLIMITED, items_per_s=UNLIMITED), lambda: Pacer(requests_per_minute=1))
    assert (await route.send(["first"])).status == 200
    answer = await route.send(["a"], fields={"Prefer": "wait=5"})
    assert (answer.status, len(route.upstream.calls)) == (429, 1)
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.took_s <= 5
    await route.assert_idle()


@virtually
async def test_an_item_that_many_ask_for_is_computed_once() -> None:
    opens_at_s, clients = 75.0, 74
    route = LimitedRoute(Opening(opens_at_s))
    tasks = []
    for _ in range(clients):
        tasks.append(route.start(["hot"]))
        await asyncio.sleep(1)
    answers = [await task for task in tasks]
    assert sum(route.upstream.computed.values()) == 1
    assert answers[0].status == 429
    assert answers[0].took_s <= WAIT_S
    assert {answer.status for answer in answers[30:]} == {200}
    await route.assert_idle()


@virtually
async def test_an_item_of_batches_whose_clients_leave_is_computed_once() -> None:
    route = LimitedRoute(Opening(30.0))
    leaving = []
    for n in range(10):
        leaving.append(route.start([f"own {n}", "hot"]))
        await asyncio.sleep(0.1)
    patient = [route.start(["hot"]) for _ in range(20)]
    for task in leaving:
        await asyncio.sleep(0.5)
        task.cancel()
    assert {(await task).status for task in patient} == {200}
    assert dict(route.upstream.computed) == {("Bearer k", "hot"): 1}
    await route.assert_idle()


@pytest.mark.parametrize("wait_s", [0, 3])
@virtually
async def test_a_client_that_joins_what_was_never_refused_has_its_patience(wait_s: int) -> None:
    route = LimitedRoute(
        Limiter(calls_per_s=UNLIMITED, items_per_s=UNLIMITED), lambda: Pacer(requests_per_minute=60 / 30)
    )
    for n in range(2):
        await route.send([f"first {n}"])
    leader = route.start(["a"])
    await asyncio.sleep(1)
    joined = await route.send(["a"], fields={"Prefer": f"wait={wait_s}"})
    assert joined.status == 429
    assert joined.took_s == pytest.approx(wait_s, abs=0.01)
    assert (await leader).status == 200
    await route.assert_idle()


@virtually
async def test_a_bulk_keeps_its_size_while_nothing_is_accepted() -> None:
    route = LimitedRoute(Opening(40.0))
    answer = await route.send([f"item {n}" for n in range(400)])
    assert answer.status == 200
    accepted = [
        texts
        for texts, (_, verdict) in zip(route.upstream.calls, route.upstream.verdicts, strict=True)
        if verdict.is_accepted
    ]
    assert len(accepted) <= 4
    await route.assert_idle()


@virtually
async def test_a_request_that_waits_alone_for_a_script_is_sent_when_it_says() -> None:
    route = LimitedRoute(Scripted(lambda n: refused(Retry_After="7") if n < 2 else ACCEPTED))
    answer = await route.send(["a"])
    assert (answer.status, len(route.upstream.calls)) == (200, 3)
    assert answer.took_s == pytest.approx(14, abs=0.2)


@virtually
async def test_what_rests_does_not_wait_for_a_call_that_nobody_wants_any_more() -> None:
    route = LimitedRoute(Limiter(calls_per_s=UNLIMITED, items_per_s=UNLIMITED), shares_all=True)
    for key in ("limited", "free"):
        assert (await route.send([key], key)).status == 200
    route.upstream.refuses = lambda _, authorization: (
        refused(Retry_After="5") if authorization == "Bearer limited" and len(route.upstream.calls) <= 4 else None
    )
    first = route.start(["first"], "limited")
    await asyncio.sleep(0.001)
    resting = route.start(["other"], "limited", dimensions=8)  # in a call of its own
    joined = route.start(["first"], "free")
    await asyncio.sleep(0.001)
    first.cancel()
    assert (await joined).status == 200  # it left the first call, for which nobody waits now
    answer = await resting
    assert answer.status == 200
    assert answer.took_s == pytest.approx(5, abs=1)
    await route.assert_idle()


@virtually
async def test_one_credentials_limit_does_not_hold_anothers_requests() -> None:
    """In a shared scope, where they wait for each other's fetches."""
    route = LimitedRoute(Limiter(calls_per_s=UNLIMITED, items_per_s=UNLIMITED), shares_all=True)
    route.upstream.refuses = lambda _, authorization: (
        refused(Retry_After="30") if authorization == "Bearer limited" else None
    )
    limited = [route.start(["a", "b"], "limited") for _ in range(3)]
    await asyncio.sleep(0.001)
    joined = [route.start(["a", "c"], f"free {n}") for n in range(3)]  # before the refusal
    await asyncio.sleep(1)
    late = [route.start(["b"], f"free {n}") for n in range(3)]
    for task in (*joined, *late):
        answer = await task
        assert answer.status == 200
        assert answer.took_s <= 0.2
    for task in limited:
        assert (await task).status in {200, 429}
    assert all(authorization != "Bearer limited" for authorization, _ in route.upstream.computed)
    texts = [text for _, text in route.upstream.computed.elements()]
    assert texts.count("b") == 1
    await route.assert_idle()


@virtually
async def test_a_request_that_leaves_what_anothers_limit_holds_still_gets_what_it_asked_for_itself() -> None:
    route = LimitedRoute(Limiter(calls_per_s=UNLIMITED, items_per_s=UNLIMITED), shares_all=True)
    for key in ("limited", "free"):
        assert (await route.send([key], key)).status == 200
    route.upstream.refuses = lambda _, authorization: (
        refused(Retry_After="30") if authorization == "Bearer limited" else None
    )
    limited = route.start(["shared"], "limited")
    await asyncio.sleep(1)
    answer = await route.send(["shared", "own"], "free")
    assert answer.status == 200
    assert answer.took_s <= 0.2
    assert (await limited).status == 200
    assert {text: count for (_, text), count in route.upstream.computed.items()} == dict.fromkeys(
        ("limited", "free", "shared", "own"), 1
    )
    await route.assert_idle()
