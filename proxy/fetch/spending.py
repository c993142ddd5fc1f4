"""Keeps clients within their budgets: reserved before a call, settled by its bill, added up over processes."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from proxy.breaker import Breaker
from proxy.cache.store import COOLDOWN_S, MAX_FAILURES, CounterStore
from proxy.errors import BudgetSpent, BudgetUnknown, StoreError
from proxy.ledger.spending import Account, SpendingBudget, window_of
from proxy.prices import price_of
from proxy.tasks import TaskSet, log_to
from proxy.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_KEPT_S = 86400  # how long the store keeps a counter after its window, for clocks that differ
REPORT_S = 1.0  # how often what could not be reported is tried again
_MAX_ACCOUNTS = 4096  # with nothing spent
_EVERYBODY = "*"  # the client of a budget that all share


class Reservation:
    """What a call in flight may cost. The bill itself goes to `Spending.spend`."""

    __slots__ = ("_on_release", "_taken")

    def __init__(self, on_release: Callable[[], None]) -> None:
        self._taken: list[tuple[Account, int]] = []
        self._on_release = on_release

    def take(self, account: Account, units: int) -> None:
        account.reserved += units
        self._taken.append((account, units))

    def release(self) -> None:
        taken, self._taken = self._taken, []
        for account, units in taken:
            account.reserved -= units
        if taken:
            self._on_release()


class Spending:
    """The budgets of all clients. Each has its accounts under its name in the ledger.

    What a process spends it adds to a counter in the store before the response is used, and before each call it reads
    the sum of all processes there. So a budget is overspent by no more than the calls that are in flight when it is
    used up.
    """

    def __init__(
        self,
        budgets: Sequence[SpendingBudget] = (),
        *,
        store: CounterStore | None = None,
        prices: Mapping[str, float] | None = None,
        metrics: Metrics | None = None,
        fails_open: bool = True,
        timeout_s: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without a ``store`` a process counts by itself. ``timeout_s``: how long a request waits for the store; while
        it fails, ``fails_open`` says whether calls go on by what this process knows."""
        self._budgets = budgets
        self._store = store
        self._prices = prices or {}
        self._metrics = metrics
        self._fails_open = fails_open
        self._timeout_s = timeout_s
        self._clock = clock
        self._accounts: dict[tuple[str, str], Account] = {}
        self._past: list[Account] = []  # of windows that have ended, with something to report
        self._breaker = Breaker(max_failures=MAX_FAILURES, cooldown_s=COOLDOWN_S, clock=time.monotonic)
        self._reports = TaskSet(log_to(_log, "reporting what was spent"))
        self._reporting: dict[Account, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        if metrics is not None and budgets:
            metrics.on_billed = self.spend
            metrics.budgets.source = self.accounts

    def __repr__(self) -> str:
        return f"<Spending of {len(self._budgets)} budgets, {len(self._accounts)} accounts>"

    @property
    def has_budgets(self) -> bool:
        return bool(self._budgets)

    def accounts(self) -> Iterable[Account]:
        """The accounts of the present windows that were used."""
        now_s = self._clock()
        return [account for account in self._accounts.values() if account.end_s > now_s and account.spent]

    async def reserve(
        self, client: str | None, model: str | None, tokens: int, *, until_s: float | None = None
    ) -> Reservation:
        """Reserve ``tokens`` in every budget that applies, until the reservation is released.

        While calls in flight hold all that is left, it waits for one of them to end, which a rate limit may hold, too;
        no longer than ``until_s``, event loop time. Raises `BudgetSpent`, and `BudgetUnknown` if the store fails and
        may not.
        """
        reservation = Reservation(self._wake)
        try:
            for account in self._of(client, model):  # always in the same order, so that no two wait for each other
                await self._wait_for_room(account, until_s)
                reservation.take(account, account.budget.units(tokens, self._price_of(model)))
        except BaseException:
            reservation.release()
            raise
        return reservation

    async def require(self, client: str | None, model: str | None) -> None:
        """Raises what `reserve` raises, for a call whose cost is not known."""
        for account in self._of(client, model):
            await self._read(account)
            self._require_left(account)

    def remaining_tokens(self, client: str | None, model: str | None) -> int | None:
        """How many tokens are left in the budget with the fewest; None if no budget applies."""
        if not self._budgets:
            return None
        price = self._price_of(model)
        left = [account.budget.tokens_in(account.left, price) for account in self._of(client, model)]
        return min((tokens for tokens in left if tokens is not None), default=None)

    def spend(self, client: str | None, model: str | None, tokens: int) -> None:
        """The upstream billed a client's call."""
        price = self._price_of(model)
        for account in self._of(client, model):
            units = account.budget.units(tokens, price)
            if self._store is None:
                account.stored += units
            elif units:
                account.pending += units
                self._report_soon(account)

    def _price_of(self, model: str | None) -> float:
        return price_of(model, self._prices) or 0.0

    def _of(self, client: str | None, model: str | None) -> list[Account]:
        if not self._budgets:
            return []
        name = (client if self._metrics is None else self._metrics.ledger.account_of(client)) or ""
        covering = [budget for budget in self._budgets if budget.covers(name, model or "")]
        return [self._account(budget, name) for budget in covering]

    def _account(self, budget: SpendingBudget, client: str) -> Account:
        name = budget.name, _EVERYBODY if budget.is_shared else client
        start_s, end_s = window_of(budget.window, self._clock())
        account = self._accounts.get(name)
        if account is None or account.start_s != start_s:
            if account is not None and account.pending:
                self._past.append(account)
            account = self._accounts[name] = Account(budget, name[1], start_s, end_s)
            self._evict(account)
        return account

    def _evict(self, new: Account) -> None:
        """Forget accounts of which nothing was used: anyone can make up credentials."""
        if len(self._accounts) > _MAX_ACCOUNTS:
            self._accounts = {
                name: account
                for name, account in self._accounts.items()
                if account is new or account.spent or account.reserved
            }

    async def _wait_for_room(self, account: Account, until_s: float | None) -> None:
        while True:
            await self._read(account)
            changed = self._changed
            self._require_left(account)
            if account.has_room:
                return
            try:
                async with asyncio.timeout_at(until_s):
                    await changed.wait()
            except TimeoutError:
                raise BudgetSpent(
                    f"Calls in flight may use all that is left of the budget {account.budget.name!r}.", retry_after_s=1
                ) from None

    def _require_left(self, account: Account) -> None:
        if account.left:
            return
        budget = account.budget
        if self._metrics is not None:
            self._metrics.budget_refusals.labels(budget.name, account.client).inc()
        raise BudgetSpent(
            f"The budget {budget.name!r} of {budget.amount(budget.limit_units):g} {budget.unit} is used up until"
            f" {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(account.end_s))} UTC. Cached items are still served.",
            retry_after_s=max(1, int(account.end_s - self._clock()) + 1),
        )

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- the store

    async def _read(self, account: Account) -> None:
        """Read what all processes have spent, and report what this one has. Raises `BudgetUnknown`."""
        if self._store is not None and not await self._exchange(account) and not self._fails_open:
            raise BudgetUnknown(
                f"The store that counts the budget {account.budget.name!r} does not respond, and on_store_down is"
                " closed."
            )

    async def _exchange(self, account: Account) -> bool:
        """Whether the store has replied.

        A report whose reply is lost is repeated, so that what it said may be counted twice.
        """
        attempt = self._breaker.attempt()
        if attempt is None or self._store is None:
            return False
        sent, account.pending = account.pending, 0
        account.sending += sent
        is_done = False
        with attempt:
            try:
                async with asyncio.timeout(self._timeout_s):
                    total = await self._store.add(account.name, sent, expires_at_s=account.end_s + _KEPT_S)
                is_done = True
            except (StoreError, TimeoutError) as error:
                attempt.failed()
                if self._metrics is not None:
                    self._metrics.budget_store_errors.inc()
                _log.debug("budget %s not counted: %s", account.name, error)
                return False
            finally:
                account.sending -= sent
                if not is_done:
                    account.pending += sent
            attempt.succeeded()
        account.stored = max(account.stored, total)  # replies may come out of order
        return True

    def _report_soon(self, account: Account) -> None:
        if account not in self._reporting:
            self._reporting[account] = self._reports.start(self._report(account))

    async def _report(self, account: Account) -> None:
        try:
            while account.pending and await self._exchange(account):
                pass
        finally:
            del self._reporting[account]
            self._wake()

    async def reported(self, client: str | None, model: str | None) -> None:
        """Wait until the store knows what was spent before, or has failed. Until then a call counts as in flight."""
        reports = [self._reporting[account] for account in self._of(client, model) if account in self._reporting]
        if reports:
            await asyncio.wait(reports)

    async def report_all(self) -> None:
        """Report what could not be reported before. To be called now and then."""
        for account in [*self._past, *self._accounts.values()]:
            if account.pending:
                self._report_soon(account)
        self._past = [account for account in self._past if account.pending]

    async def aclose(self) -> None:
        await self.report_all()
        await self._reports.join()
