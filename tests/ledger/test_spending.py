"""Windows, units and accounts of budgets."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.ledger.spending import DAY, MONTH, Account, SpendingBudget, window_of


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("window", "now", "start", "end"),
    [
        (DAY, "2026-03-01T00:00:00", "2026-03-01", "2026-03-02"),
        (DAY, "2026-12-31T23:59:59", "2026-12-31", "2027-01-01"),
        (MONTH, "2026-02-28T12:00:00", "2026-02-01", "2026-03-01"),
        (MONTH, "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        (3600.0, "2026-05-05T10:59:59", "2026-05-05T10:00:00", "2026-05-05T11:00:00"),
    ],
)
def test_a_window_has_its_start_and_end_in_utc(window: str | float, now: str, start: str, end: str) -> None:
    assert window_of(window, at(now)) == (at(start), at(end))


@given(st.one_of(st.sampled_from([DAY, MONTH]), st.floats(1, 1e7)), st.floats(0, 4e9))
def test_windows_follow_each_other_without_gaps(window: str | float, now_s: float) -> None:
    start_s, end_s = window_of(window, now_s)
    assert start_s <= now_s < end_s
    assert window_of(window, end_s)[0] == end_s
    assert window_of(window, start_s) == (start_s, end_s)


def test_money_is_counted_at_the_models_price() -> None:
    budget = SpendingBudget(name="b", money=20.0)
    assert budget.amount(budget.units(1_000_000, 0.02)) == 0.02
    assert budget.amount(budget.limit_units) == 20.0
    assert budget.tokens_in(budget.limit_units, 0.02) == 1_000_000_000
    assert budget.tokens_in(budget.limit_units, 0.0) is None
    assert budget.units(5, 0.0) == 0


def test_a_budget_covers_clients_and_models_by_pattern() -> None:
    budget = SpendingBudget(name="b", clients=("team-*", "x"), models=("text-*",), tokens=1)
    covered = [budget.covers(client, "text-1") for client in ("team-a", "x", "y", "")]
    assert covered == [True, True, False, False]
    assert not budget.covers("x", "other")


@given(st.integers(1, 1000), st.integers(0, 1500), st.integers(0, 500), st.integers(0, 500))
def test_there_is_room_for_one_call_as_long_as_anything_is_left(
    tokens: int, stored: int, pending: int, reserved: int
) -> None:
    account = Account(SpendingBudget(name="b", tokens=tokens), "c", 0, 1, stored=stored, pending=pending)
    account.reserved = reserved
    assert account.left == max(0, tokens - stored - pending)
    assert account.has_room == (account.left > 0 and (not reserved or stored + pending + reserved < tokens))
