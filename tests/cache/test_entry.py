"""Entries: what is served of a record, which record supersedes which, and what they weigh."""

import pytest

from proxy.cache.entry import Certainty, Entry, base64_texts, current, generated_base64
from proxy.protocol import vectors
from tests.support.dict_store import A, B, record


def entry(number: float = 1.0, certainty: Certainty = Certainty.CONFIRMED) -> Entry:
    return Entry.of(record(number), certainty)


def test_it_serves_its_record_and_gives_it_back() -> None:
    its = record(2.0, model="model", scope=b"s" * 16)
    made = Entry.of(its)
    assert (made.model, made.dimensions, made.stored_at_s, made.tokens) == ("model", 2, its.stored_at_s, 1)
    assert made.model_version == ("model", 2)
    assert made.numbers() == b"[2.0,0.5]"
    assert made.record() == its
    assert made.base64 == vectors.base64_text(its.vector.dtype, its.vector.payload)
    assert made.base64_length == len(made.base64)
    assert base64_texts([made, entry()]) == list(generated_base64([made, entry()])) == [made.base64, entry().base64]


@pytest.mark.parametrize(
    ("certainty", "is_undecided", "overwrites", "yields_to_read", "yields_to_insert"),
    [
        (Certainty.CONFIRMED, False, False, False, False),
        (Certainty.INSERTING, True, False, True, True),
        (Certainty.REPLACED, False, False, True, False),
        (Certainty.REPLACING, True, True, False, False),
    ],
)
def test_what_supersedes_it_follows_from_its_certainty(
    certainty: Certainty, is_undecided: bool, overwrites: bool, yields_to_read: bool, yields_to_insert: bool
) -> None:
    made = entry(certainty=certainty)
    assert made.is_confirmed is (certainty is Certainty.CONFIRMED)
    assert (made.is_undecided, made.overwrites) == (is_undecided, overwrites)
    assert (made.yields_to_read, made.yields_to_insert) == (yields_to_read, yields_to_insert)


def test_requests_that_refer_to_a_superseded_entry_serve_the_last_winner() -> None:
    first, second, third = entry(1.0), entry(2.0), entry(3.0)
    first.set_successor(second)
    second.set_successor(third)
    assert first.current is third
    assert current({A: first, B: third}) == {A: third, B: third}


def test_no_chain_of_successors_is_a_circle() -> None:
    first, second = entry(1.0), entry(2.0)
    first.set_successor(second)
    second.set_successor(first)
    assert first.current is second.current is second
    first.set_successor(first)
    assert first.current is second
    third = entry(3.0)
    second.set_successor(third)
    second.set_successor(first)  # which leads to third by way of second itself
    assert first.current is second.current is third


def test_an_entry_that_the_store_has_accepted_is_the_one_to_serve() -> None:
    mine, other = entry(1.0, Certainty.INSERTING), entry(2.0)
    mine.set_successor(other)
    mine.mark_stored(Certainty.REPLACED)
    assert mine.current is mine
    assert mine.certainty is Certainty.REPLACED
    assert mine.numbers() == b"[1.0,0.5]"


def test_accepting_it_keeps_the_text_of_its_numbers() -> None:
    mine = entry(1.0, Certainty.INSERTING)
    mine.numbers()
    mine.mark_stored(Certainty.CONFIRMED)
    assert mine.has_numbers
    assert mine.is_confirmed


def test_the_text_of_its_numbers_is_kept_counted_and_can_be_dropped() -> None:
    made = entry()
    packed = made.weight_bytes
    assert not made.has_numbers
    text = made.numbers()
    assert made.has_numbers
    assert made.numbers() is text
    assert made.weight_bytes == packed + len(text)
    made.pack()
    assert not made.has_numbers
    assert made.weight_bytes == packed
    assert made.numbers() == text


def test_a_long_name_of_a_model_counts_since_entries_do_not_share_it() -> None:
    short, long = (Entry.of(record(1.0, model="m" * length)) for length in (256, 100_000))
    assert short.weight_bytes == entry().weight_bytes
    assert long.weight_bytes >= short.weight_bytes + 100_000


def test_a_superseded_entry_keeps_no_text() -> None:
    made, winner = entry(1.0), entry(2.0)
    made.set_successor(winner)
    assert made.numbers() == b"[1.0,0.5]"
    assert made.current is winner
    made.pack()
    assert made.current is winner


def test_entries_of_one_call_share_what_they_have_in_common() -> None:
    assert entry(1.0).source is entry(2.0).source
    assert entry(1.0).source is not entry(1.0, Certainty.INSERTING).source
