"""What is left of a budget may be reserved for a call that a rate limit holds."""

import asyncio

import pytest

from proxy.fetch.spending import Spending
from proxy.ledger.spending import SpendingBudget
from tests.support.limited_route import LimitedRoute, Scripted
from tests.support.limiters import REFUSAL, Verdict
from tests.support.virtual_loop import virtually

ACCEPTED = Verdict(is_accepted=True)
REFUSED = Verdict(is_accepted=False, status=429, headers={"Retry-After": "50"}, body=REFUSAL)


@virtually
async def test_a_client_waits_for_it_no_longer_than_it_says() -> None:
    route = LimitedRoute(Scripted(lambda n: REFUSED if n == 1 else ACCEPTED))
    route.fetcher.spending = Spending([SpendingBudget(name="b", tokens=3)], metrics=route.metrics)
    assert (await route.send(["a"])).status == 200
    held = route.start(["reserves all that is left"])
    await asyncio.sleep(1)
    answer = await route.send(["b"], fields={"Prefer": "wait=2"})
    assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
    assert answer.took_s == pytest.approx(2)
    assert (await held).status == 200
    await route.assert_idle()
