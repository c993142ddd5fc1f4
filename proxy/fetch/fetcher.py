"""Fetches missing items from the upstream: each item once, however many requests and replicas ask for it.

A fetch is independent of the request that started it: a client that disconnects cancels nothing that others wait for.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import TypeGuard

from proxy.access.validations import Validations
from proxy.cache.cache import Cache
from proxy.cache.entry import Entry, current
from proxy.cache.store import Purge
from proxy.errors import Abandoned, ProxyError
from proxy.fetch.batcher import Batcher
from proxy.fetch.client_wait import ClientWait
from proxy.fetch.held import GivenUp
from proxy.fetch.leader import Leader
from proxy.fetch.outcomes import CallFailure, InvalidResponse, is_success, status_of
from proxy.fetch.request import ClientRequest, FetchRequest
from proxy.fetch.result import NOTHING, Failure, FetchResult, FlightResult
from proxy.fetch.singleflight import Claim, Flights
from proxy.fetch.spending import Spending
from proxy.tasks import TaskSet, log_to
from proxy.turns import are_many, in_turns, turn
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.router import Origin

_log = logging.getLogger(__name__)

ATTEMPTS = 3
# Of the time in which the proxy stops, the part in which requests may still wait for a rate limit.
_HELD_PART = 0.5
CLAIMED_A_TURN = 256  # keys, in a fifth of a millisecond
_LEFT = Failure(Abandoned("Another credential's rate limit holds it."))
_UNSENT = Failure(Abandoned("The client has disconnected."))
_ABANDONED = Failure(ProxyError("The fetch was abandoned."))


class Fetcher:
    def __init__(
        self,
        cache: Cache,
        batcher: Batcher,
        validations: Validations,
        *,
        timeout_s: float,
        spending: Spending,
        shares_all: bool,
    ) -> None:
        """``timeout_s``: how long to wait for another replica. ``shares_all``: clients with different credentials have
        entries in common."""
        self._cache = cache
        self._validations = validations
        self._timeout_s = timeout_s
        self._batcher = batcher
        self.spending = spending
        self._shares_all = shares_all
        self._flights: Flights[FlightResult] = Flights()
        self._fetches = TaskSet(log_to(_log, "a fetch"))
        cache.feed.on_purge(self._on_purge)

    def __repr__(self) -> str:
        return f"<Fetcher {self._flights!r}, {self._batcher!r}>"

    async def fetch(self, request: FetchRequest) -> FetchResult:
        """Fetch the keys of a request, or wait for other requests that already fetch them."""
        fetched, attempt = NOTHING, 1
        left: dict[bytes, asyncio.Future[FlightResult]] = {}
        while True:
            step, foreign = await self._attempt(request, attempt=attempt, left=left)
            fetched = step if fetched is NOTHING else step.after(fetched)
            if step.failure is not None or not foreign:
                return fetched
            # These failed for reasons that concern other requests. This one retries them, unless another was quicker.
            request = request.only(list(foreign))
            # A disconnected client's failure does not count as an attempt. The loop ends: such clients are finite.
            attempt += not all(isinstance(failure.cause, Abandoned) for failure in foreign.values())

    async def _attempt(
        self, request: FetchRequest, *, attempt: int, left: dict[bytes, "asyncio.Future[FlightResult]"]
    ) -> tuple[FetchResult, dict[bytes, Failure]]:
        """The results of a request's keys, and failures of keys that concern other requests.

        The flights in ``left`` are not joined; those that the request leaves now are added.
        """
        if are_many(request.keys):
            await turn()
        # The last attempt joins no flight, so that it can fail for no other reason than this client's own.
        may_join = request.policy.may_join and attempt < ATTEMPTS
        flights: Flights[FlightResult] = self._flights if may_join else Flights()
        in_memory, claim = await self._claimed(request, flights, left)
        if in_memory:
            request = request.only([key for key in request.keys if key not in in_memory])
        if not request.keys:
            return FetchResult(entries=in_memory), {}
        for key in left.keys() & claim.mine.keys():
            claim.mine[key].add_done_callback(partial(_settle_as_well, left[key]))
        wait = ClientWait(request.client_request, claim)
        leader = Leader(
            self._cache,
            self._batcher,
            wait,
            timeout_s=self._timeout_s,
            spending=self.spending,
            lends=self._shares_all and request.client_request.origin.key is None,
        )
        if claim.mine:
            fetch = self._fetches.start(leader.fetch(request.only(list(claim.mine))))
            # However it ends, even if it is cancelled before its first step.
            fetch.add_done_callback(lambda _: claim.settle_rest(_ABANDONED))
            request.client_request.reservation.lasts_until(fetch)
        with request.client_request.span.flight(items=len(claim.flights), joined=len(claim.flights) - len(claim.mine)):
            given_up = await self._batcher.wait(wait)
        if given_up is not None:
            return FetchResult(failure=_refusal(given_up, request)), {}
        left |= wait.left
        if are_many(request.keys):
            await turn()
        fetched, foreign = _collected(request, claim, leader)
        if in_memory:
            fetched = fetched.after(FetchResult(entries=in_memory))
        return fetched, foreign

    def _on_purge(self, purge: Purge) -> None:
        """Later requests must not get what was asked for before the purge. The model of a flight is not known yet."""
        self._flights.detach(lambda key: bool(purge.models) or key in purge.keys)

    async def _claimed(
        self, request: FetchRequest, flights: Flights[FlightResult], left: dict[bytes, "asyncio.Future[FlightResult]"]
    ) -> tuple[dict[bytes, Entry], Claim[FlightResult]]:
        """What memory has of a request, and a claim on its other keys, which many keys wait for in turns.

        There is no await between the look for a key and its claim: a flight that ended before has put its entry there.
        """
        in_memory: dict[bytes, Entry] = {}
        claim = flights.claim(())
        size = len(request.keys) if request.client_request.spec.is_keyed_whole else CLAIMED_A_TURN
        try:
            async for keys in in_turns(request.keys, size=size):
                found = self._in_memory(request, keys)
                in_memory |= found
                flights.claim_more(claim, [key for key in keys if key not in found], instead_of=left.values())
        except BaseException:  # its client has left, and others may have joined the flights
            claim.settle_rest(_UNSENT)
            raise
        return in_memory, claim

    def _in_memory(self, request: FetchRequest, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries of a request's ``keys`` that are in memory now."""
        if not request.policy.may_join:
            return {}
        entries = self._cache.peek(keys, min_stored_at_s=request.policy.min_stored_at_s)
        is_partial = len(entries) < len(keys)
        return {} if request.client_request.spec.is_keyed_whole and is_partial else entries

    def takes_retry(self, origin: Origin) -> bool:
        """Whether `send_own_body` may be tried after a failure that may be an outage."""
        return self._batcher.takes_retry(origin)

    async def send_own_body(self, client_request: ClientRequest) -> UpstreamResponse:
        """The upstream's response to the client's own body, to be relayed. Raises `ProxyError`."""
        asked_at_s = self._validations.now()
        response, by_origin = await self._batcher.send_own_body(client_request)
        if by_origin:
            status = status_of(response)
            if is_success(status):
                self._validations.confirm(client_request.credential, asked_at_s=asked_at_s)
            else:
                self._validations.note(client_request.credential, status)
        return response

    def stop_holding(self, timeout_s: float) -> None:
        """The proxy stops within ``timeout_s``: requests that wait for a rate limit get a response before that."""
        self._batcher.stop_holding(asyncio.get_running_loop().time() + timeout_s * _HELD_PART)

    async def drain(self) -> None:
        """Wait for the fetches under way, also those that no request waits for any more; if cancelled, cancel them."""
        try:
            await self._fetches.join()
        finally:
            self._batcher.abandon()


def _settle_as_well(left: "asyncio.Future[FlightResult]", flight: "asyncio.Future[FlightResult]") -> None:
    """What was fetched in place of a flight that was left is its result, too."""
    result = flight.result()
    if isinstance(result, Entry) and not left.done():
        left.set_result(result)


def _refusal(given_up: GivenUp, waiter: FetchRequest) -> Failure:
    """The failure of a request whose client waits no longer for the rate limit."""
    request = given_up.request
    if request is None:
        return Failure(given_up.refusal)
    failure = Failure(given_up.refusal, request, reader=request.client_request)
    return failure if request.client_request is waiter.client_request else failure.seen_by(waiter)


def _collected(
    request: FetchRequest, claim: Claim[FlightResult], leader: Leader
) -> tuple[FetchResult, dict[bytes, Failure]]:
    """The results of a request's flights, and failures that concern other requests."""
    entries, unusable, failure = {}, {}, None
    foreign: dict[bytes, Failure] = {}
    for key, flight in claim.flights.items():
        result = flight.result() if flight.done() else _LEFT
        if isinstance(result, Entry):
            entries[key] = result
        elif not (key in claim.mine or result.is_for(request)):
            foreign[key] = result
        elif _replaces_item(result.cause, request):
            unusable[key] = result.cause
        else:
            failure = result if key in claim.mine else failure or result.seen_by(request)
    fetched = FetchResult(
        entries=current(entries),  # during the wait the store may have named other records the first
        asked=frozenset(leader.asked),
        deliveries=leader.deliveries,
        failure=failure,
        unusable=unusable,
    )
    return fetched, foreign


def _replaces_item(cause: CallFailure, request: FetchRequest) -> TypeGuard[InvalidResponse]:
    """Whether a response has other JSON in place of an item's embedding, and is not the response to the client's own
    body, which is relayed."""
    return (
        isinstance(cause, InvalidResponse)
        and cause.embedding is not None
        and not request.client_request.is_own_body(cause.body)
    )
