"""Requests that an upstream refuses while it leaves calls of other clients without a response, on a virtual clock."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from tests.support.limited_route import Answer, LimitedRoute, LimitedUpstream
from tests.support.limiters import REFUSAL, Limiter, Verdict
from tests.support.virtual_loop import virtually


class HangingUpstream(LimitedUpstream):
    """Never responds to a call with the text ``hang``, and refuses the first calls with ``refuse``."""

    def __init__(self, refusals: int, headers: dict[str, str]) -> None:
        super().__init__(Limiter(calls_per_s=1e6, items_per_s=1e6))
        self.refusals = refusals
        self.refuses = self._refuses
        self._headers = headers
        self._never = asyncio.Event()
        self.hanging: list[asyncio.Task[Answer]] = []

    def _refuses(self, texts: list[str], _authorization: str) -> Verdict | None:
        if not any(text.startswith("refuse") for text in texts) or self.refusals == 0:
            return None
        self.refusals -= 1
        return Verdict(is_accepted=False, status=429, headers=self._headers, body=REFUSAL)

    async def embed(self, url: str, headers: Any, body: bytes, *, items: int, flow: object) -> Any:
        if b"hang" in body:
            await self._never.wait()
        return await super().embed(url, headers, body, items=items, flow=flow)


async def hanging(calls: int, refusals: int = 1, **headers: str) -> LimitedRoute:
    """With so many calls that hang, of other clients with the same credential."""
    upstream = HangingUpstream(refusals, {name.replace("_", "-"): value for name, value in headers.items()})
    route = LimitedRoute(upstream.limiter, upstream=upstream)
    assert (await route.send(["an earlier one"])).status == 200
    for n in range(calls):
        upstream.hanging.append(route.start([f"hang {n}"]))
        await asyncio.sleep(0.1)
    return route


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_a_refused_request_is_sent_again_when_its_stated_wait_has_passed(calls: int) -> None:
    @virtually
    async def run() -> None:
        route = await hanging(calls, Retry_After="2")
        answer = await route.send(["refuse"])
        assert answer.status == 200
        assert 2 <= answer.took_s <= 2.5

    run()


@pytest.mark.parametrize("calls", [1, 4])
def test_a_refused_request_without_a_stated_wait_is_sent_again_soon(calls: int) -> None:
    @virtually
    async def run() -> None:
        route = await hanging(calls)
        answer = await route.send(["refuse"])
        assert answer.status == 200
        assert answer.took_s <= 1.5

    run()


@virtually
async def test_refusals_in_a_row_while_calls_hang_are_waited_for_longer_each_time() -> None:
    route = await hanging(2, refusals=7)
    answer = await route.send(["refuse"])
    assert answer.status == 200
    refused_s = [at_s for at_s, verdict in route.upstream.verdicts if not verdict.is_accepted]
    waits_s = [late - early for early, late in pairwise(refused_s)]
    assert waits_s == pytest.approx(sorted(waits_s))
    assert waits_s[-1] >= 2


@virtually
async def test_once_a_call_beside_those_that_hang_is_accepted_others_are_not_held() -> None:
    route = await hanging(3, Retry_After="1")
    assert (await route.send(["refuse"])).status == 200
    for n in range(20):
        answer = await route.send([f"another {n}"])
        assert answer.status == 200
        assert answer.took_s <= 0.3
