"""What is fetched is what is missing, each key once, and it is enough."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.cache import PEEKED_A_TURN, Cache
from proxy.cache.memory import Memory
from proxy.cache.store import NoStore
from proxy.embeddings.lookup import Lookup, look_up
from proxy.fetch.request import FetchRequest, Policy
from proxy.protocol.records import Record
from proxy.telemetry.metrics import Metrics
from tests.support.client_requests import client_request_for
from tests.support.fake_batcher import VECTOR

KEYS = st.lists(st.sampled_from([bytes([letter]) for letter in b"abcdefgh"]), min_size=1)
FOUND = st.sets(st.sampled_from([bytes([letter]) for letter in b"abcdefgh"]))
ENTRY: Any = None


@given(KEYS, FOUND)
def test_missing_and_found_are_a_partition_of_the_distinct_keys(keys: list[bytes], found: set[bytes]) -> None:
    missing = Lookup.of(keys, dict.fromkeys(found, ENTRY)).missing
    assert len(missing) == len(set(missing))
    assert set(missing) == set(keys) - found


@given(KEYS, FOUND)
def test_missing_keys_are_in_input_order(keys: list[bytes], found: set[bytes]) -> None:
    missing = Lookup.of(keys, dict.fromkeys(found, ENTRY)).missing
    assert missing == sorted(missing, key=keys.index)


@given(KEYS, FOUND)
def test_a_request_is_whole_only_if_it_has_all_items_of_the_client(keys: list[bytes], found: set[bytes]) -> None:
    missing = Lookup.of(keys, dict.fromkeys(found, ENTRY)).missing
    request = FetchRequest(client_request_for([key.decode() for key in keys], keys), missing, Policy(0.0))
    assert request.is_whole == (missing == keys)
    assert request.items == [key.decode() for key in missing]


def test_a_b_a_with_b_found_requests_one_a() -> None:
    assert Lookup.of([b"a", b"b", b"a"], {b"b": ENTRY}).missing == [b"a"]


async def test_many_keys_are_looked_up_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(Memory(10**7), NoStore(), Metrics(), ttl_s=None, timeout_s=1)
    keys = [number.to_bytes(32) for number in range(2 * PEEKED_A_TURN + 1)]
    record = Record(vector=VECTOR, model="m", tokens=1, tokens_exact=True, stored_at_s=1)
    await cache.write(dict.fromkeys(keys[1:], record), overwrite=False)
    sizes: list[int] = []
    peek = Cache.peek_confirmed

    def count(cache: Cache, keys: Sequence[bytes], **options: Any) -> Any:
        sizes.append(len(keys))
        return peek(cache, keys, **options)

    monkeypatch.setattr(Cache, "peek_confirmed", count)
    found = await look_up(cache, keys, min_stored_at_s=0)
    assert (list(found.entries), found.missing, found.from_memory) == (keys[1:], keys[:1], 2 * PEEKED_A_TURN)
    assert sizes == [PEEKED_A_TURN, PEEKED_A_TURN, 1]
