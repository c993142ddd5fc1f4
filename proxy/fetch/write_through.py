"""What calls returned, recorded once for all of their requests: in the cache, and for the credential."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat
from typing import NamedTuple

from msgspec.structs import replace

from proxy import turns
from proxy.access.validations import Validations
from proxy.cache.cache import Cache
from proxy.cache.discards import Mark
from proxy.cache.entry import Entry
from proxy.errors import ProxyError
from proxy.fetch.outcomes import EmbedResult, InvalidResponse, Outcome, status_of
from proxy.fetch.request import FetchRequest
from proxy.fetch.result import Failure
from proxy.fetch.waiting import Ended, Waiting
from proxy.protocol.records import Record
from proxy.protocol.vectors import Encoding
from proxy.steps import Steps
from proxy.turns import KEYS_A_TURN, are_many, in_turns

_Records = dict[bytes, Record]
_Embedded = tuple[Waiting, EmbedResult]


class CallStart(NamedTuple):
    """When a call was sent, for the validations and for the cache."""

    at_s: float
    mark: Mark


class WriteThrough:
    """Puts vectors into memory before their request is resolved. So a later request joins the flight or finds the
    entry, unless memory has evicted it since."""

    def __init__(self, cache: Cache, validations: Validations, *, clock: Callable[[], float]) -> None:
        self._cache = cache
        self._validations = validations
        self._clock = clock

    def call_starts(self) -> CallStart:
        """A call is sent now."""
        return CallStart(self._validations.now(), self._cache.now)

    async def deliver(self, ended: Sequence[Ended], start: CallStart) -> None:
        """Tell requests their outcomes: failures at once, and vectors when they are in the cache, if they may be."""
        self.note([one.request for one, _ in ended], [outcome for _, outcome in ended], start)
        embedded: defaultdict[tuple[bool, bool], list[_Embedded]] = defaultdict(list)
        for waiting, outcome in ended:
            if isinstance(outcome, EmbedResult):
                embedded[waiting.request.policy.storing].append((waiting, outcome))
            else:
                waiting.resolve(outcome)
        writes = [self._deliver_written(some, start) for some in embedded.values()]
        if len(writes) == 1:  # the usual case
            await writes[0]
        else:  # side by side: no request waits for the write of another that is stored in another way, or not at all
            await asyncio.gather(*writes)

    async def _deliver_written(self, embedded: Sequence[_Embedded], start: CallStart) -> None:
        """Write the results of one call whose policies say the same about storing, then tell their requests."""
        requests, results = [waiting.request for waiting, _ in embedded], [result for _, result in embedded]
        written = await self.write(requests, results, start)
        told = list(zip(embedded, written, strict=True))
        async for some in in_turns(told):  # each goes on in the next iteration of the loop, all of them together
            for (waiting, _), result in some:
                waiting.resolve(result)

    def note(
        self, requests: Sequence[FetchRequest], outcomes: Iterable[Outcome | ProxyError], start: CallStart
    ) -> None:
        """Record what a call says about the credential of its requests, even if their clients have disconnected."""
        is_confirmed = False
        for request, outcome in zip(requests, outcomes, strict=True):
            credential = request.client_request.credential
            if isinstance(outcome, EmbedResult):
                confirms = outcome.by_origin
            else:
                confirms = isinstance(outcome, InvalidResponse) and outcome.confirms
            if confirms and not is_confirmed:
                self._validations.confirm(credential, asked_at_s=start.at_s)
                is_confirmed = True  # for all of them: requests in one call have one credential
            elif not isinstance(outcome, EmbedResult | ProxyError) and Failure(outcome, request).is_verdict:
                self._validations.note(credential, status_of(outcome.response))

    async def write(
        self, requests: Sequence[FetchRequest], results: Sequence[EmbedResult], start: CallStart
    ) -> list[EmbedResult]:
        """The results of a call, each with the entries to serve. What may be stored is in the cache then.

        The requests' policies say the same about storing (`Policy.storing`).
        """
        if any(are_many(request.keys) for request in requests):
            await turns.turn()  # after the parts of the response were shared out
        received = await turns.run(self._records_in_steps(requests, results))
        policy = requests[0].policy
        if policy.is_stored:
            fresh: _Records = {}
            for records in reversed(received):  # as in the cache, the first of two with the same key counts
                fresh |= records
            written = await self._cache.write(fresh, overwrite=policy.overwrite, asked=start.mark)
            entries = [{key: written[key] for key in records} for records in received]
        else:
            entries = [{key: Entry.of(record) for key, record in records.items()} for records in received]
        if any(map(are_many, received)):
            turns.free([record for records in received for record in records.values()])
        # Texts are views of the whole response, which they would keep in memory.
        return [replace(result, entries=own, texts=()) for result, own in zip(results, entries, strict=True)]

    def _records_in_steps(
        self, requests: Sequence[FetchRequest], results: Sequence[EmbedResult]
    ) -> Steps[list[_Records]]:
        now_s = int(self._clock())
        received: list[_Records] = []
        for request, result in zip(requests, results, strict=True):
            is_float = request.client_request.spec.encoding is Encoding.FLOAT
            texts = result.texts if is_float and result.texts else repeat(None)
            scope = request.client_request.scope_fingerprint
            is_exact = len(request.keys) == 1 and result.is_unmerged
            parts = zip(request.keys, result.vectors, result.tokens, texts, strict=False)
            records: _Records = {}
            while some := list(islice(parts, KEYS_A_TURN)):
                records |= {
                    key: Record(
                        vector=vector,
                        model=result.model,
                        tokens=tokens,
                        tokens_exact=is_exact,
                        stored_at_s=now_s,
                        scope=scope,
                        numbers=None if text is None else bytes(text),
                    )
                    for key, vector, tokens, text in some
                    if vector is not None
                }
                yield
            received.append(records)
        return received
