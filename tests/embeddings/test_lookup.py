"""What is fetched is what is missing, each key once, and it is enough."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.embeddings.lookup import Lookup
from proxy.fetch.request import FetchRequest, Policy
from tests.support.client_requests import client_request_for

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
