"""The fetch of the keys that one request claimed: under leases, in upstream calls, until every key is settled."""

import asyncio
import logging

from proxy.cache.cache import Cache
from proxy.cache.entry import Entry
from proxy.cache.lease import Lease
from proxy.errors import BudgetSpent, BudgetUnknown, Oversized, ProxyError
from proxy.fetch.batcher import Batcher
from proxy.fetch.client_wait import ClientWait
from proxy.fetch.outcomes import CallFailure, EmbedResult, InvalidResponse, Outcome
from proxy.fetch.request import FetchRequest
from proxy.fetch.result import Failure, FlightResult
from proxy.fetch.singleflight import Claim
from proxy.fetch.spending import Spending
from proxy.tasks import TaskSet, log_to
from proxy.turns import FEW_KEYS, KEYS_A_TURN, in_turns, turn

_log = logging.getLogger(__name__)

# How often to look for a key that another replica fetches: at first, and at most.
_POLL_S, _MAX_POLL_S = 0.005, 0.1
# The same for one that a rate limit holds here, and another replica may fetch.
_MAX_LENT_POLL_S = 1.0


class Leader:
    """Settles the keys in ``wait.claim.mine``. ``deliveries`` and ``asked`` are what its request is billed for; they
    are complete before the last key is settled."""

    def __init__(
        self,
        cache: Cache,
        batcher: Batcher,
        wait: ClientWait,
        *,
        timeout_s: float,
        spending: Spending,
        lends: bool,
    ) -> None:
        """``timeout_s``: how long to wait for another replica. ``lends``: another replica may fetch what a rate limit
        holds here, since its client may have a credential with a limit of its own."""
        self._cache = cache
        self._batcher = batcher
        self._spending = spending
        self._wait = wait
        self._claim: Claim[FlightResult] = wait.claim
        self._timeout_s = timeout_s
        self._lends = lends
        self.deliveries: list[EmbedResult] = []
        self.asked: set[bytes] = set()

    async def fetch(self, request: FetchRequest) -> None:
        """Fetch claimed keys and settle them. The caller settles what is left if this ends early."""
        if not (request.policy.may_join and self._cache.has_leases):
            await self._ask(request)
            return
        async with self._cache.leasing() as lease:
            ours = request.covered_by(await lease.acquire(request.lease_keys))
            granted = set(ours)
            others = [key for key in request.keys if key not in granted]
            ask = self._ask_unless_stored if lease.is_real else self._ask
            lending = TaskSet(log_to(_log, "the lending of leases"))
            if self._lends and lease.is_real:
                lending.start(self._lend(request, lease))
            try:
                if not others:
                    await ask(request)
                    return
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(ask(request.only(ours)))
                    tasks.create_task(self._await_others(request.only(others), lease))
            finally:
                await lending.aclose()

    async def _lend(self, request: FetchRequest, lease: Lease) -> None:
        """While a rate limit holds keys, release their leases, and look for what other replicas fetch meanwhile.

        What is stored ends its flights. If those were all that the client waits for, nothing is sent for it.
        """
        is_held = self._wait.watcher = asyncio.Event()
        while await is_held.wait():
            is_held.clear()
            pause_s = _POLL_S
            while held := [key for waiting in self._wait.held for key in waiting.request.keys]:
                await lease.release(request.only(held).lease_keys)
                await self._settle_stored(request.only(held))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_LENT_POLL_S)
            # Those that another replica has taken are sent from here as well: their turn has come.
            await lease.acquire(request.lease_keys)

    async def _ask_unless_stored(self, request: FetchRequest) -> None:
        """Read the store again: another replica may have stored what it fetched between our read and our lease."""
        stored = await self._settle_stored(request)
        await self._ask(request.only([key for key in request.keys if key not in stored]))

    async def _await_others(self, request: FetchRequest, lease: Lease) -> None:
        """Wait for keys that other replicas fetch: poll with exponential backoff, and retry the lease.

        Keys whose lease another replica releases or loses are fetched here.
        """
        keys, pause_s = request.keys, _POLL_S
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        if request.client_request.limit_wait.deadline_s:
            # A rate limit may hold the other replica's call. Then this replica's call refuses the client in time.
            deadline = min(deadline, request.client_request.limit_wait.deadline_s)
        while keys:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_POLL_S)
            stored = await self._settle_stored(request.only(keys))
            keys = [key for key in keys if key not in stored]
            lapsed = keys
            if keys and loop.time() <= deadline:
                rest = request.only(keys)
                lapsed = rest.covered_by(await lease.acquire(rest.lease_keys))
            if lapsed:
                await self._ask_unless_stored(request.only(lapsed))
                fetched = set(lapsed)
                keys = [key for key in keys if key not in fetched]

    async def _settle_stored(self, request: FetchRequest) -> dict[bytes, Entry]:
        stored = await self._cache.read(request.keys, min_stored_at_s=request.policy.min_stored_at_s)
        self._claim.settle(stored)
        return stored

    async def _ask(self, request: FetchRequest) -> None:
        """Ask the upstream for leased keys, if the client's budgets allow it: for all of them or for none."""
        client_request = request.client_request
        reservation = None
        if self._spending.has_budgets and request.keys and request.policy.is_budgeted:
            try:
                reservation = await self._spending.reserve(
                    client_request.client,
                    client_request.spec.model,
                    request.tokens,
                    until_s=client_request.limit_wait.deadline_s or None,
                )
            except (BudgetSpent, BudgetUnknown) as error:
                self._settle_failed(request, request.keys, error)
                return
        try:
            await self._ask_now(request)
        finally:
            if reservation is not None:
                reservation.release()

    async def _ask_now(self, request: FetchRequest) -> None:
        """Ask the upstream for leased keys, in as few calls as its limits allow."""
        if len(request.keys) > KEYS_A_TURN:
            await turn()  # requests of several clients that miss together would write their bodies in one iteration
        parts = self._batcher.split(request)
        if len(parts) == 1:
            await self._ask_part(parts[0])
            return
        async with asyncio.TaskGroup() as tasks:
            for part in parts:
                tasks.create_task(self._ask_part_in_turn(part))

    async def _ask_part_in_turn(self, part: FetchRequest) -> None:
        await turn()  # the bodies of all parts may take tens of milliseconds to write
        await self._ask_part(part)

    async def _ask_part(self, part: FetchRequest) -> None:
        outcome: Outcome | ProxyError
        try:
            outcome = await self._batcher.submit(part, self._wait)
        except ProxyError as error:
            outcome = error
        if isinstance(outcome, Oversized):
            await self._ask_now(part)  # now that the batcher knows what the upstream takes
            return
        if self._spending.has_budgets:
            await self._spending.reported(part.client_request.client, part.client_request.spec.model)
        if not isinstance(outcome, EmbedResult):
            self._settle_failed(part, part.keys, outcome)
            return
        self.deliveries.append(outcome)
        entries = outcome.entries
        self.asked.update(entries)
        async for some in in_turns(list(entries.items()), size=FEW_KEYS):
            self._claim.settle(dict(some))
        if outcome.unusable is not None:
            unusable = [key for key in part.keys if key not in entries]
            await self._settle_unusable(part, unusable, outcome.unusable)

    def _settle_failed(self, part: FetchRequest, keys: list[bytes], cause: CallFailure) -> None:
        self._claim.settle(dict.fromkeys(keys, Failure(cause, part, reader=part.client_request)))

    async def _settle_unusable(self, part: FetchRequest, keys: list[bytes], cause: InvalidResponse) -> None:
        """Settle items whose vectors can't be stored.

        The response to the client's own body is relayed. Otherwise each of the items is asked for alone, and what the
        upstream then writes in place of its embedding counts.
        """
        if part.is_whole:
            self._settle_failed(part, keys, cause)
            return
        async with asyncio.TaskGroup() as tasks:
            for key in keys:
                tasks.create_task(self._ask_part(part.alone(key)))
