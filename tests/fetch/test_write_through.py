"""What calls returned is in the cache before its requests get it, once for all requests of a call."""

import asyncio
from typing import Any

import pytest

from proxy.access.validations import Validations
from proxy.cache.store import NoStore, Purge, Store
from proxy.errors import ProxyError
from proxy.fetch.outcomes import ErrorResponse, InvalidResponse, Outcome
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.write_through import WriteThrough
from proxy.protocol.vectors import DType, Vector
from proxy.turns import KEYS_A_TURN
from tests.support.client_requests import client_request_for
from tests.support.dict_store import Clock, DictStore, make_cache, written
from tests.support.fake_batcher import VECTOR, embedded
from tests.support.fake_client import response

A, B = b"a" * 32, b"b" * 32
OTHER = Vector(DType.FLOAT32, b"\0\0\0\x40")
PLAIN = Policy(0.0)
OK = response(200, {})


class Writing:
    def __init__(self, store: Store | None = None) -> None:
        self.now_s = 100.0
        self.cache = make_cache(store or NoStore())
        self.validations = Validations(ttl_s=60, clock=lambda: self.now_s)
        self.write_through = WriteThrough(self.cache, self.validations, clock=Clock())

    async def write(self, *calls: tuple[FetchRequest, dict[str, Any]]) -> list[dict[bytes, bytes]]:
        """The payloads by key that each of the requests in one call gets."""
        requests = [request for request, _ in calls]
        results = [embedded(request, **changes) for request, changes in calls]
        got = await self.write_through.write(requests, results, self.write_through.call_starts())
        return [{key: entry.payload for key, entry in result.entries.items()} for result in got]

    def stored(self) -> dict[bytes, bytes]:
        return {key: entry.payload for key, entry in self.cache.peek([A, B], min_stored_at_s=0.0).items()}

    def note(self, *outcomes: Outcome | ProxyError, asked_at_s: float = 100.0) -> None:
        asked = self.write_through.call_starts()._replace(at_s=asked_at_s)
        self.write_through.note([request(A) for _ in outcomes], outcomes, asked)

    def is_confirmed(self) -> bool:
        client_request = request(A).client_request
        return self.validations.is_confirmed(client_request.credential)

    def is_refused(self) -> bool:
        client_request = request(A).client_request
        return self.validations.is_refused(client_request.credential)


def request(*keys: bytes, policy: Policy = PLAIN) -> FetchRequest:
    return FetchRequest(client_request_for([key.decode("latin-1") for key in keys], list(keys)), list(keys), policy)


async def test_each_request_gets_its_own_keys() -> None:
    writing = Writing()
    got = await writing.write((request(A), {}), (request(B), {"vectors": [OTHER]}))
    assert got == [{A: VECTOR.payload}, {B: OTHER.payload}]
    assert writing.stored() == {A: VECTOR.payload, B: OTHER.payload}


async def test_of_two_with_the_same_key_the_first_counts_for_both() -> None:
    writing = Writing()
    got = await writing.write((request(A), {}), (request(A, B), {"vectors": [OTHER, OTHER]}))
    assert got == [{A: VECTOR.payload}, {A: VECTOR.payload, B: OTHER.payload}]
    assert writing.stored() == {A: VECTOR.payload, B: OTHER.payload}


@pytest.mark.parametrize(
    ("policy", "got", "stored"),
    [
        (PLAIN, VECTOR, VECTOR),  # the first in the cache stays
        (PLAIN.private(), OTHER, VECTOR),
        (PLAIN.refreshing(), OTHER, OTHER),
    ],
)
async def test_a_call_stores_what_its_policy_says(policy: Policy, got: Vector, stored: Vector) -> None:
    writing = Writing()
    await writing.write((request(A), {}))
    assert await writing.write((request(A, policy=policy), {"vectors": [OTHER]})) == [{A: got.payload}]
    assert writing.stored() == {A: stored.payload}


async def test_what_is_unusable_is_not_stored_and_the_rest_is() -> None:
    writing = Writing()
    unusable = InvalidResponse(OK, b"", "null", by_origin=True)
    got = await writing.write((request(A, B), {"vectors": [None, VECTOR], "unusable": unusable}))
    assert got == [{B: VECTOR.payload}]
    assert writing.stored() == {B: VECTOR.payload}


async def test_results_keep_no_view_of_the_response() -> None:
    writing = Writing()
    client_request = client_request_for(["a"], [A], encoding_format="float")
    numbers = FetchRequest(client_request, [A], PLAIN)
    results = [embedded(numbers, texts=[memoryview(b"[1.0]")])]
    (result,) = await writing.write_through.write([numbers], results, writing.write_through.call_starts())
    assert not result.texts
    assert result.entries[A].numbers() == b"[1.0]"


async def test_what_was_purged_since_the_call_was_sent_is_served_and_not_stored() -> None:
    store = DictStore()
    writing = Writing(store.of_another_process())
    await writing.cache.feed.poll()
    asked = writing.write_through.call_starts()
    await store.announce_purge(Purge(keys=frozenset([A])))
    await writing.cache.feed.poll()
    (result,) = await writing.write_through.write([request(A, B)], [embedded(request(A, B))], asked)
    await written(writing.cache)
    assert result.entries.keys() == {A, B}
    assert store.values.keys() == {B}
    await writing.cache.aclose()


@pytest.mark.parametrize(
    ("outcome", "is_confirmed", "is_refused"),
    [
        (embedded(request(A)), True, False),
        (embedded(request(A), by_origin=False), False, False),
        (InvalidResponse(OK, b"", "length", by_origin=True), True, False),
        (InvalidResponse(OK, b"", "length", by_origin=False), False, False),
        (InvalidResponse(OK, b"", "error-in-200", by_origin=True), False, False),
        (ErrorResponse(response(401, {}), b""), False, True),
        (ErrorResponse(response(500, {}), b""), False, False),
        (ProxyError("no connection"), False, False),
    ],
)
def test_what_a_response_says_of_the_credential(
    outcome: Outcome | ProxyError, is_confirmed: bool, is_refused: bool
) -> None:
    writing = Writing()
    writing.note(outcome)
    assert (writing.is_confirmed(), writing.is_refused()) == (is_confirmed, is_refused)


def test_a_credential_is_confirmed_from_when_the_call_was_sent() -> None:
    writing = Writing()
    writing.note(embedded(request(A)), embedded(request(A)), asked_at_s=50.0)
    writing.now_s = 109.0
    assert writing.is_confirmed()
    writing.now_s = 110.0
    assert not writing.is_confirmed()


def test_a_refusal_of_one_request_counts_whatever_the_others_got() -> None:
    writing = Writing()
    writing.note(embedded(request(A)), ErrorResponse(response(401, {}), b""), embedded(request(A)))
    assert (writing.is_confirmed(), writing.is_refused()) == (False, True)


async def test_many_small_requests_of_one_call_take_turns() -> None:
    writing, count = Writing(), 4 * KEYS_A_TURN
    requests = [request(bytes([n]) * 32, policy=PLAIN.private()) for n in range(count)]
    iterations = 0

    async def other_work() -> None:
        nonlocal iterations
        while True:
            await asyncio.sleep(0)
            iterations += 1

    others = asyncio.create_task(other_work())
    results = await writing.write_through.write(
        requests, list(map(embedded, requests)), writing.write_through.call_starts()
    )
    others.cancel()
    assert [list(result.entries) for result in results] == [one.keys for one in requests]
    assert iterations >= 3
