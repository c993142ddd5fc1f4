"""Who waits for what is held: also if two requests for one key are held at a time."""

import asyncio
from typing import Any

from proxy.fetch.client_wait import ClientWait
from proxy.fetch.held_keys import HeldKeys
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.singleflight import Flights
from proxy.fetch.waiting import Waiting
from tests.support.client_requests import client_request_for
from tests.support.fake_client import FakeClient, origin_of
from tests.support.virtual_loop import virtually

A, B = b"a" * 32, b"b" * 32


def client(flights: Flights[Any], *keys: bytes, until_s: float = 60.0) -> tuple[FetchRequest, ClientWait]:
    client_request = client_request_for([key.hex() for key in keys], list(keys), origin=origin_of(FakeClient()))
    client_request.limit_wait.deadline_s = until_s
    client_request._lane_name = ("upstream", b"credential", b"model")
    request = FetchRequest(client_request, list(keys), Policy(0.0))
    return request, ClientWait(client_request, flights.claim(keys))


def waiting_of(request: FetchRequest, wait: ClientWait) -> Waiting:
    return Waiting(request, wait, asyncio.get_running_loop().create_future(), 0.0)


@virtually
async def test_of_two_requests_for_one_key_each_has_its_own_followers() -> None:
    held, flights = HeldKeys(), Flights[Any]()
    shared = waiting_of(*client(flights, A))
    alone = waiting_of(*client(Flights(), A))  # of a last attempt, which nobody joins
    _, follower = client(flights, A)
    held.follow(follower)
    held.hold(shared, 0.0)
    held.hold(alone, 0.0)
    await asyncio.sleep(2)
    held.release(alone)
    assert follower.client_request.limit_wait.is_held
    await asyncio.sleep(3)
    held.release(shared)
    assert not follower.client_request.limit_wait.is_held
    assert follower.client_request.limit_wait.held_s == 5
    assert alone.wait.client_request.limit_wait.held_s == 2
    held.unfollow(follower)
    assert repr(held) == "<HeldKeys 0 held, 0 followed>"


@virtually
async def test_it_is_wanted_as_long_as_each_of_its_items_is() -> None:
    held, flights = HeldKeys(), Flights[Any]()
    request, wait = client(flights, A, B)
    waiting = waiting_of(request, wait)
    _, of_both = client(flights, A, B)
    _, of_one = client(flights, A)
    held.follow(of_both)
    held.follow(of_one)
    wait.end()
    assert held.is_wanted(waiting)
    of_both.end()
    assert not held.is_wanted(waiting)


@virtually
async def test_a_client_gives_up_when_its_patience_ends_while_something_is_held() -> None:
    held, flights = HeldKeys(), Flights[Any]()
    waiting = waiting_of(*client(flights, A))
    _, follower = client(flights, A, until_s=10.0)
    held.follow(follower)
    ended = asyncio.create_task(follower.claim.wait())
    held.hold(waiting, 0.0)
    await asyncio.sleep(6)
    held.release(waiting)  # it is sent
    await asyncio.sleep(6)
    assert not ended.done()
    held.hold(waiting, 0.0)  # it was refused again
    assert await ended is False
    assert (follower.given_up, follower.client_request.limit_wait.held_s) == (waiting, 6)


@virtually
async def test_a_client_does_not_wait_for_what_is_stated_to_take_longer() -> None:
    held = HeldKeys()
    waiting = waiting_of(*client(Flights(), A, until_s=10.0))
    held.hold(waiting, 10.0)
    assert waiting.wait.is_over
    assert not held.is_wanted(waiting)
    assert await waiting.wait.claim.wait() is False
