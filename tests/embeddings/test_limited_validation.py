"""Credentials that have to be validated while the upstream's rate limit takes no call, on a virtual clock."""

import asyncio

import pytest

from tests.support.limited_route import LimitedRoute, Scripted
from tests.support.limiters import REFUSAL, Verdict
from tests.support.virtual_loop import virtually

ACCEPTED = Verdict(is_accepted=True)
UNAUTHORIZED = Verdict(is_accepted=False, status=401, body=b'{"error": {"code": "invalid_api_key"}}')
TTL_S = 10.0


def refused(wait_s: float) -> Verdict:
    return Verdict(is_accepted=False, status=429, headers={"Retry-After": str(wait_s)}, body=REFUSAL)


def scripted(*verdicts: Verdict, then: Verdict) -> Scripted:
    return Scripted(lambda n: verdicts[n] if n < len(verdicts) else then)


@virtually
async def test_a_hit_does_not_wait_while_its_lane_is_held() -> None:
    route = LimitedRoute(scripted(ACCEPTED, refused(30), then=ACCEPTED), revalidate_s=TTL_S)
    assert (await route.send(["a"])).status == 200
    await asyncio.sleep(TTL_S)
    held = route.start(["b"])
    await asyncio.sleep(1)
    for _ in range(3):
        answer = await route.send(["a"])
        assert (answer.status, answer.took_s) == (200, 0)
        assert answer.headers["Cache-Status"] == "embedding-proxy; hit; detail=unvalidated"
    assert len(route.upstream.calls) == 2
    assert (await held).status == 200
    # The call that was accepted, long after the request came, confirms the credential.
    assert (await route.send(["a"])).headers["Cache-Status"] == "embedding-proxy; hit"
    await route.assert_idle()


@virtually
async def test_a_probe_that_is_refused_is_not_sent_again() -> None:
    route = LimitedRoute(scripted(ACCEPTED, then=refused(30)), revalidate_s=TTL_S)
    assert (await route.send(["a"])).status == 200
    await asyncio.sleep(TTL_S)
    for _ in range(3):
        answer = await route.send(["a"])
        assert answer.status == 200
        assert answer.took_s <= 0.01
    assert len(route.upstream.calls) == 2
    await route.assert_idle()


@virtually
async def test_a_refused_credential_is_told_of_the_limit() -> None:
    """No response is no permission, and neither is a refusal for the limit: but its client can try again."""
    route = LimitedRoute(scripted(ACCEPTED, UNAUTHORIZED, then=refused(30)), revalidate_s=TTL_S)
    assert (await route.send(["a"])).status == 200
    await asyncio.sleep(TTL_S)
    assert (await route.send(["b"])).status == 401
    for _ in range(2):
        answer = await route.send(["a"])
        assert (answer.status, answer.headers["Retry-After"]) == (429, "30")
        assert answer.took_s <= 0.01
    assert len(route.upstream.calls) == 3
    await route.assert_idle()


@pytest.mark.parametrize("wait_s", [0, 5])
@virtually
async def test_in_a_shared_scope_each_client_waits_for_the_verdict_as_long_as_it_says(wait_s: int) -> None:
    route = LimitedRoute(scripted(ACCEPTED, refused(20), then=ACCEPTED), revalidate_s=TTL_S, shares_all=True)
    assert (await route.send(["a"])).status == 200
    await asyncio.sleep(TTL_S)
    first = route.start(["a"], fields={"Prefer": "wait=21"})
    await asyncio.sleep(1)
    short = route.start(["a"], fields={"Prefer": f"wait={wait_s}"})
    long = route.start(["a"])
    answer = await short
    assert answer.status == 429
    assert answer.took_s == pytest.approx(wait_s)
    assert [(await task).status for task in (first, long)] == [200, 200]
    assert len(route.upstream.calls) == 3
    await route.assert_idle()


@virtually
async def test_in_a_shared_scope_the_verdict_outlasts_the_patience_of_the_first() -> None:
    route = LimitedRoute(scripted(ACCEPTED, *[refused(20)] * 2, then=ACCEPTED), revalidate_s=TTL_S, shares_all=True)
    assert (await route.send(["a"])).status == 200
    await asyncio.sleep(TTL_S)
    first = route.start(["a"], fields={"Prefer": "wait=30"})
    await asyncio.sleep(1)
    rest = [route.start(["a"]) for _ in range(5)]
    assert (await first).status == 429
    assert {(await task).status for task in rest} == {200}
    assert len(route.upstream.calls) == 4
    await route.assert_idle()


@virtually
async def test_in_a_shared_scope_nobody_waits_longer_if_the_limit_is_known_after_his_patience_has_ended() -> None:
    route = LimitedRoute(scripted(ACCEPTED, refused(20), then=ACCEPTED), revalidate_s=TTL_S, shares_all=True)
    assert (await route.send(["a"])).status == 200
    await asyncio.sleep(TTL_S)
    route.upstream.refused_after_s = 5.0
    first = route.start(["a"])
    await asyncio.sleep(1)
    short = await route.send(["a"], fields={"Prefer": "wait=2"})
    assert short.status == 429
    assert short.took_s == pytest.approx(4, abs=0.2)  # when the call in flight has ended
    assert (await first).status == 200
    await route.assert_idle()
