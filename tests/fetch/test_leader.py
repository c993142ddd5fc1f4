"""The fetch of claimed keys: every key is settled once, with what the upstream or another replica has for it."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from proxy.access.validations import Validations
from proxy.cache.cache import Cache
from proxy.cache.entry import Entry
from proxy.cache.store import NoStore, Store
from proxy.errors import Overloaded, Oversized, ProxyError
from proxy.fetch.client_wait import ClientWait
from proxy.fetch.leader import Leader
from proxy.fetch.outcomes import ErrorResponse, InvalidResponse, Outcome
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.result import Failure, FlightResult
from proxy.fetch.singleflight import Claim, Flights
from proxy.fetch.spending import Spending
from proxy.fetch.write_through import WriteThrough
from proxy.protocol.vectors import DType, Vector
from tests.support.client_requests import client_request_for
from tests.support.dict_store import Clock, make_cache
from tests.support.fake_batcher import VECTOR, FakeBatcher, embedded
from tests.support.fake_client import response
from tests.support.leasing_store import LeasingStore
from tests.support.virtual_loop import virtually

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
ALL = [A, B, C]
TEXTS = ["text a", "text b", "text c"]
TIMEOUT_S = 60.0
PLAIN = Policy(0.0)
WORTHLESS = response(200, {"data": []})


class Leading:
    """A leader that has claimed `ALL`, before a batcher and a store."""

    def __init__(self, store: Store | None = None, *, ttl_s: float | None = None) -> None:
        self.batcher = FakeBatcher()
        self.now_s = 100.0
        self.validations = Validations(ttl_s=60, clock=lambda: self.now_s)
        self.cache = make_cache(store or NoStore(), ttl_s=ttl_s)
        self.flights: Flights[FlightResult] = Flights()
        self.claim: Claim[FlightResult] = self.flights.claim(ALL)
        self.leader = self.another(self.cache)

    def another(self, cache: Cache) -> Leader:
        self.batcher.write_through = WriteThrough(cache, self.validations, clock=Clock())
        as_batcher: Any = self.batcher
        wait = ClientWait(client_request_for(TEXTS, ALL), self.claim)
        return Leader(cache, as_batcher, wait, timeout_s=TIMEOUT_S, spending=Spending(), lends=False)

    def request(self, policy: Policy = PLAIN, **more: Any) -> FetchRequest:
        return FetchRequest(client_request_for(TEXTS, ALL, **more), ALL, policy)

    async def fetch(self, policy: Policy = PLAIN, **more: Any) -> FetchRequest:
        request = self.request(policy, **more)
        await self.leader.fetch(request)
        return request

    def entry(self, key: bytes) -> Entry:
        result = self.claim.flights[key].result()
        assert isinstance(result, Entry)
        return result

    def failure(self, key: bytes) -> Failure:
        result = self.claim.flights[key].result()
        assert isinstance(result, Failure)
        return result

    @property
    def settled(self) -> list[bytes]:
        return [key for key, flight in self.claim.flights.items() if flight.done()]


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- from the upstream


async def test_claimed_keys_are_fetched_stored_and_settled() -> None:
    leading = Leading()
    await leading.fetch()
    assert leading.batcher.calls == [TEXTS]
    assert [leading.entry(key).tokens for key in ALL] == [1, 1, 1]
    assert leading.cache.peek(ALL, min_stored_at_s=0.0).keys() == set(ALL)
    assert {leading.entry(key).stored_at_s for key in ALL} == {int(Clock.now)}
    assert leading.leader.asked == set(ALL)
    assert [len(delivery.vectors) for delivery in leading.leader.deliveries] == [3]
    assert not len(leading.flights)


async def test_waiters_find_the_entries_in_memory_and_the_bill_complete() -> None:
    leading = Leading()
    seen = []

    def look(_: object) -> None:
        seen.append((len(leading.cache.peek(ALL, min_stored_at_s=0.0)), len(leading.leader.asked)))

    for flight in leading.claim.flights.values():
        flight.add_done_callback(look)
    await leading.fetch()
    await turns()
    assert seen == [(3, 3)] * 3


async def test_what_is_stored_first_is_what_waiters_get() -> None:
    leading = Leading()
    first = Vector(DType.FLOAT32, b"\0\0\0\x40")
    leading.batcher.outcome = lambda request: embedded(request, vectors=[first] * len(request.keys))
    await leading.fetch()
    entry = leading.entry(A)
    leading.claim = leading.flights.claim(ALL)
    leading.leader = leading.another(leading.cache)
    leading.batcher.outcome = embedded
    await leading.fetch()
    assert leading.entry(A) is entry


@pytest.mark.parametrize(("policy", "is_stored"), [(PLAIN, True), (PLAIN.refreshing(), True), (PLAIN.private(), False)])
async def test_a_private_fetch_stores_nothing(policy: Policy, is_stored: bool) -> None:
    leading = Leading()
    await leading.fetch(policy)
    assert len(leading.cache.peek(ALL, min_stored_at_s=0.0)) == (3 if is_stored else 0)
    assert leading.settled == ALL


async def test_a_refresh_replaces_what_is_stored() -> None:
    leading = Leading()
    await leading.fetch()
    leading.claim = leading.flights.claim(ALL)
    leading.leader = leading.another(leading.cache)
    other = Vector(DType.FLOAT32, b"\0\0\0\x40")
    leading.batcher.outcome = lambda request: embedded(request, vectors=[other] * len(request.keys))
    await leading.fetch(PLAIN.refreshing())
    entry = leading.entry(A)
    assert entry.record().vector == other
    assert leading.cache.peek([A], min_stored_at_s=0.0)[A] is entry


@pytest.mark.parametrize(("max_items", "is_unmerged", "exact"), [(3, True, False), (1, True, True), (1, False, False)])
async def test_tokens_are_exact_only_for_one_item_in_a_call_of_its_own(
    max_items: int, is_unmerged: bool, exact: bool
) -> None:
    leading = Leading()
    leading.batcher.max_items = max_items
    leading.batcher.outcome = lambda request: embedded(request, is_unmerged=is_unmerged)
    await leading.fetch()
    assert [leading.entry(key).record().tokens_exact for key in ALL] == [exact] * 3


async def test_records_name_the_scope_of_the_request() -> None:
    leading = Leading()
    request = await leading.fetch(credentials=b"of a client")
    assert {leading.entry(key).record().scope for key in ALL} == {request.client_request.scope_fingerprint}
    assert request.client_request.scope_fingerprint != client_request_for(TEXTS, ALL).scope_fingerprint


@pytest.mark.parametrize(("encoding", "is_kept"), [("float", True), ("base64", False)])
async def test_the_upstreams_own_text_is_kept_for_requests_for_numbers(encoding: str, is_kept: bool) -> None:
    leading = Leading()
    leading.batcher.outcome = lambda request: embedded(request, texts=[memoryview(b"[1.0]")] * len(request.keys))
    await leading.fetch(encoding_format=encoding)
    assert [leading.entry(key).has_numbers for key in ALL] == [is_kept] * 3


# --- several calls


async def test_each_part_is_settled_when_its_own_call_ends() -> None:
    leading = Leading()
    leading.batcher.max_items = 1
    refused = ErrorResponse(response(400, {}), b"")

    def outcome(request: FetchRequest) -> Outcome | ProxyError:
        return refused if request.keys == [B] else embedded(request)

    leading.batcher.outcome = outcome
    request = await leading.fetch()
    assert leading.batcher.calls == [["text a"], ["text b"], ["text c"]]
    assert leading.failure(B).cause is refused
    assert leading.failure(B).reader is request.client_request
    assert leading.leader.asked == {A, C}
    assert len(leading.leader.deliveries) == 2


async def test_a_call_that_could_not_be_made_fails_its_own_keys() -> None:
    leading = Leading()
    leading.batcher.max_items = 2
    error = Overloaded("too much waits")
    leading.batcher.outcome = lambda request: error if A in request.keys else embedded(request)
    await leading.fetch()
    assert [leading.failure(key).cause for key in (A, B)] == [error, error]
    assert leading.entry(C)


async def test_what_turns_out_to_be_too_large_is_split_again() -> None:
    leading = Leading()

    def outcome(request: FetchRequest) -> Outcome | ProxyError:
        leading.batcher.max_items = 2
        return Oversized("never at once") if len(request.keys) > 2 else embedded(request)

    leading.batcher.outcome = outcome
    await leading.fetch()
    assert leading.batcher.calls == [TEXTS, TEXTS[:2], TEXTS[2:]]
    assert leading.settled == ALL


# --- vectors that can't be stored


def spoilt(request: FetchRequest) -> Outcome:
    """The vector of `B` can't be stored, except in a call of its own."""
    if request.keys == [B]:
        return embedded(request)
    unusable = InvalidResponse(WORTHLESS, request.body, "null", by_origin=True)
    vectors = [None if key == B else VECTOR for key in request.keys]
    return embedded(request, vectors=vectors, unusable=unusable)


async def test_after_the_clients_own_body_an_unusable_vector_is_a_failure_and_the_others_are_stored() -> None:
    leading = Leading()
    leading.batcher.outcome = spoilt
    request = await leading.fetch()
    assert leading.batcher.calls == [TEXTS]
    assert isinstance(leading.failure(B).cause, InvalidResponse)
    assert leading.failure(B).reader is request.client_request
    assert [leading.entry(key).tokens for key in (A, C)] == [1, 1]
    assert leading.leader.asked == {A, C}


async def test_after_a_part_of_it_the_item_is_asked_for_alone() -> None:
    leading = Leading()
    leading.batcher.max_items = 2
    leading.batcher.outcome = spoilt
    await leading.fetch()
    assert sorted(leading.batcher.calls) == [TEXTS[:2], ["text b"], ["text c"]]
    assert [request.policy.may_merge for request in leading.batcher.requests if request.keys == [B]] == [False]
    assert leading.entry(B)
    assert leading.leader.asked == set(ALL)


# --- what a response says of the credential


def outcomes_of(status: int) -> Callable[[FetchRequest], Outcome]:
    return lambda request: ErrorResponse(response(status, {}), request.client_request.parsed.body)


NO_VERDICT: list[tuple[str, Callable[[FetchRequest], Outcome | ProxyError]]] = [
    ("fallback", lambda request: embedded(request, by_origin=False)),
    ("invalid of a fallback", lambda request: InvalidResponse(WORTHLESS, request.body, "count", by_origin=False)),
    ("400", outcomes_of(400)),
    ("429", outcomes_of(429)),
    ("500", outcomes_of(500)),
    ("403 to another body", lambda _: ErrorResponse(response(403, {}), b"{}")),
    ("error", lambda _: Overloaded("too much waits")),
]
ACCEPTED: list[tuple[str, Callable[[FetchRequest], Outcome | ProxyError]]] = [
    ("good", embedded),
    ("invalid", lambda request: InvalidResponse(WORTHLESS, request.body, "count", by_origin=True)),
]
REFUSED = [("401", outcomes_of(401)), ("403", outcomes_of(403)), ("404", outcomes_of(404))]


@pytest.mark.parametrize(
    ("outcome", "is_confirmed", "is_refused"),
    [
        *(pytest.param(outcome, False, False, id=name) for name, outcome in NO_VERDICT),
        *(pytest.param(outcome, True, False, id=name) for name, outcome in ACCEPTED),
        *(pytest.param(outcome, False, True, id=name) for name, outcome in REFUSED),
    ],
)
async def test_the_upstreams_verdict_on_the_credential_is_noted(
    outcome: Callable[[FetchRequest], Outcome | ProxyError], is_confirmed: bool, is_refused: bool
) -> None:
    leading = Leading()
    leading.batcher.outcome = outcome
    request = (await leading.fetch()).client_request
    assert leading.validations.is_confirmed(request.credential) == is_confirmed
    assert leading.validations.is_refused(request.credential) == is_refused


async def test_a_credential_counts_as_valid_from_when_the_upstream_was_asked() -> None:
    leading = Leading()
    leading.batcher.gate.clear()
    fetching = asyncio.create_task(leading.fetch())
    await turns()
    leading.now_s += 59
    leading.batcher.gate.set()
    request = (await fetching).client_request
    assert leading.validations.is_confirmed(request.credential)
    leading.now_s += 1
    assert not leading.validations.is_confirmed(request.credential)


# --- among replicas


async def stored_by_another(store: LeasingStore, *keys: bytes, at: float = Clock.now) -> None:
    """Another replica has fetched these keys."""
    other = Leading(store.of_another_process())
    request = FetchRequest(client_request_for(TEXTS, ALL), list(keys), PLAIN.refreshing())
    await other.another(other.cache).fetch(request)
    await other.cache.aclose()


@virtually
async def test_what_others_store_before_the_lease_is_granted_is_not_fetched() -> None:
    store = LeasingStore()
    await stored_by_another(store, A, B)
    leading = Leading(store)
    await leading.fetch()
    assert leading.batcher.calls == [["text c"]]
    assert leading.settled == ALL
    assert leading.leader.asked == {C}


async def waiting_for_others() -> tuple[LeasingStore, Leading, "asyncio.Task[FetchRequest]"]:
    """A fetch that has all but `A`, which another process has leased."""
    store = LeasingStore()
    store.of_others = {A}
    leading = Leading(store)
    fetching = asyncio.create_task(leading.fetch())
    while leading.settled != [B, C]:
        await asyncio.sleep(0.001)
    return store, leading, fetching


@virtually
async def test_what_others_have_leased_is_waited_for_and_not_fetched() -> None:
    store, leading, fetching = await waiting_for_others()
    await asyncio.sleep(1)
    assert not leading.claim.flights[A].done()
    await stored_by_another(store, A)
    await fetching
    assert leading.batcher.calls == [TEXTS[1:]]
    assert leading.entry(A)
    assert leading.leader.asked == {B, C}


@virtually
async def test_what_others_give_up_is_fetched() -> None:
    store = LeasingStore()
    store.of_others = {A, B}
    leading = Leading(store)
    fetching = asyncio.create_task(leading.fetch())
    while leading.settled != [C]:
        await asyncio.sleep(0.001)
    store.of_others = {B}
    while leading.settled != [A, C]:
        await asyncio.sleep(0.001)
    assert leading.batcher.calls == [["text c"], ["text a"]]
    store.of_others = set()
    await fetching
    assert leading.batcher.calls[2:] == [["text b"]]


@virtually
async def test_what_others_store_as_they_give_up_is_not_fetched() -> None:
    """Between the read and the lease: the store is read once more under it."""
    store = LeasingStore()
    store.of_others = {A}
    leading = Leading(store)
    lease_many = store.lease_many

    async def lease_late(keys: list[bytes], *, ttl_s: float) -> set[bytes]:
        if keys == [A]:
            await stored_by_another(store, A)
            store.of_others = set()
        return await lease_many(keys, ttl_s=ttl_s)

    store.lease_many = lease_late  # type: ignore[method-assign, assignment]
    await leading.fetch()
    assert leading.batcher.calls == [TEXTS[1:]]
    assert leading.entry(A)


@virtually
async def test_others_that_take_too_long_are_not_waited_for() -> None:
    store = LeasingStore()
    store.of_others = {A}
    leading = Leading(store)
    await leading.fetch()
    assert leading.batcher.calls == [TEXTS[1:], ["text a"]]
    now_s = asyncio.get_running_loop().time()
    assert TIMEOUT_S < now_s <= TIMEOUT_S + 0.2


@virtually
async def test_polls_of_the_store_become_rarer() -> None:
    store = LeasingStore()
    store.of_others = {A}
    leading = Leading(store)
    loop, asked_at_s = asyncio.get_running_loop(), []
    get_many = store.get_many

    async def timed(keys: list[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        asked_at_s.append(loop.time())
        return await get_many(keys, timeout_s=timeout_s)

    store.get_many = timed  # type: ignore[method-assign, assignment]
    fetching = asyncio.create_task(leading.fetch())
    await asyncio.sleep(1)
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    pauses_ms = [round((later - at) * 1000) for at, later in pairwise(asked_at_s)]
    assert pauses_ms[:7] == [5, 10, 20, 40, 80, 100, 100]


@virtually
async def test_what_is_keyed_as_a_whole_is_leased_and_fetched_as_a_whole() -> None:
    store = LeasingStore()
    store.of_others = {B, C}
    leading = Leading(store)
    await leading.fetch(is_keyed_whole=True)
    assert leading.batcher.calls == [TEXTS]
    assert leading.settled == ALL
    assert asyncio.get_running_loop().time() == 0.0


@virtually
async def test_a_store_without_leases_is_not_read_again() -> None:
    store = LeasingStore()
    store.has_leases = False
    leading = Leading(store)
    await leading.fetch()
    assert store.timeouts_s == []
    assert leading.batcher.calls == [TEXTS]


@virtually
async def test_a_request_that_may_not_join_others_waits_for_none() -> None:
    store = LeasingStore()
    store.of_others = set(ALL)
    leading = Leading(store)
    await leading.fetch(PLAIN.refreshing())
    assert leading.batcher.calls == [TEXTS]
    assert asyncio.get_running_loop().time() == 0.0


@virtually
async def test_stored_entries_that_are_too_old_are_fetched() -> None:
    store = LeasingStore()
    await stored_by_another(store, A)
    leading = Leading(store)
    await leading.fetch(Policy(min_stored_at_s=Clock.now + 1))
    assert leading.batcher.calls == [TEXTS]


# --- fetches that are cancelled


@virtually
async def test_a_cancelled_fetch_gives_its_leases_back_and_settles_nothing() -> None:
    """Whoever started it settles what is left."""
    store = LeasingStore()
    leading = Leading(store)
    leading.batcher.gate.clear()
    fetching = asyncio.create_task(leading.fetch())
    await turns()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert store.extended[-1] == (set(ALL), 0)
    assert leading.settled == []


@virtually
async def test_a_fetch_that_is_cancelled_while_it_waits_for_others_keeps_what_it_has() -> None:
    store, leading, fetching = await waiting_for_others()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert leading.settled == [B, C]
    assert store.extended[-1] == ({B, C}, 0)


@virtually
async def test_a_part_that_fails_unexpectedly_ends_the_others() -> None:
    leading = Leading()
    leading.batcher.max_items = 1

    def outcome(request: FetchRequest) -> Outcome:
        if request.keys == [A]:
            raise ZeroDivisionError
        leading.batcher.gate.clear()
        return embedded(request)

    leading.batcher.outcome = outcome
    with pytest.raises(ExceptionGroup):
        await leading.fetch()
    assert A not in leading.settled
