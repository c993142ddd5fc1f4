"""A client's wait: its patience counts while a rate limit holds something that it waits for, and only then."""

import asyncio
from typing import Any

from proxy.fetch.client_wait import ClientWait
from proxy.fetch.singleflight import Flights
from tests.support.client_requests import client_request_for
from tests.support.fake_client import FakeClient, origin_of
from tests.support.virtual_loop import virtually

A, B = b"a" * 32, b"b" * 32
ONE, TWO = "one", "two"  # what is held


def wait_for(*keys: bytes, until_s: float = 10.0, flights: Flights[Any] | None = None) -> ClientWait:
    client_request = client_request_for([key.hex() for key in keys], list(keys), origin=origin_of(FakeClient()))
    client_request.limit_wait.deadline_s = until_s
    return ClientWait(client_request, (Flights[Any]() if flights is None else flights).claim(keys))


@virtually
async def test_it_gives_up_when_its_time_comes_and_says_what_was_held_first() -> None:
    wait = wait_for(A)
    wait.hold(ONE, 0.0)
    wait.hold(TWO, 0.0)
    assert await wait.claim.wait() is False
    assert asyncio.get_running_loop().time() == 10.0
    assert (wait.given_up, wait.is_over, wait.client_request.limit_wait.held_s) == (ONE, True, 10.0)


@virtually
async def test_what_was_released_is_not_what_it_gave_up() -> None:
    wait = wait_for(A)
    wait.hold(ONE, 0.0)
    wait.hold(TWO, 0.0)
    wait.release(ONE)
    assert await wait.claim.wait() is False
    assert wait.given_up == TWO


@virtually
async def test_time_counts_from_the_first_that_is_held_to_the_last_that_is_released() -> None:
    wait = wait_for(A)
    await asyncio.sleep(1)
    wait.hold(ONE, 0.0)
    await asyncio.sleep(1)
    wait.hold(TWO, 0.0)
    await asyncio.sleep(1)
    wait.release(ONE)
    assert wait.client_request.limit_wait.is_held
    await asyncio.sleep(1)
    wait.release(TWO)
    await asyncio.sleep(20)
    assert not wait.client_request.limit_wait.is_held
    assert (wait.client_request.limit_wait.held_s, wait.is_over) == (3.0, False)


@virtually
async def test_it_is_held_again_with_what_is_left_of_its_time() -> None:
    wait = wait_for(A)
    wait.hold(ONE, 0.0)
    await asyncio.sleep(4)
    wait.release(ONE)
    wait.release(ONE)  # is not held
    await asyncio.sleep(4)
    wait.hold(ONE, 0.0)
    assert await wait.claim.wait() is False
    assert asyncio.get_running_loop().time() == 10.0
    assert wait.client_request.limit_wait.held_s == 6.0


@virtually
async def test_it_does_not_wait_for_a_limit_that_takes_nothing_in_its_time() -> None:
    for stated_at_s, is_over in ((9.9, False), (10.0, True), (11.0, True)):
        wait = wait_for(A)
        wait.hold(ONE, stated_at_s)
        assert wait.is_over is is_over
        assert wait.client_request.limit_wait.held_s == 0.0
        wait.end()


@virtually
async def test_without_patience_it_gives_up_at_once() -> None:
    wait = wait_for(A, until_s=0.0)
    wait.hold(ONE, 0.0)
    assert (wait.given_up, await wait.claim.wait()) == (ONE, False)


@virtually
async def test_a_client_that_has_left_is_held_by_nothing() -> None:
    wait = wait_for(A)
    wait.end()
    wait.hold(ONE, 0.0)
    assert not wait.held
    assert not wait.client_request.limit_wait.is_held
    await asyncio.sleep(20)
    assert wait.given_up is None


@virtually
async def test_a_client_that_leaves_while_it_is_held_has_waited_so_long_and_gives_nothing_up() -> None:
    wait = wait_for(A)
    wait.hold(ONE, 0.0)
    await asyncio.sleep(2)
    wait.end()
    wait.end()
    assert list(wait.held) == [ONE]
    wait.release(ONE)
    await asyncio.sleep(20)
    assert (wait.given_up, wait.client_request.limit_wait.held_s) == (None, 2.0)


@virtually
async def test_its_watcher_is_told_that_a_limit_holds_it() -> None:
    wait = wait_for(A)
    wait.watcher = asyncio.Event()
    wait.hold(ONE, 0.0)
    assert wait.watcher.is_set()
    wait.end()


@virtually
async def test_it_may_leave_one_flight_and_wait_for_the_others() -> None:
    flights = Flights[Any]()
    owner = flights.claim([A, B])
    wait = wait_for(A, B, flights=flights)
    flight = wait.claim.flights[A]
    assert wait.wants(A)
    wait.leave(A)
    assert (wait.wants(A), wait.wants(B)) == (False, True)
    assert wait.left == {A: flight}
    wait.end()
    assert not wait.wants(B)
    assert owner.flights[A] is flight
