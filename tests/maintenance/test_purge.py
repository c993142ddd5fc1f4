"""Which entries a purge removes, and what it tells the processes that use the store."""

import pytest

from proxy.cache.store import Purge, PurgedModels
from proxy.maintenance.purge import NO_RECORD, Purged, Selection, purge, purge_keys
from proxy.protocol import records
from tests.maintenance.test_transfer import ignore
from tests.support.dict_store import DictStore, key_of, record

NOW_S = 1_000_000.0
# Number, model and age in seconds; the last is no record.
ENTRIES = [(1, "text-a", 10), (2, "text-a", 500), (3, "text-b", 500), (4, "other", 500), (5, "other", 10)]
DAMAGED = key_of(6)


@pytest.fixture
def store() -> DictStore:
    store = DictStore()
    for number, model, age_s in ENTRIES:
        its = record(float(number), at=NOW_S - age_s, model=model)
        store.values[key_of(number)] = records.encode(key_of(number), its)
    store.values[DAMAGED] = b"damaged"
    return store


@pytest.mark.parametrize(
    ("selection", "numbers", "announced"),
    [
        (Selection(), [1, 2, 3, 4, 5, 6], {PurgedModels("*")}),
        (Selection(model="text-*"), [1, 2, 3], {PurgedModels("text-*")}),
        (Selection(model="*"), [1, 2, 3, 4, 5], {PurgedModels("*")}),
        (Selection(model="TEXT-A"), [], {PurgedModels("TEXT-A")}),
        (Selection(stored_before_s=NOW_S - 100), [2, 3, 4], {PurgedModels("*", None, NOW_S - 100)}),
        (Selection(model="*a", stored_before_s=NOW_S - 100), [2], {PurgedModels("*a", None, NOW_S - 100)}),
    ],
)
async def test_the_selected_entries_go_and_every_process_is_told_before_and_afterwards(
    store: DictStore, selection: Selection, numbers: list[int], announced: set[PurgedModels]
) -> None:
    before = dict(store.values)
    gone = {key_of(number) for number in numbers}
    dry = await purge(store, selection, is_dry_run=True, advance=ignore)
    assert (store.values, store.purges, store.log) == (before, [], [])
    done = await purge(store, selection, is_dry_run=False, advance=ignore)
    assert store.values == {key: value for key, value in before.items() if key not in gone}
    assert store.purges == [Purge(models=announced)] * 2
    assert set(store.log) == gone
    assert done == dry
    assert done.entries.total() == len(gone)
    assert done.bytes == sum(32 + len(before[key]) for key in gone)


async def test_what_went_is_counted_by_model(store: DictStore) -> None:
    done = await purge(store, Selection(), is_dry_run=False, advance=ignore)
    assert dict(done.entries) == {"text-a": 2, "text-b": 1, "other": 2, NO_RECORD: 1}


async def test_so_many_keys_that_no_log_holds_them_are_announced_as_everything(store: DictStore) -> None:
    keys = [key_of(n) for n in range(5000)]
    await purge_keys(store, keys, is_dry_run=False, advance=ignore)
    assert store.values == {}
    assert store.purges == [Purge(models={PurgedModels("*")})] * 2


async def test_keys_go_also_where_only_a_process_has_them_in_memory(store: DictStore) -> None:
    keys = [key_of(1), key_of(77), key_of(1), DAMAGED]
    left = {key: value for key, value in store.values.items() if key not in keys}
    dry = await purge_keys(store, keys, is_dry_run=True, advance=ignore)
    assert len(store.values) == 6
    assert (store.purges, store.log) == ([], [])
    done = await purge_keys(store, keys, is_dry_run=False, advance=ignore)
    assert store.values == left
    assert store.purges == [Purge(keys=frozenset(keys))] * 2
    assert set(store.log) == set(keys)
    assert done == dry == Purged(entries=done.entries, bytes=dry.bytes)
    assert dict(done.entries) == {"text-a": 1, NO_RECORD: 1}


@pytest.mark.parametrize(
    ("selection", "numbers", "unknown"),
    [
        (Selection(scopes={b"scope  1"}), [11, 12], 5),
        (Selection(scopes={b"scope  1", b"scope  2"}), [11, 12, 13], 5),
        (Selection(scopes={b"scope  3"}), [], 5),
        (Selection(scopes={b""}), [1, 2, 3, 4, 5], 0),
        (Selection(scopes={b"scope  1"}, model="text-*"), [11], 3),
        (Selection(scopes={b"scope  1"}, stored_before_s=NOW_S - 100), [12], 3),
    ],
)
async def test_a_scope_goes_and_what_may_be_of_it_is_counted(
    store: DictStore, selection: Selection, numbers: list[int], unknown: int
) -> None:
    """The store is mixed: `ENTRIES` are as earlier versions wrote them."""
    for number, scope, model, age_s in (
        (11, b"scope  1", "text-a", 10), (12, b"scope  1", "other", 500), (13, b"scope  2", "text-a", 10)
    ):  # fmt: skip
        its = record(1.0, at=NOW_S - age_s, model=model, scope=scope)
        store.values[key_of(number)] = records.encode(key_of(number), its)
    before = dict(store.values)
    done = await purge(store, selection, is_dry_run=False, advance=ignore)
    assert before.keys() - store.values.keys() == set(map(key_of, numbers))
    assert (done.entries.total(), done.unknown) == (len(numbers), unknown)
    assert selection.scopes is not None
    announced = {PurgedModels(selection.model or "*", scope, selection.stored_before_s) for scope in selection.scopes}
    assert store.purges == [Purge(models=announced)] * 2


@pytest.mark.parametrize(
    ("selection", "remains"),
    [(Selection(stored_before_s=NOW_S), True), (Selection(model="*"), True), (Selection(), False)],
)
async def test_what_the_canary_keeps_goes_only_with_everything(
    store: DictStore, selection: Selection, remains: bool
) -> None:
    own = key_of(99)
    store.values[own] = records.encode(own, record(1.0, at=0, model=records.OWN))
    await purge(store, selection, is_dry_run=False, advance=ignore)
    assert (own in store.values) == remains
