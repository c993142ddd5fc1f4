"""What one client used of one model: what the fast path adds is part of every sum."""

from proxy.labels import BypassReason, ItemResult, RequestOutcome
from proxy.ledger.row import Row


def test_hits_of_the_fast_path_and_of_the_parser_are_one_sum() -> None:
    row = Row("search", "m", None)
    row.count_request(RequestOutcome.HIT, held_s=0.5)
    row.count_request(RequestOutcome.MISS, held_s=1.0)
    row.hits += 2
    assert {outcome: count for outcome, count in row.requests.items() if count} == {
        RequestOutcome.HIT: 3,
        RequestOutcome.MISS: 1,
    }
    assert row.held_s == 1.5


def test_items_of_the_fast_path_are_told_apart_as_those_of_the_parser() -> None:
    row = Row("search", "m", None)
    for result in ItemResult:
        row.count_items(result, 1)
    row.hit_items, row.duplicates, row.from_store = 10, 2, 3
    assert row.items[ItemResult.MEMORY] == 1 + 5
    assert row.items[ItemResult.DUPLICATE] == 1 + 2
    assert row.items[ItemResult.STORE] == 1 + 3
    assert row.items[ItemResult.UPSTREAM] == 1
    assert sum(row.items.values()) == len(ItemResult) + 10


def test_bypasses_are_counted_by_reason() -> None:
    row = Row("search", "m", None)
    for reason in (BypassReason.STREAM, BypassReason.STREAM, BypassReason.MODEL):
        row.count_bypass(reason)
    assert row.bypasses == {BypassReason.STREAM: 2, BypassReason.MODEL: 1}


def test_cost_is_that_of_a_million_tokens() -> None:
    row = Row("search", "m", 2.0)
    row.billed, row.saved = 1_500_000, 500_000
    assert row.cost == (3.0, 1.0)
    free = Row("search", "m", None)
    free.billed = 10
    assert free.cost == (0.0, 0.0)


def test_a_new_row_has_counted_nothing() -> None:
    row = Row("search", "m", 2.0)
    assert set(row.requests.values()) == set(row.items.values()) == {0}
    assert (row.bypasses, row.held_s, row.cost) == ({}, 0.0, (0.0, 0.0))
