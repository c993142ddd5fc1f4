"""The fetcher looks into memory itself, with no await before it claims what is missing."""

import asyncio
from itertools import chain
from typing import Any

import pytest

from proxy.access.validations import Validations
from proxy.cache.cache import Cache
from proxy.cache.memory import Memory
from proxy.cache.store import NoStore
from proxy.errors import BudgetSpent, ProxyError
from proxy.fetch.client_wait import ClientWait
from proxy.fetch.fetcher import CLAIMED_A_TURN, Fetcher
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.result import Failure, FetchResult
from proxy.fetch.spending import Spending
from proxy.fetch.write_through import WriteThrough
from proxy.protocol.records import Record
from proxy.telemetry.metrics import Metrics
from tests.support.client_requests import client_request_for
from tests.support.fake_batcher import VECTOR, FakeBatcher

A, B = b"a" * 32, b"b" * 32


@pytest.fixture
def batcher() -> FakeBatcher:
    return FakeBatcher()


@pytest.fixture
async def fetcher(batcher: FakeBatcher) -> Fetcher:
    """A fetcher whose memory has `A`."""
    cache = Cache(Memory(10**6), NoStore(), Metrics(), ttl_s=None, timeout_s=1)
    record = Record(vector=VECTOR, model="m", tokens=1, tokens_exact=True, stored_at_s=1)
    await cache.write({A: record}, overwrite=False)
    validations = Validations(ttl_s=60, clock=lambda: 0.0)
    as_batcher: Any = batcher
    batcher.write_through = WriteThrough(cache, validations, clock=lambda: 1.0)
    return Fetcher(cache, as_batcher, validations, timeout_s=1, spending=Spending(), shares_all=False)


def request(policy: Policy, *, is_keyed_whole: bool = False) -> FetchRequest:
    client_request = client_request_for(["text a", "text b"], [A, B], is_keyed_whole=is_keyed_whole)
    return FetchRequest(client_request, [A, B], policy)


async def test_what_is_in_memory_is_not_fetched(fetcher: Fetcher, batcher: FakeBatcher) -> None:
    fetched = await fetcher.fetch(request(Policy(0.0)))
    assert batcher.calls == [["text b"]]
    assert (set(fetched.entries), set(fetched.asked)) == ({A, B}, {B})
    again = await fetcher.fetch(request(Policy(0.0)))
    assert (again.entries, again.is_billed) == (fetched.entries, False)
    assert len(batcher.calls) == 1


@pytest.mark.parametrize("policy", [Policy(0.0).refreshing(), Policy(0.0).private(), Policy(2.0)])
async def test_unless_the_request_needs_newer_entries_or_its_own(
    fetcher: Fetcher, batcher: FakeBatcher, policy: Policy
) -> None:
    fetched = await fetcher.fetch(request(policy))
    assert batcher.calls == [["text a", "text b"]]
    assert set(fetched.asked) == {A, B}


async def test_what_is_keyed_as_a_whole_is_fetched_as_a_whole(fetcher: Fetcher, batcher: FakeBatcher) -> None:
    await fetcher.fetch(request(Policy(0.0), is_keyed_whole=True))
    assert batcher.calls == [["text a", "text b"]]


async def test_fetch_that_is_cancelled_before_its_first_step_fails_its_waiters(fetcher: Fetcher) -> None:
    fetching = asyncio.create_task(fetcher.fetch(request(Policy(min_stored_at_s=0))))
    await asyncio.sleep(0)  # it has started the fetch, whose turn comes after this task's
    fetcher._fetches.cancel()
    fetched = await fetching
    assert fetched.failure is not None
    assert isinstance(fetched.failure.cause, ProxyError)
    assert repr(fetcher).startswith("<Fetcher <Flights 0 under way>")


async def test_what_a_last_attempt_fetches_does_not_stay_in_flight(fetcher: Fetcher, batcher: FakeBatcher) -> None:
    """It ends the flight that it left, because another credential's rate limit holds it."""
    spent = Failure(BudgetSpent("Nothing is left.", retry_after_s=1))
    fetcher._cache.memory.discard(A)
    other = fetcher._flights.claim([A, B])
    attempts = 0

    async def wait(wait: ClientWait) -> None:
        nonlocal other, attempts
        attempts += 1
        if attempts == 1:
            other.settle_rest(spent)
            other = fetcher._flights.claim([A, B])
        elif attempts == 2:
            other.settle({B: spent})
            wait.leave(A)
        await wait.claim.wait()

    as_any: Any = batcher
    as_any.wait = wait
    first = await fetcher.fetch(request(Policy(0.0)))
    assert (first.failure, attempts) == (None, 3)
    other.settle({A: spent})  # its leader is done, too
    assert repr(fetcher).startswith("<Fetcher <Flights 0 under way>")
    fetcher._cache.memory.discard(A)  # as a purge does
    again = await fetcher.fetch(request(Policy(0.0)))
    assert again.asked == {A}


def large_request() -> FetchRequest:
    """For more keys than are claimed in one turn."""
    count = 2 * CLAIMED_A_TURN + 1
    keys = [number.to_bytes(32) for number in range(count)]
    return FetchRequest(client_request_for(list(map(str, range(count))), keys), keys, Policy(0.0))


async def claiming(fetcher: Fetcher, request: FetchRequest) -> "asyncio.Task[FetchResult]":
    """A fetch that has claimed some of its keys, and waits for its turn to claim the others."""
    fetching = asyncio.create_task(fetcher.fetch(request))
    while not len(fetcher._flights):
        await asyncio.sleep(0)
    assert len(fetcher._flights) < len(request.keys)
    return fetching


async def test_what_comes_into_memory_before_its_key_is_claimed_is_not_fetched(
    fetcher: Fetcher, batcher: FakeBatcher
) -> None:
    request = large_request()
    fetching = await claiming(fetcher, request)
    record = Record(vector=VECTOR, model="m", tokens=1, tokens_exact=True, stored_at_s=1)
    await fetcher._cache.write({request.keys[-1]: record}, overwrite=False)
    fetched = await fetching
    assert list(chain.from_iterable(batcher.calls)) == request.items[:-1]
    assert fetched.entries.keys() == set(request.keys)


async def test_a_client_that_leaves_while_its_keys_are_claimed_fails_no_other(
    fetcher: Fetcher, batcher: FakeBatcher
) -> None:
    request = large_request()
    leaving = await claiming(fetcher, request)
    staying = asyncio.create_task(fetcher.fetch(request.part(slice(1))))
    await asyncio.sleep(0)
    leaving.cancel()
    fetched = await staying
    assert (fetched.failure, list(fetched.entries)) == (None, request.keys[:1])
    assert batcher.calls == [request.items[:1]]
    assert repr(fetcher).startswith("<Fetcher <Flights 0 under way>")
