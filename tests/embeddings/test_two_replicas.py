"""Two replicas on one store with leases, of which a rate limit holds one, on a virtual clock."""

import asyncio

import pytest

from tests.support.leasing_store import SharedLeases
from tests.support.limited_route import LimitedRoute, LimitedUpstream
from tests.support.limiters import REFUSAL, Limiter, Verdict
from tests.support.virtual_loop import virtually

REFUSED = Verdict(is_accepted=False, status=429, headers={"Retry-After": "20"}, body=REFUSAL)


class Replicas:
    """Under a limit that refuses the credential ``k`` for 20 s and no other. Both credentials are validated."""

    @classmethod
    async def started(cls, *, shares_all: bool) -> "Replicas":
        replicas = cls(shares_all=shares_all)
        for number, route in enumerate((replicas.first, replicas.second)):
            for key in ("k", "other"):
                assert (await route.send([f"first {number}"], key)).status == 200
        replicas.upstream.calls.clear()
        replicas.upstream.computed.clear()
        replicas.limits_from_s = asyncio.get_running_loop().time()
        return replicas

    def __init__(self, *, shares_all: bool) -> None:
        self.limits_from_s = 10.0**9
        limiter = Limiter(calls_per_s=1000, items_per_s=100_000)
        self.upstream = LimitedUpstream(limiter)
        self.upstream.refuses = self._refuses
        store = SharedLeases()
        self.first, self.second = (
            LimitedRoute(limiter, shares_all=shares_all, store=one, upstream=self.upstream)
            for one in (store, store.of_another_process())
        )

    def _refuses(self, _texts: list[str], authorization: str) -> Verdict | None:
        passed_s = asyncio.get_running_loop().time() - self.limits_from_s
        return REFUSED if authorization == "Bearer k" and 0 <= passed_s < 20 else None

    async def assert_idle(self) -> None:
        for route in (self.first, self.second):
            await route.assert_idle()


@virtually
async def test_one_credentials_limit_does_not_hold_what_another_credential_asks_of_another_replica() -> None:
    replicas = await Replicas.started(shares_all=True)
    held = replicas.first.start(["a"])
    await asyncio.sleep(1)
    answer = await replicas.second.send(["a"], "other")
    assert answer.status == 200
    assert answer.took_s < 0.5
    assert (await held).status == 200
    assert (await held).took_s < 3  # the other replica's vector
    assert replicas.upstream.computed == {("Bearer other", "a"): 1}
    await replicas.assert_idle()


@virtually
async def test_what_is_held_in_part_is_computed_when_its_turn_comes() -> None:
    replicas = await Replicas.started(shares_all=True)
    held = replicas.first.start(["a", "b"])
    await asyncio.sleep(1)
    assert (await replicas.second.send(["b", "c"], "other")).status == 200
    assert (await held).status == 200
    assert (await held).took_s == pytest.approx(20, abs=0.5)
    await replicas.assert_idle()


@virtually
async def test_a_client_that_leaves_while_its_leases_are_lent_leaves_nothing() -> None:
    replicas = await Replicas.started(shares_all=True)
    held = replicas.first.start(["a"])
    await asyncio.sleep(1)
    held.cancel()
    await asyncio.sleep(1)
    assert (await replicas.second.send(["a"], "other")).status == 200
    await asyncio.sleep(30)
    assert len(replicas.upstream.calls) == 2
    await replicas.assert_idle()


@virtually
async def test_one_limit_of_both_replicas_lets_each_item_be_computed_once() -> None:
    replicas = await Replicas.started(shares_all=False)
    first = replicas.first.start(["a"])
    await asyncio.sleep(1)
    second = replicas.second.start(["a"])
    assert [(await one).status for one in (first, second)] == [200, 200]
    assert replicas.upstream.computed == {("Bearer k", "a"): 1}
    await replicas.assert_idle()


@pytest.mark.parametrize("shares_all", [False, True])
def test_patience_counts_while_another_replica_is_held(shares_all: bool) -> None:
    @virtually
    async def run() -> None:
        replicas = await Replicas.started(shares_all=shares_all)
        held = replicas.first.start(["a"])
        await asyncio.sleep(1)
        answer = await replicas.second.send(["a"], fields={"Prefer": "wait=5"})
        assert (answer.status, answer.headers["Retry-After"]) == (429, "20")
        assert answer.took_s <= 5.2
        assert (await held).status == 200
        await replicas.assert_idle()

    run()
