"""Gets what is not cached from the upstream: each item once, however many requests and replicas want it.

A fetch belongs to itself, not to the request that began it: a client that leaves cancels nothing others wait for.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from multidict import CIMultiDict

from proxy import wire
from proxy.batcher import Batcher, Delivered, Outcome, Refused, Share, Unusable
from proxy.errors import ProxyError
from proxy.flight import Claim, Flights
from proxy.record import Record
from proxy.store.memory import Entry
from proxy.store.tiered import Cache, Lease
from proxy.wire import EmbeddingRequest

# How often a key that another replica fetches is looked for: at first, and at most.
_POLL_S, _MAX_POLL_S = 0.005, 0.1
_TOO_MANY_REQUESTS, _SERVER_ERROR = 429, 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What one request wants fetched: distinct ``keys``, and at the same places the items they stand for."""

    asked: EmbeddingRequest
    url: str
    headers: CIMultiDict[str]
    group: bytes
    keys: list[bytes]
    items: list[Any]
    is_whole: bool  # these are all the items of the client's body, in its order
    not_before: float  # what another replica stored earlier than this will not do
    is_shared: bool = True  # False: must be fetched anew, whoever else is fetching
    is_stored: bool = True
    overwrite: bool = False

    def part(self, run: slice) -> "Errand":
        whole = self.is_whole and len(self.keys[run]) == len(self.keys)
        return replace(self, keys=self.keys[run], items=self.items[run], is_whole=whole)

    def only(self, keys: list[bytes]) -> "Errand":
        if len(keys) == len(self.keys):
            return self
        items = dict(zip(self.keys, self.items, strict=True))
        return replace(self, keys=keys, items=[items[key] for key in keys], is_whole=False)

    def body(self) -> bytes:
        return self.asked.body if self.is_whole else wire.reduced_body(self.asked, self.items)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a key could not be fetched."""

    cause: Refused | Unusable | ProxyError

    @property
    def is_everybodys(self) -> bool:
        """Whether a waiter would fare no better by itself. A 4xx may be about the leader: its key, its other items."""
        match self.cause:
            case Refused(answer):
                return answer.status == _TOO_MANY_REQUESTS or answer.status >= _SERVER_ERROR
            case ProxyError():
                return True
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What became of an errand: ``entries`` of its keys, unless there is a ``failure``."""

    entries: dict[bytes, Entry]
    own: frozenset[bytes]  # the keys that were asked of the upstream for this errand, and billed
    receipts: list[Delivered]
    failure: Failure | None


_Landed = Entry | Failure


class Fetcher:
    def __init__(self, cache: Cache, batcher: Batcher, *, clock: Callable[[], float]) -> None:
        self._cache = cache
        self._batcher = batcher
        self._clock = clock
        self._flights: Flights[_Landed] = Flights()
        self._fetches: set[asyncio.Task[list[Delivered]]] = set()

    def __repr__(self) -> str:
        return f"<Fetcher {self._flights!r}, {self._batcher!r}>"

    async def fetch(self, errand: Errand, *, is_retry: bool = False) -> Fetched:
        """Fetch an errand's keys, or wait for those who do.

        The caller must have looked into memory since its last await (see `Flights.claim`).
        """
        flights: Flights[_Landed] = self._flights if errand.is_shared else Flights()
        claim = flights.claim(errand.keys)
        # Neither the flights nor the fetch are cancelled with whoever waits here.
        under_way: set[asyncio.Future[Any]] = set(claim.flights.values())
        fetch = self._start(errand.only(list(claim.mine)), claim) if claim.mine else None
        if fetch is not None:
            under_way.add(fetch)
        await asyncio.wait(under_way)
        landed = {key: flight.result() for key, flight in claim.flights.items()}
        failed = {key: result for key, result in landed.items() if isinstance(result, Failure)}
        fetched = Fetched(
            entries={key: result for key, result in landed.items() if isinstance(result, Entry)},
            own=frozenset(claim.mine),
            receipts=fetch.result() if fetch else [],
            failure=next(iter(failed.values()), None),
        )
        others_own = [key for key, failure in failed.items() if key not in fetched.own and not failure.is_everybodys]
        if is_retry or len(others_own) < len(failed) or not others_own:
            return fetched
        # All that failed, failed for a leader's reasons. Once, this request leads them itself.
        again = await self.fetch(errand.only(others_own), is_retry=True)
        return Fetched(
            entries=fetched.entries | again.entries,
            own=fetched.own | again.own,
            receipts=fetched.receipts + again.receipts,
            failure=again.failure,
        )

    async def drain(self) -> None:
        """Wait for the fetches under way, those included for which nobody waits any more."""
        while self._fetches:
            await asyncio.wait(self._fetches)

    def _start(self, errand: Errand, claim: Claim[_Landed]) -> "asyncio.Task[list[Delivered]]":
        fetch = asyncio.create_task(self._fly(errand, claim))
        self._fetches.add(fetch)
        fetch.add_done_callback(self._fetches.discard)
        return fetch

    async def _fly(self, errand: Errand, claim: Claim[_Landed]) -> list[Delivered]:
        """Fetch claimed keys; every exit settles every one of them."""
        try:
            if not errand.is_shared:
                return await self._ask(errand, claim)
            async with self._cache.leasing() as lease:
                ours = await lease.acquire(errand.keys)
                others = [key for key in errand.keys if key not in ours]
                receipts, later = await asyncio.gather(
                    self._ask_unless_stored(errand.only(ours), claim),
                    self._await_others(errand.only(others), claim, lease),
                )
            return receipts + later
        finally:
            lost = Failure(ProxyError("The fetch was abandoned."))
            for key in errand.keys:
                claim.settle(key, lost)

    async def _ask_unless_stored(self, errand: Errand, claim: Claim[_Landed]) -> list[Delivered]:
        """Look once more: between the look before and the lease, another replica may have stored what it fetched."""
        stored = await self._settle_stored(errand, claim)
        return await self._ask(errand.only([key for key in errand.keys if key not in stored]), claim)

    async def _await_others(self, errand: Errand, claim: Claim[_Landed], lease: Lease) -> list[Delivered]:
        """Wait for keys that other replicas fetch; whatever they give up or let lapse is fetched here."""
        receipts: list[Delivered] = []
        keys, pause_s = errand.keys, _POLL_S
        while keys:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_POLL_S)
            stored = await self._settle_stored(errand.only(keys), claim)
            keys = [key for key in keys if key not in stored]
            if lapsed := await lease.acquire(keys):
                receipts += await self._ask_unless_stored(errand.only(lapsed), claim)
                keys = [key for key in keys if key not in lapsed]
        return receipts

    async def _settle_stored(self, errand: Errand, claim: Claim[_Landed]) -> dict[bytes, Entry]:
        stored = await self._cache.read(errand.keys, not_before=errand.not_before)
        for key, entry in stored.items():
            claim.settle(key, entry)
        return stored

    async def _ask(self, errand: Errand, claim: Claim[_Landed]) -> list[Delivered]:
        """Ask the upstream for keys that are ours, in as few calls as its limits allow."""
        parts = [errand.part(run) for run in self._batcher.split(errand.asked, errand.items)]
        receipts = await asyncio.gather(*(self._ask_part(part, claim) for part in parts))
        return [receipt for receipt in receipts if receipt is not None]

    async def _ask_part(self, part: Errand, claim: Claim[_Landed]) -> Delivered | None:
        share = Share(
            group=part.group,
            url=part.url,
            headers=part.headers,
            asked=part.asked,
            items=part.items,
            body=part.body(),
        )
        outcome: Outcome | ProxyError
        try:
            outcome = await self._batcher.submit(share)
        except ProxyError as error:
            outcome = error
        landed: Mapping[bytes, _Landed]
        if isinstance(outcome, Delivered):
            # Into memory first, then to those who wait: whoever finds no flight finds the entry.
            landed = await self._keep(part, outcome)
        else:
            landed = dict.fromkeys(part.keys, Failure(outcome))
        for key, result in landed.items():
            claim.settle(key, result)
        return outcome if isinstance(outcome, Delivered) else None

    async def _keep(self, part: Errand, delivered: Delivered) -> Mapping[bytes, Entry]:
        now = int(self._clock())
        records = {
            key: Record(
                vector=vector,
                model=delivered.model or part.asked.model,
                tokens=tokens,
                tokens_exact=len(part.keys) == 1 and delivered.is_exact,
                stored_at_s=now,
            )
            for key, vector, tokens in zip(part.keys, delivered.vectors, delivered.tokens, strict=True)
        }
        if not part.is_stored:
            return {key: Entry(record) for key, record in records.items()}
        return await self._cache.write(records, overwrite=part.overwrite)
