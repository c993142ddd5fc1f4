"""What a store is said to have."""

from msgspec.structs import replace

from proxy.maintenance.survey import OLDER, Kind, survey, verify
from proxy.protocol import records, vectors
from tests.maintenance.test_transfer import ignore
from tests.support.dict_store import DictStore, key_of, record

NOW_S = 1_000_000_000.0


def stored(*entries: tuple[int, str, float]) -> DictStore:
    """Entries by number, model and age in seconds."""
    store = DictStore()
    for number, model, age_s in entries:
        its = record(float(number), at=NOW_S - age_s, model=model)
        store.values[key_of(number)] = records.encode(key_of(number), its)
    return store


async def test_entries_are_counted_by_model_and_age() -> None:
    store = stored((1, "a", 10), (2, "a", 7200), (3, "b", 90_000_000))
    found = await survey(store, now_s=NOW_S, advance=ignore)
    assert {kind.model: group.entries for kind, group in found.groups.items()} == {"a": 2, "b": 1}
    assert +found.ages == {"1 hour": 1, "1 day": 1, OLDER: 1}
    assert found.entries == 3
    assert found.bytes == sum(32 + len(value) for value in store.values.values())
    (of_a,) = (group for kind, group in found.groups.items() if kind.model == "a")
    assert (of_a.oldest_s, of_a.newest_s) == (NOW_S - 7200, NOW_S - 10)


async def test_what_the_proxy_keeps_for_itself_is_no_entry() -> None:
    found = await survey(stored((1, "a", 10), (2, records.OWN, 10)), now_s=NOW_S, advance=ignore)
    assert [kind.model for kind in found.groups] == ["a"]
    assert (found.entries, found.own.entries) == (1, 1)
    assert found.ages.total() == 1


async def test_entries_are_counted_by_scope_and_those_of_earlier_versions_apart() -> None:
    store = stored((1, "a", 10), (2, "b", 20))
    for number, scope in ((3, b"scope  1"), (4, b"scope  1"), (5, b"scope  2")):
        store.values[key_of(number)] = records.encode(key_of(number), record(model="a", at=NOW_S, scope=scope))
    found = await survey(store, now_s=NOW_S, advance=ignore)
    assert {scope: group.entries for scope, group in found.scopes.items()} == {b"": 2, b"scope  1": 2, b"scope  2": 1}
    assert sum(group.bytes for group in found.scopes.values()) == found.bytes


async def test_damaged_values_are_counted_and_named() -> None:
    store = stored((1, "a", 10))
    store.values[key_of(2)] = b"damaged"
    found = await survey(store, now_s=NOW_S, advance=ignore)
    assert (found.entries, found.invalid) == (2, {"checksum": 1})
    checked = await verify(store, record_key=None, advance=ignore)
    assert (checked.valid, checked.invalid) == (1, {"checksum": [key_of(2).hex()]})


async def test_one_model_of_two_lengths_is_two_kinds() -> None:
    store = stored((1, "a", 10))
    longer = replace(record(model="a"), vector=vectors.from_numbers([1.0, 0.5, 0.25]))
    store.values[key_of(2)] = records.encode(key_of(2), longer)
    found = await survey(store, now_s=NOW_S, advance=ignore)
    assert sorted(found.groups) == [Kind("a", 2, "float32"), Kind("a", 3, "float32")]
