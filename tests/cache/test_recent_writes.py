"""Writes that may undo a purge that this process does not know of yet."""

from proxy.cache.discards import EVERYTHING, Discards, Mark
from proxy.cache.entry import Entry
from proxy.cache.recent_writes import RecentWrite, RecentWrites
from proxy.cache.store import Purge, PurgedModels
from tests.support.dict_store import A, B, key_of, record


def write(*keys: bytes, asked: Mark | None = None, model: str = "m") -> RecentWrite:
    return RecentWrite(asked or Mark(), {key: Entry.of(record(model=model)) for key in keys})


def test_a_write_names_what_was_purged_after_its_upstream_call() -> None:
    discards = Discards(again_after_s=10.0)
    early = write(A, B, asked=discards.now)
    discards.add(EVERYTHING, 0.0, Purge({A}, set()))
    late = write(A, B, asked=discards.now)
    assert early.purged() == [A]
    assert late.purged() == []
    discards.add(EVERYTHING, 0.0, Purge(set(), {PurgedModels("m")}))
    assert late.purged() == [A, B]
    assert write(A, asked=early.asked, model="n").purged() == [A]


def test_writes_are_taken_once_and_put_back_in_their_order() -> None:
    writes, (one, two, three) = RecentWrites(), (write(A), write(B), write(A))
    writes.add(one)
    writes.add(two)
    taken = writes.take()
    assert taken == [one, two]
    assert writes.take() == []
    writes.add(three)
    writes.put_back(taken)
    assert writes.take() == [one, two, three]


def test_they_are_bounded_by_their_keys_and_the_oldest_go() -> None:
    entry = Entry.of(record())
    many = [RecentWrite(Mark(), {key_of(n): entry for n in range(50_000)}) for _ in range(3)]
    writes = RecentWrites()
    for each in many[:2]:
        writes.add(each)
    writes.put_back(writes.take())  # which counts the keys again
    writes.add(many[2])
    assert writes.take() == many[1:]
    writes.add(many[0])  # the count has begun again
    writes.add(many[1])
    assert writes.take() == many[:2]


def test_one_write_stays_however_large_it_is() -> None:
    entry = Entry.of(record())
    large = RecentWrite(Mark(), {key_of(n): entry for n in range(100_001)})
    writes = RecentWrites()
    writes.add(large)
    assert writes.take() == [large]
