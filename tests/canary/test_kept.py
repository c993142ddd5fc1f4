"""What the canary keeps in a store: the first value stays, a swap replaces only what was read, and one process has the
turn."""

import asyncio

import pytest

from proxy.cache.store import NoStore, Store
from proxy.canary.kept import Kept, KeptValues
from proxy.protocol.records import RecordKey
from tests.support.dict_store import A, B, Clock, DictStore
from tests.support.leasing_store import SharedLeases

STORES = [DictStore, NoStore]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def kept(store: Store, clock: Clock, record_key: RecordKey | None = None) -> KeptValues:
    return KeptValues(store, record_key=record_key, clock=clock)


@pytest.mark.parametrize("store", STORES)
async def test_values_are_read_as_they_were_written(store: type[Store], clock: Clock) -> None:
    values = kept(store(), clock)
    assert await values.read(A) == Kept()
    await values.put(A, b"one")
    await values.put(A, b"two")
    found = await values.read(A)
    assert (found.content, found.stored_at_s) == (b"two", int(clock.now))
    assert (await values.read(B)).content is None
    assert values.is_local is (store is NoStore)


async def test_without_a_store_no_other_process_sees_them(clock: Clock) -> None:
    await kept(NoStore(), clock).put(A, b"one")
    assert (await kept(NoStore(), clock).read(A)).content is None


@pytest.mark.parametrize("store", STORES)
async def test_the_first_valid_value_stays(store: type[Store], clock: Clock) -> None:
    values = kept(store(), clock)
    assert await values.put_first(A, b"one") == b"one"
    assert await values.put_first(A, b"two") == b"one"
    assert (await values.read(A)).content == b"one"


async def test_an_invalid_value_is_replaced_by_the_first_valid_one(clock: Clock) -> None:
    store = DictStore()
    store.values[A] = b"damaged"
    values = kept(store, clock)
    assert await values.read(A) == Kept(None, b"damaged")
    assert await values.put_first(A, b"one") == b"one"


async def test_a_value_of_another_key_or_record_key_is_invalid(clock: Clock) -> None:
    store = DictStore()
    await kept(store, clock).put(A, b"one")
    store.values[B] = store.values[A]
    assert (await kept(store, clock).read(B)).content is None
    authenticated = kept(store, clock, RecordKey(b"0123456789abcdef0123456789abcdef"))
    assert (await authenticated.read(A)).content is None
    await authenticated.put(A, b"two")
    assert (await authenticated.read(A)).content == b"two"
    assert (await kept(store, clock).read(A)).content is None


async def test_a_swap_replaces_only_what_was_read(clock: Clock) -> None:
    store = DictStore()
    one, other = kept(store, clock), kept(store.of_another_process(), clock)
    absent = await one.read(A)
    assert await other.swap(A, b"other", absent)
    assert not await one.swap(A, b"one", absent)
    found = await one.read(A)
    assert found.content == b"other"
    assert await one.swap(A, b"one", found)
    assert not await other.swap(A, b"late", found)
    assert (await other.read(A)).content == b"one"


async def test_of_two_that_are_first_both_have_the_one_that_was_stored(clock: Clock) -> None:
    store = DictStore()
    one, other = kept(store, clock), kept(store.of_another_process(), clock)
    stored = await asyncio.gather(one.put_first(A, b"one"), other.put_first(A, b"other"))
    assert len(set(stored)) == 1


@pytest.mark.parametrize("store", STORES)
async def test_a_turn_lasts_ten_minutes_or_half_the_interval(store: type[Store], clock: Clock) -> None:
    for key, interval_s, turn_s in ((A, 6 * 3600.0, 600.0), (B, 60.0, 30.0)):
        values = kept(store(), clock)
        assert await values.take_turn(key, b"1", interval_s)
        clock.now += turn_s - 1
        assert not await values.take_turn(key, b"2", interval_s)
        clock.now += 1
        assert await values.take_turn(key, b"3", interval_s)


async def test_a_turn_from_a_clock_that_is_ahead_does_not_last(clock: Clock) -> None:
    store = DictStore()
    ahead = Clock()
    ahead.now = clock.now + 3600
    assert await kept(store, ahead).take_turn(A, b"1", 3600.0)
    assert await kept(store, clock).take_turn(A, b"2", 3600.0)


async def test_one_process_of_several_has_the_turn(clock: Clock) -> None:
    for store in (DictStore(), SharedLeases()):
        processes = [kept(store if n == 0 else store.of_another_process(), clock) for n in range(3)]
        taken = await asyncio.gather(*(values.take_turn(A, bytes([n]), 60.0) for n, values in enumerate(processes)))
        assert sum(taken) == 1
