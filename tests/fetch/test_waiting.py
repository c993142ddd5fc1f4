"""Requests that wait to be sent."""

import asyncio
from typing import Any

from proxy.errors import Overloaded
from proxy.fetch.client_wait import ClientWait
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.singleflight import Flights
from proxy.fetch.waiting import Waiting, cost_of
from proxy.pacing.quotas import Cost
from tests.support.client_requests import client_request_for
from tests.support.fake_batcher import embedded


def waiting_for(*texts: str) -> Waiting:
    keys = [text.encode().ljust(32) for text in texts]
    client_request = client_request_for(list(texts), keys)
    wait = ClientWait(client_request, Flights[Any]().claim(keys))
    request = FetchRequest(client_request, keys, Policy(0.0))
    return Waiting(request, wait, asyncio.get_running_loop().create_future(), 0.0)


async def test_the_first_outcome_counts() -> None:
    waiting = waiting_for("a")
    first = embedded(waiting.request)
    waiting.resolve(first)
    waiting.resolve(Overloaded("late"))
    assert await waiting.outcome is first


async def test_the_outcome_of_a_request_that_nobody_waits_for_is_no_error() -> None:
    waiting = waiting_for("a")
    waiting.outcome.cancel()
    waiting.resolve(Overloaded("late"))
    assert waiting.outcome.cancelled()


async def test_a_call_costs_the_items_and_tokens_of_all_its_requests() -> None:
    one, two = waiting_for("a"), waiting_for("a longer text", "b")
    assert cost_of([one]) == Cost(1, one.request.tokens)
    assert cost_of([one, two]) == Cost(3, one.request.tokens + two.request.tokens, requests=2)
    assert cost_of([]) == Cost(0, 0, requests=0, is_bulk=True)


async def test_two_that_wait_for_the_same_are_not_equal() -> None:
    assert waiting_for("a") != waiting_for("a")
