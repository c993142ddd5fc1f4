"""The model of the SQLite store: what it keeps, what it evicts, and how many bytes it believes to use."""

import pytest

from proxy.analysis.store_model import StoreModel, _Pages, entry_bytes, value_bytes
from proxy.cache.sqlite.file import PAGE_BYTES
from proxy.config.settings import MIB

DIMENSIONS = 1024
VALUE_BYTES = 81 + 4 * DIMENSIONS
ROWS_A_PAGE = 7  # of 32 KiB
SMALL_LIMIT = 20 * PAGE_BYTES


def model(limit_bytes: int = 64 * MIB, distinct: int = 2000) -> StoreModel:
    return StoreModel(limit_bytes, distinct)


def stored(store: StoreModel, items: range, now_s: float) -> list[int]:
    return [item for item in items if store._row_of[item] >= 0 and store.read(item, now_s)]


def test_the_size_of_an_entry() -> None:
    assert value_bytes(DIMENSIONS) == VALUE_BYTES
    assert entry_bytes(DIMENSIONS) == pytest.approx(69 + PAGE_BYTES / ROWS_A_PAGE)
    assert entry_bytes(16 * DIMENSIONS) == 69 + 3 * PAGE_BYTES  # larger than a page


def test_what_was_put_is_stored() -> None:
    store = model()
    assert not store.read(3, 0)
    store.put([3, 5], DIMENSIONS, 0)
    assert (store.read(3, 1), store.read(5, 1), store.read(4, 1)) == (True, True, False)
    assert store.entries == 2


def test_the_bytes_that_are_used() -> None:
    store = model()
    empty = store._used_bytes
    assert empty == 8 * PAGE_BYTES
    for count, pages in ((1, 1), (7, 1), (8, 2), (14, 2), (15, 3)):
        store.put(range(store.entries, count), DIMENSIONS, 0)
        assert store._used_bytes - empty == pages * PAGE_BYTES + count * 69
    store.put([100], 16 * DIMENSIONS, 0)
    assert store._used_bytes - empty == 6 * PAGE_BYTES + 16 * 69


def test_the_least_recently_read_go_first() -> None:
    store = model(SMALL_LIMIT)
    for item in range(60):
        store.put([item], DIMENSIONS, 1000.0 + item)
    assert store.entries == 60
    assert store.read(0, 5000.0)
    for item in range(60, 100):
        store.put([item], DIMENSIONS, 5000.0 + item)
        assert store._used_bytes <= SMALL_LIMIT
    left = stored(store, range(100), 1.0)
    assert left[0] == 0
    assert left[1:] == list(range(100 - len(left) + 1, 100))
    assert 60 < len(left) < 90


def test_a_read_within_a_minute_is_no_later_read() -> None:
    store = model(SMALL_LIMIT)
    store.put(range(60), DIMENSIONS, 1000.0)
    store.read(0, 1060.0)
    store.read(1, 1061.0)
    for item in range(60, 90):
        store.put([item], DIMENSIONS, 1061.0)
    left = stored(store, range(90), 1.0)
    assert 0 not in left
    assert 1 in left


def test_several_are_evicted_at_a_time_where_there_are_many() -> None:
    store = model(8 * MIB, distinct=10_000)
    item = 0
    before = 0
    while store.entries >= before:
        before = store.entries
        store.put([item], DIMENSIONS, float(item))
        item += 1
    assert before >= 1000
    assert before - store.entries == before // 64 - 1


def test_rows_of_evicted_entries_are_used_again() -> None:
    store = model(SMALL_LIMIT)
    for first in range(0, 400, 8):
        store.put(range(first, first + 8), DIMENSIONS, float(first))
    assert len(store._item_of) < 380
    assert stored(store, range(400), 1.0)[-8:] == list(range(392, 400))
    assert store.entries == sum(item >= 0 for item in store._item_of)


def test_what_is_put_is_kept_even_if_it_is_more_than_fits() -> None:
    store = model(SMALL_LIMIT)
    store.put(range(10), DIMENSIONS, 0)
    store.put(range(100, 400), DIMENSIONS, 1.0)
    assert stored(store, range(400), 1.0) == list(range(100, 400))
    assert store._used_bytes > SMALL_LIMIT


def test_pages_that_are_nearly_empty_are_merged_with_a_neighbor() -> None:
    pages = _Pages()
    rows = [pages.append(VALUE_BYTES) for _ in range(3 * ROWS_A_PAGE)]
    assert pages.used == 3
    pages.delete(rows[:5])  # 2 of 7 are left: less than a third, and they fit nowhere
    assert pages.used == 3
    pages.delete(rows[ROWS_A_PAGE : ROWS_A_PAGE + 5])
    assert pages.used == 2
    pages.delete(rows[5:7])
    assert pages.used == 2
    pages.delete(rows[ROWS_A_PAGE + 5 : 2 * ROWS_A_PAGE])
    assert pages.used == 1
    pages.delete(rows[2 * ROWS_A_PAGE :])
    assert pages.used == 0
    assert pages.append(VALUE_BYTES) == len(rows)
    assert pages.used == 1
