"""What a client is told whose patience ends while a rate limit holds its request."""

import asyncio
from collections.abc import Sequence

import pytest

from proxy.errors import Abandoned, ProxyError, RateLimited
from proxy.fetch.client_wait import ClientWait
from proxy.fetch.held import GivenUp, HeldRequests
from proxy.fetch.lane import Lanes
from proxy.fetch.outcomes import Outcome
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.result import Failure, FlightResult
from proxy.fetch.singleflight import Flights
from proxy.fetch.waiting import Waiting
from proxy.pacing.pacer import Pacer
from proxy.telemetry.metrics import Metrics
from tests.support.client_requests import client_request_for
from tests.support.dict_store import A
from tests.support.fake_client import FakeClient, origin_of

REFUSAL = RateLimited("The upstream's rate limit takes no call now.", retry_after_s=1)


def never_starts(_: Sequence[Waiting]) -> None:
    raise AssertionError


@pytest.mark.parametrize("outcome", [Abandoned("The client has disconnected."), ProxyError("The call was abandoned.")])
async def test_a_client_whose_request_was_dropped_as_it_gave_up_gets_the_refusal(outcome: Outcome | ProxyError) -> None:
    """Its turn came when its patience ended. What else its flights ended with, at that moment, counts."""
    held = HeldRequests(
        Lanes(lambda *_: Pacer()),
        Metrics(),
        start=never_starts,
        room_for=lambda *_: None,
        is_too_large=lambda _: False,
    )
    client_request = client_request_for(["a"], [A], origin=origin_of(FakeClient()))
    flights: Flights[FlightResult] = Flights()
    request, wait = FetchRequest(client_request, [A], Policy(0.0)), ClientWait(client_request, flights.claim([A]))
    waiting = Waiting(request, wait, asyncio.get_running_loop().create_future(), 0.0, refusal=REFUSAL)
    told = asyncio.create_task(held.wait(wait))
    await asyncio.sleep(0)
    wait.hold(waiting, 0.0)  # it has no time left, and gives up
    waiting.resolve(outcome)
    wait.claim.settle({A: Failure(REFUSAL)})
    assert await told == (GivenUp(REFUSAL, request) if isinstance(outcome, Abandoned) else None)
