"""Budgets over processes: how much they can be overspent, what a failing store does, what survives a restart."""

import asyncio
import random
from collections.abc import Callable

import pytest

from proxy.errors import BudgetSpent, BudgetUnknown, StoreError
from proxy.fetch.spending import Spending
from proxy.ledger.ledger import Ledger
from proxy.ledger.spending import SpendingBudget
from proxy.telemetry.metrics import Metrics

NOW_S = 1_800_000_000.0
LIMIT = 10_000


class Counters:
    """A store of counters that a test can fail and hold up."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.fails = False
        self.loses_replies = False
        self.turns: Callable[[], int] = lambda: 0

    async def add(self, name: str, amount: int, *, expires_at_s: int) -> int:
        for _ in range(self.turns()):
            await asyncio.sleep(0)
        if self.fails:
            raise StoreError("connection", "gone")
        self.values[name] = self.values.get(name, 0) + amount
        total = self.values[name]
        for _ in range(self.turns()):
            await asyncio.sleep(0)
        if self.loses_replies:
            raise StoreError("timeout", "lost")
        return total

    @property
    def total(self) -> int:
        return sum(self.values.values())


def spending(store: Counters | None, *budgets: SpendingBudget, **changes: object) -> Spending:
    # A store that is waited for as long as a busy machine may pause.
    given = {"clock": lambda: NOW_S, "metrics": Metrics(ledger=Ledger()), "timeout_s": 60.0, **changes}
    return Spending(budgets or (SpendingBudget(name="b", tokens=LIMIT),), store=store, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
async def test_a_budget_is_overspent_by_no_more_than_the_calls_in_flight(seed: int) -> None:
    """Three processes, each with eight clients that send one call after the other until they are refused."""
    rng, store = random.Random(seed), Counters()
    store.turns = lambda: rng.randrange(4)
    processes = [spending(store) for _ in range(3)]
    in_flight: dict[object, int] = {}
    billed, excess_of = 0, 0

    async def client(process: Spending) -> None:
        nonlocal billed, excess_of
        while True:
            cost = rng.randrange(1, 400)
            try:
                # What a call costs is not known before: the estimate is off by up to a half.
                reservation = await process.reserve("team", "m", int(cost * rng.uniform(0.5, 1.5)))
            except BudgetSpent:
                return
            call = object()
            in_flight[call] = cost
            for _ in range(rng.randrange(10)):
                await asyncio.sleep(0)
            if billed < LIMIT <= billed + cost:
                excess_of = sum(in_flight.values())
            billed += cost
            process.spend("team", "m", cost)
            await process.reported("team", "m")
            del in_flight[call]
            reservation.release()

    await asyncio.gather(*(client(process) for process in processes for _ in range(8)))
    assert LIMIT <= billed < LIMIT + excess_of
    assert store.total == billed
    for process in processes:
        with pytest.raises(BudgetSpent):
            await process.require("team", "m")


async def test_one_process_is_overspent_by_no_more_than_its_last_call() -> None:
    """Where no estimate is too low."""
    store, billed, most = Counters(), 0, 300
    process, rng = spending(store), random.Random(1)

    async def client() -> None:
        nonlocal billed
        while True:
            try:
                reservation = await process.reserve("team", "m", most)
            except BudgetSpent:
                return
            await asyncio.sleep(0)
            cost = rng.randrange(1, most + 1)
            process.spend("team", "m", cost)
            billed += cost
            reservation.release()

    await asyncio.gather(*(client() for _ in range(30)))
    assert LIMIT <= billed < LIMIT + most


async def test_what_was_spent_survives_a_restart() -> None:
    store = Counters()
    first = spending(store)
    first.spend("team", "m", LIMIT - 1)
    await first.aclose()
    second = spending(store)
    (await second.reserve("team", "m", 5)).release()
    assert second.remaining_tokens("team", "m") == 1
    second.spend("team", "m", 1)
    with pytest.raises(BudgetSpent) as refused:
        await second.reserve("team", "m", 1)
    assert refused.value.retry_after_s is not None
    assert 0 < refused.value.retry_after_s <= 86_400
    assert refused.value.again().retry_after_s == refused.value.retry_after_s


async def test_the_next_window_begins_with_nothing() -> None:
    now_s = [NOW_S]
    store = Counters()
    process = spending(store, SpendingBudget(name="b", tokens=5, window=60.0), clock=lambda: now_s[0])
    process.spend("team", "m", 5)
    with pytest.raises(BudgetSpent):
        await process.reserve("team", "m", 1)
    now_s[0] += 60
    assert list(process.accounts()) == []
    (await process.reserve("team", "m", 1)).release()
    assert len(store.values) == 2


async def test_clients_and_shared_budgets() -> None:
    store = Counters()
    own = SpendingBudget(name="own", tokens=100)
    together = SpendingBudget(name="together", tokens=150, is_shared=True)
    process = spending(store, own, together)
    process.spend("a", "m", 100)
    with pytest.raises(BudgetSpent, match="'own'"):
        await process.require("a", "m")
    process.spend("b", "m", 50)
    with pytest.raises(BudgetSpent, match="'together'"):
        await process.require("b", "m")
    assert process.remaining_tokens("b", "m") == 0
    assert {account.name.rsplit(":", 1)[0] for account in process.accounts()} == {"own:a", "own:b", "together:*"}


@pytest.mark.parametrize("fails_open", [True, False])
async def test_while_the_store_is_down(fails_open: bool) -> None:
    store, metrics = Counters(), Metrics(ledger=Ledger())
    process = spending(store, fails_open=fails_open, metrics=metrics)
    process.spend("team", "m", 10)
    await process.reported("team", "m")
    store.fails = True
    process.spend("team", "m", LIMIT - 20)
    await process.reported("team", "m")
    if fails_open:
        (await process.reserve("team", "m", 1)).release()  # by what this process knows
        process.spend("team", "m", 10)
        with pytest.raises(BudgetSpent):
            await process.reserve("team", "m", 1)
    else:
        with pytest.raises(BudgetUnknown):
            await process.reserve("team", "m", 1)
        process.spend("team", "m", 10)
    store.fails = False
    await process.report_all()
    await process.reported("team", "m")
    assert store.total == LIMIT  # reconciled
    with pytest.raises(BudgetSpent):
        await spending(store).require("team", "m")


async def test_a_report_whose_reply_is_lost_counts_twice_at_most() -> None:
    store = Counters()
    process = spending(store)
    store.loses_replies = True
    process.spend("team", "m", 100)
    await process.reported("team", "m")
    store.loses_replies = False
    await process.report_all()
    await process.reported("team", "m")
    assert store.total == 200
    process.spend("team", "m", 1)
    await process.aclose()
    assert store.total == 201


async def test_without_a_store_a_process_counts_by_itself() -> None:
    process = spending(None)
    process.spend("team", "m", LIMIT)
    with pytest.raises(BudgetSpent):
        await process.reserve("team", "m", 1)


async def test_made_up_clients_leave_no_accounts() -> None:
    process = spending(Counters())
    process.spend("team", "m", 1)
    for number in range(10_000):
        (await process.reserve(f"made up {number}", "m", 1)).release()
    assert len(process._accounts) <= 4097
    assert [account.client for account in process.accounts()] == ["team"]


async def test_a_call_waits_while_others_hold_the_rest_and_can_be_abandoned() -> None:
    process = spending(Counters())
    first = await process.reserve("team", "m", LIMIT)
    waiting = [asyncio.create_task(process.reserve("team", "m", 1)) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    first.release()
    (await waiting[1]).release()
    assert sum(account.reserved for account in process.accounts()) == 0
