"""Gets what is not cached from the upstream: each item once, however many requests and replicas want it.

A fetch belongs to itself, not to the request that began it: a client that leaves cancels nothing others wait for.
"""

import asyncio
import logging
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

_log = logging.getLogger(__name__)

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


_NOTHING_FETCHED = Fetched(entries={}, own=frozenset(), receipts=[], failure=None)
_Landed = Entry | Failure


class Fetcher:
    def __init__(self, cache: Cache, batcher: Batcher, *, clock: Callable[[], float]) -> None:
        self._cache = cache
        self._batcher = batcher
        self._clock = clock
        self._flights: Flights[_Landed] = Flights()
        self._fetches: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Fetcher {self._flights!r}, {self._batcher!r}>"

    async def fetch(self, errand: Errand, *, is_retry: bool = False) -> Fetched:
        """Fetch an errand's keys, or wait for those who do.

        The caller must have looked into memory since its last await (see `Flights.claim`).
        """
        flights: Flights[_Landed] = self._flights if errand.is_shared else Flights()
        claim = flights.claim(errand.keys)
        receipts: list[Delivered] = []
        if claim.mine:
            self._start(errand.only(list(claim.mine)), claim, receipts)
        # This does not cancel the flights when whoever waits here is cancelled.
        await asyncio.wait(claim.flights.values())
        landed = {key: flight.result() for key, flight in claim.flights.items()}
        failed = {key: result for key, result in landed.items() if isinstance(result, Failure)}
        fetched = Fetched(
            entries={key: result for key, result in landed.items() if isinstance(result, Entry)},
            own=frozenset(claim.mine),
            receipts=receipts,
            failure=next(iter(failed.values()), None),
        )
        others_own = [key for key, failure in failed.items() if key not in fetched.own and not failure.is_everybodys]
        if is_retry or len(others_own) < len(failed) or not others_own:
            return fetched
        # All that failed, failed for a leader's reasons. Once, this request leads them itself; but another that was
        # quicker to do so may be through by now.
        found = self._cache.peek(others_own, not_before=errand.not_before)
        rest = [key for key in others_own if key not in found]
        again = await self.fetch(errand.only(rest), is_retry=True) if rest else _NOTHING_FETCHED
        return Fetched(
            entries=fetched.entries | found | again.entries,
            own=fetched.own | again.own,
            receipts=fetched.receipts + again.receipts,
            failure=again.failure,
        )

    async def drain(self) -> None:
        """Wait for the fetches under way, those included for which nobody waits any more."""
        while self._fetches:
            await asyncio.wait(self._fetches)

    def _start(self, errand: Errand, claim: Claim[_Landed], receipts: list[Delivered]) -> None:
        fetch = asyncio.create_task(self._fly(errand, claim, receipts))
        self._fetches.add(fetch)
        fetch.add_done_callback(self._ended)

    def _ended(self, fetch: "asyncio.Task[None]") -> None:
        self._fetches.discard(fetch)
        if not fetch.cancelled() and (error := fetch.exception()) is not None:
            _log.error("a fetch failed in a way nobody thought of", exc_info=error)

    async def _fly(self, errand: Errand, claim: Claim[_Landed], receipts: list[Delivered]) -> None:
        """Fetch claimed keys; every exit settles every one of them. A receipt is there before its keys are settled."""
        try:
            if not errand.is_shared:
                await self._ask(errand, claim, receipts)
                return
            async with self._cache.leasing() as lease:
                ours = await lease.acquire(errand.keys)
                others = [key for key in errand.keys if key not in ours]
                await asyncio.gather(
                    self._ask_unless_stored(errand.only(ours), claim, receipts),
                    self._await_others(errand.only(others), claim, receipts, lease),
                )
        finally:
            lost = Failure(ProxyError("The fetch was abandoned."))
            for key in errand.keys:
                claim.settle(key, lost)

    async def _ask_unless_stored(self, errand: Errand, claim: Claim[_Landed], receipts: list[Delivered]) -> None:
        """Look once more: between the look before and the lease, another replica may have stored what it fetched."""
        stored = await self._settle_stored(errand, claim)
        await self._ask(errand.only([key for key in errand.keys if key not in stored]), claim, receipts)

    async def _await_others(
        self, errand: Errand, claim: Claim[_Landed], receipts: list[Delivered], lease: Lease
    ) -> None:
        """Wait for keys that other replicas fetch; whatever they give up or let lapse is fetched here."""
        keys, pause_s = errand.keys, _POLL_S
        while keys:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_POLL_S)
            stored = await self._settle_stored(errand.only(keys), claim)
            keys = [key for key in keys if key not in stored]
            if lapsed := await lease.acquire(keys):
                await self._ask_unless_stored(errand.only(lapsed), claim, receipts)
                keys = [key for key in keys if key not in lapsed]

    async def _settle_stored(self, errand: Errand, claim: Claim[_Landed]) -> dict[bytes, Entry]:
        stored = await self._cache.read(errand.keys, not_before=errand.not_before)
        for key, entry in stored.items():
            claim.settle(key, entry)
        return stored

    async def _ask(self, errand: Errand, claim: Claim[_Landed], receipts: list[Delivered]) -> None:
        """Ask the upstream for keys that are ours, in as few calls as its limits allow."""
        parts = [errand.part(run) for run in self._batcher.split(errand.asked, errand.items)]
        await asyncio.gather(*(self._ask_part(part, claim, receipts) for part in parts))

    async def _ask_part(self, part: Errand, claim: Claim[_Landed], receipts: list[Delivered]) -> None:
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
            receipts.append(outcome)
            # Into memory first, then to those who wait: whoever finds no flight finds the entry.
            landed = await self._keep(part, outcome)
        else:
            landed = dict.fromkeys(part.keys, Failure(outcome))
        for key, result in landed.items():
            claim.settle(key, result)

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
