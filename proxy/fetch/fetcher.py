"""Gets what is not cached from the upstream: each item once, however many requests and replicas want it.

A fetch belongs to itself, not to the request that began it: a client that leaves cancels nothing others wait for.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from multidict import CIMultiDict

from proxy.access.validations import CredentialId, CredentialScope, Validations
from proxy.budget import Tenant
from proxy.cache.cache import Cache
from proxy.cache.lease import Lease
from proxy.cache.memory import Entry
from proxy.errors import ProxyError
from proxy.fetch.batch_entry import BatchEntry
from proxy.fetch.batcher import Batcher
from proxy.fetch.outcomes import (
    Blame,
    CallFailure,
    EmbedResult,
    ErrorResponse,
    InvalidResponse,
    Outcome,
    blame,
    is_about_credential,
    is_success,
    is_verdict,
    status_of,
    without_quotes,
)
from proxy.fetch.singleflight import Claim, Flights
from proxy.protocol import embedding_request
from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.records import Record
from proxy.telemetry.tracing import NO_SPAN, Span
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.router import Origin
from proxy.worker_thread import Reservation

_log = logging.getLogger(__name__)

# How often a key that another replica fetches is looked for: at first, and at most.
_POLL_S, _MAX_POLL_S = 0.005, 0.1
ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """What one request wants fetched: distinct ``keys``, and at the same places the items they stand for."""

    asked: EmbeddingRequest
    origin: Origin
    target: str
    headers: CIMultiDict[str]
    group: bytes
    tenant: Tenant
    credential_id: CredentialId
    reservation: Reservation  # the memory that the request takes
    credential_scope: CredentialScope
    keys: list[bytes]
    items: list[Any]
    is_whole: bool  # these are all the items of the client's body, in its order
    min_stored_at_s: float  # what another replica stored earlier than this will not do
    is_shared: bool = True  # False: must be fetched anew, whoever else is fetching
    is_stored: bool = True
    overwrite: bool = False
    may_merge: bool = True
    span: Span = NO_SPAN  # of the request

    def part(self, run: slice) -> "FetchRequest":
        whole = self.is_whole and len(self.keys[run]) == len(self.keys)
        return replace(self, keys=self.keys[run], items=self.items[run], is_whole=whole)

    def only(self, keys: list[bytes]) -> "FetchRequest":
        if len(keys) == len(self.keys) or (keys and self.asked.is_keyed_whole):
            return self
        items = dict(zip(self.keys, self.items, strict=True))
        return replace(self, keys=keys, items=[items[key] for key in keys], is_whole=False)

    @property
    def lease_keys(self) -> list[bytes]:
        """What to lease: what is keyed as a whole is fetched as a whole, so its first key stands for all of them."""
        return self.keys[:1] if self.asked.is_keyed_whole else self.keys

    def covered_by(self, leased: list[bytes]) -> list[bytes]:
        """The keys that may be fetched under leases on ``leased``, which are some of `lease_keys`."""
        return self.keys if leased and self.asked.is_keyed_whole else leased

    def entry(self) -> BatchEntry:
        return BatchEntry(
            group=self.group,
            tenant=self.tenant,
            credential_id=self.credential_id,
            origin=self.origin,
            target=self.target,
            headers=self.headers,
            asked=self.asked,
            items=self.items,
            body=self.asked.body if self.is_whole else embedding_request.reduced_body(self.asked, self.items),
            may_merge=self.may_merge,
            span=self.span,
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a key could not be fetched, and the ``call`` that failed; None for what failed without one."""

    cause: CallFailure
    call: FetchRequest | None = None

    @property
    def is_verdict(self) -> bool:
        return is_verdict(self.cause)

    @property
    def is_answer(self) -> bool:
        """Whether the upstream answered no, be it to the credential or to what was asked, and is not out of order."""
        return (
            not isinstance(self.cause, ProxyError)
            and blame(self.cause) is Blame.CALL
            and not is_success(status_of(self.cause.answer))
        )

    @property
    def confirms(self) -> bool:
        """Whether the upstream took the credential all the same."""
        return isinstance(self.cause, InvalidResponse) and self.cause.confirms

    def is_for(self, errand: FetchRequest) -> bool:
        """Whether retrying independently would give this waiter the same failure."""
        match blame(self.cause):
            case Blame.EVERYBODY:
                return (
                    not is_about_credential(self.cause)
                    or (self.call and self.call.credential_id) == errand.credential_id
                )
            case Blame.CALL:
                return self._is_as_if_by(errand)
            case Blame.UNKNOWN:
                return self._is_for_items_of(errand)

    def told_to(self, errand: FetchRequest) -> "Failure":
        """As a waiter gets it that did not make the call."""
        if not self._is_as_if_by(errand):
            return replace(self, cause=without_quotes(self.cause))
        if isinstance(self.cause, ErrorResponse):
            return replace(self, cause=replace(self.cause, answer=self.cause.answer.without_cookies()))
        return self

    def _is_for_items_of(self, errand: FetchRequest) -> bool:
        """Whether the call was for nothing but items of ``errand``, and said the same of them."""
        call = self.call
        return call is not None and call.group == errand.group and set(call.keys).issubset(errand.keys)

    def _is_as_if_by(self, errand: FetchRequest) -> bool:
        """Whether the call said nothing that ``errand`` does not say: the upstream's words may quote all of it."""
        call = self.call
        return (
            call is not None
            and call.credential_id == errand.credential_id
            and call.headers == errand.headers
            and self._is_for_items_of(errand)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult:
    """What became of an errand: ``entries`` of its keys, or ``unusable`` responses to items asked alone, each with what
    stands for the item's embedding; unless there is a ``failure``."""

    entries: dict[bytes, Entry]
    asked: frozenset[bytes]  # the keys that were asked of the upstream for this errand, and billed
    deliveries: list[EmbedResult]
    failure: Failure | None
    unusable: dict[bytes, InvalidResponse] = field(default_factory=dict)

    def after(self, first: "FetchResult") -> "FetchResult":
        """Both as one; what failed last counts."""
        return FetchResult(
            entries=first.entries | self.entries,
            asked=first.asked | self.asked,
            deliveries=first.deliveries + self.deliveries,
            failure=self.failure,
            unusable=first.unusable | self.unusable,
        )

    @property
    def is_by_origin(self) -> bool:
        """Whether the upstream itself answered 2xx, and not only one that stood in for it."""
        return any(receipt.by_origin for receipt in self.deliveries) or any(
            answer.confirms for answer in self.unusable.values()
        )

    @property
    def settled(self) -> set[bytes]:
        """The keys that need not be asked for any more."""
        return self.entries.keys() | self.unusable.keys()

    @property
    def bill(self) -> "FetchResult":
        """What it cost, without what came of it."""
        return replace(NOTHING, deliveries=self.deliveries)


NOTHING = FetchResult(entries={}, asked=frozenset(), deliveries=[], failure=None)

FlightResult = Entry | Failure


def _stands_for_item(cause: CallFailure, errand: FetchRequest) -> TypeGuard[InvalidResponse]:
    """Whether a response says what stands for an item's embedding, and is not the one to the client's own body, which
    is relayed. All items of a body may be asked for in several calls."""
    return isinstance(cause, InvalidResponse) and cause.embedding is not None and cause.body != errand.asked.body


class Usage:
    """What a fetch was billed for. It is written before the keys are settled."""

    def __init__(self) -> None:
        self.deliveries: list[EmbedResult] = []
        self.asked: set[bytes] = set()


class Fetcher:
    def __init__(
        self,
        cache: Cache,
        batcher: Batcher,
        validations: Validations,
        *,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._validations = validations
        self._patience_s = timeout_s  # how long another replica is waited for
        self._batcher = batcher
        self._clock = clock
        self._flights: Flights[FlightResult] = Flights()
        self._fetches: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Fetcher {self._flights!r}, {self._batcher!r}>"

    async def fetch(self, errand: FetchRequest, *, attempt: int = 1) -> FetchResult:
        """Fetch an errand's keys, or wait for those who do.

        The caller must have looked into memory since its last await (see `Flights.claim`).
        """
        # The last attempt is made apart, so that nobody's mistake but the client's own can be its end.
        is_shared = errand.is_shared and attempt < ATTEMPTS
        flights: Flights[FlightResult] = self._flights if is_shared else Flights()
        claim = flights.claim(errand.keys)
        usage = Usage()
        if claim.mine:
            self._start(errand.only(list(claim.mine)), claim, usage)
        with errand.span.flight(items=len(claim.flights), joined=len(claim.flights) - len(claim.mine)):
            # This does not cancel the flights when whoever waits here is cancelled.
            await asyncio.wait(claim.flights.values())
        entries, unusable, foreign, failure = {}, {}, [], None
        for key, flight in claim.flights.items():
            landed = flight.result()
            if isinstance(landed, Entry):
                entries[key] = landed.standing  # while others were waited for, the store may have named another winner
            elif not (key in claim.mine or landed.is_for(errand)):
                foreign.append(key)
            elif _stands_for_item(landed.cause, errand):
                unusable[key] = landed.cause
            else:
                failure = landed if key in claim.mine else failure or landed.told_to(errand)
        fetched = FetchResult(
            entries=entries,
            asked=frozenset(usage.asked),
            deliveries=usage.deliveries,
            failure=failure,
            unusable=unusable,
        )
        if failure is not None or not foreign:
            return fetched
        # What is left failed for its leaders' reasons. This request leads it itself; but another that was quicker to do
        # so may be through by now.
        entries |= self._cache.peek(foreign, min_stored_at_s=errand.min_stored_at_s)
        rest = [key for key in foreign if key not in entries]
        if not rest:
            return fetched
        again = await self.fetch(errand.only(rest), attempt=attempt + 1)
        return again.after(fetched)

    def takes_retry(self, origin: Origin) -> bool:
        """Whether `replay` may be tried after a failure that may be an outage."""
        return self._batcher.takes_retry(origin)

    async def replay(self, errand: FetchRequest) -> UpstreamResponse:
        """The upstream's response to the client's own body, to be relayed. Raises `ProxyError`."""
        asked_at_s = self._validations.now()
        answer, by_origin = await self._batcher.replay(errand.entry())
        if by_origin:
            self._judge(errand, answer, asked_at_s)
        return answer

    async def drain(self) -> None:
        """Wait for the fetches under way, those included for which nobody waits any more; cancelled, cancel them."""
        try:
            while self._fetches:
                await asyncio.wait(self._fetches)
        finally:
            self._batcher.abandon()
            for fetch in self._fetches:
                fetch.cancel()

    def _start(self, errand: FetchRequest, claim: Claim[FlightResult], usage: Usage) -> None:
        fetch = asyncio.create_task(self._fly(errand, claim, usage))
        self._fetches.add(fetch)
        errand.reservation.lasts_until(fetch)
        fetch.add_done_callback(self._ended)

    def _ended(self, fetch: "asyncio.Task[None]") -> None:
        self._fetches.discard(fetch)
        if not fetch.cancelled() and (error := fetch.exception()) is not None:
            _log.error("unexpected error in a fetch", exc_info=error)

    async def _fly(self, errand: FetchRequest, claim: Claim[FlightResult], usage: Usage) -> None:
        """Fetch claimed keys; every exit settles every one of them."""
        try:
            if not errand.is_shared:
                await self._ask(errand, claim, usage)
                return
            async with self._cache.leasing() as lease:
                ours = errand.covered_by(await lease.acquire(errand.lease_keys))
                granted = set(ours)
                others = [key for key in errand.keys if key not in granted]
                ask = self._ask_unless_stored if lease.is_real else self._ask
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(ask(errand.only(ours), claim, usage))
                    tasks.create_task(self._await_others(errand.only(others), claim, usage, lease))
        finally:
            lost = Failure(ProxyError("The fetch was abandoned."))
            for key in errand.keys:
                claim.settle(key, lost)

    async def _ask_unless_stored(self, errand: FetchRequest, claim: Claim[FlightResult], usage: Usage) -> None:
        """Look once more: between the look before and the lease, another replica may have stored what it fetched."""
        stored = await self._settle_stored(errand, claim)
        await self._ask(errand.only([key for key in errand.keys if key not in stored]), claim, usage)

    async def _await_others(self, errand: FetchRequest, claim: Claim[FlightResult], usage: Usage, lease: Lease) -> None:
        """Wait for keys that other replicas fetch; whatever they give up or let lapse is fetched here."""
        keys, pause_s = errand.keys, _POLL_S
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        while keys:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_POLL_S)
            stored = await self._settle_stored(errand.only(keys), claim)
            keys = [key for key in keys if key not in stored]
            lapsed = keys
            if keys and loop.time() <= deadline:
                rest = errand.only(keys)
                lapsed = rest.covered_by(await lease.acquire(rest.lease_keys))
            if lapsed:
                await self._ask_unless_stored(errand.only(lapsed), claim, usage)
                fetched = set(lapsed)
                keys = [key for key in keys if key not in fetched]

    async def _settle_stored(self, errand: FetchRequest, claim: Claim[FlightResult]) -> dict[bytes, Entry]:
        stored = await self._cache.read(errand.keys, min_stored_at_s=errand.min_stored_at_s)
        for key, entry in stored.items():
            claim.settle(key, entry)
        return stored

    async def _ask(self, errand: FetchRequest, claim: Claim[FlightResult], usage: Usage) -> None:
        """Ask the upstream for keys that are ours, in as few calls as its limits allow."""
        parts = [errand] if errand.keys else []
        if not errand.asked.is_keyed_whole:
            parts = [errand.part(run) for run in self._batcher.split(errand.origin, errand.asked, errand.items)]
        async with asyncio.TaskGroup() as tasks:
            for part in parts:
                tasks.create_task(self._ask_part(part, claim, usage))

    async def _ask_part(self, part: FetchRequest, claim: Claim[FlightResult], usage: Usage) -> None:
        outcome: Outcome | ProxyError
        asked_at_s = self._validations.now()
        try:
            outcome = await self._batcher.submit(part.entry())
        except ProxyError as error:
            outcome = error
        self._note(part, outcome, asked_at_s)
        if not isinstance(outcome, EmbedResult):
            self._settle_failed(part, part.keys, outcome, claim)
            return
        usage.deliveries.append(outcome)
        good = [key for key, vector in zip(part.keys, outcome.vectors, strict=True) if vector is not None]
        usage.asked.update(good)
        # Into memory first, then to those who wait: whoever finds no flight finds the entry.
        for key, entry in (await self._keep(part, outcome)).items():
            claim.settle(key, entry)
        if outcome.unusable is not None:
            spoilt = [key for key, vector in zip(part.keys, outcome.vectors, strict=True) if vector is None]
            await self._settle_unusable(part, spoilt, outcome.unusable, claim, usage)

    def _settle_failed(
        self, part: FetchRequest, keys: list[bytes], cause: CallFailure, claim: Claim[FlightResult]
    ) -> None:
        failure = Failure(cause, part)
        for key in keys:
            claim.settle(key, failure)

    async def _settle_unusable(
        self, part: FetchRequest, keys: list[bytes], unusable: InvalidResponse, claim: Claim[FlightResult], usage: Usage
    ) -> None:
        """Settle items whose vectors can't be stored. The response to the client's own body is relayed; of any other,
        what stands for such an item counts only once it has been asked alone."""
        if part.is_whole:
            self._settle_failed(part, keys, unusable, claim)
            return
        async with asyncio.TaskGroup() as tasks:
            for key in keys:
                alone = replace(part.only([key]), may_merge=False)
                tasks.create_task(self._ask_part(alone, claim, usage))

    def _note(self, part: FetchRequest, outcome: Outcome | ProxyError, asked_at_s: float) -> None:
        """Record what the response says of the credential, even if the client has disconnected."""
        match outcome:
            case EmbedResult(by_origin=True):
                self._validations.confirm(part.credential_id, part.credential_scope, asked_at_s=asked_at_s)
            case InvalidResponse() if outcome.confirms:
                self._validations.confirm(part.credential_id, part.credential_scope, asked_at_s=asked_at_s)
            case ErrorResponse() | InvalidResponse() if is_verdict(outcome):
                self._validations.note(part.credential_id, part.credential_scope, status_of(outcome.answer))

    def _judge(self, errand: FetchRequest, answer: UpstreamResponse, asked_at_s: float) -> None:
        """The same of a response to the client's own body."""
        status = status_of(answer)
        if is_success(status):
            self._validations.confirm(errand.credential_id, errand.credential_scope, asked_at_s=asked_at_s)
        else:
            self._validations.note(errand.credential_id, errand.credential_scope, status)

    async def _keep(self, part: FetchRequest, delivered: EmbedResult) -> Mapping[bytes, Entry]:
        now = int(self._clock())
        records = {
            key: Record(
                vector=vector,
                model=delivered.model,
                tokens=tokens,
                tokens_exact=len(part.keys) == 1 and delivered.is_exact,
                stored_at_s=now,
            )
            for key, vector, tokens in zip(part.keys, delivered.vectors, delivered.tokens, strict=True)
            if vector is not None
        }
        if not part.is_stored:
            return {key: Entry(record) for key, record in records.items()}
        return await self._cache.write(records, overwrite=part.overwrite)
