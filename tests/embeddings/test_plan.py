"""What is asked for is what is missing, each once, and it is enough."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.embeddings.plan import plan

KEYS = st.lists(st.sampled_from([bytes([letter]) for letter in b"abcdefgh"]), min_size=1)
FOUND = st.sets(st.sampled_from([bytes([letter]) for letter in b"abcdefgh"]))


@given(KEYS, FOUND)
def test_missing_and_found_are_a_partition_of_the_distinct_keys(keys: list[bytes], found: set[bytes]) -> None:
    made = plan(keys, found)
    asked = [keys[i] for i in made.missing]
    assert len(asked) == len(set(asked))
    assert set(asked) == set(keys) - found


@given(KEYS, FOUND)
def test_missing_are_first_places_in_input_order(keys: list[bytes], found: set[bytes]) -> None:
    made = plan(keys, found)
    assert made.missing == sorted(made.missing)
    assert all(keys.index(keys[i]) == i for i in made.missing)


@given(KEYS, FOUND)
def test_reduced_says_whether_the_client_sent_more(keys: list[bytes], found: set[bytes]) -> None:
    made = plan(keys, found)
    assert made.is_reduced == ([keys[i] for i in made.missing] != keys)


def test_a_b_a_with_b_found_asks_for_one_a() -> None:
    assert plan([b"a", b"b", b"a"], {b"b"}).missing == [0]
