"""What calls returned, recorded once for all of their requests: in the cache, and for the credential."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

from msgspec.structs import replace

from proxy.access.validations import Validations
from proxy.cache.cache import Cache
from proxy.cache.discards import Mark
from proxy.cache.entry import Entry
from proxy.errors import ProxyError
from proxy.fetch.outcomes import EmbedResult, InvalidResponse, Outcome, status_of
from proxy.fetch.request import FetchRequest
from proxy.fetch.result import Failure
from proxy.protocol.records import Record
from proxy.protocol.vectors import Encoding
from proxy.turns import KEYS_A_TURN, in_turns, turn

_Records = dict[bytes, Record]


class Asked(NamedTuple):
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

    def asked(self) -> Asked:
        """A call is sent now."""
        return Asked(self._validations.now(), self._cache.now)

    def note(self, requests: Sequence[FetchRequest], outcomes: Iterable[Outcome | ProxyError], asked: Asked) -> None:
        """Record what a call says about the credential of its requests, even if their clients have disconnected."""
        is_confirmed = False
        for request, outcome in zip(requests, outcomes, strict=True):
            client_request = request.client_request
            name = client_request.credential_id, client_request.credential_scope
            if isinstance(outcome, EmbedResult):
                confirms = outcome.by_origin
            else:
                confirms = isinstance(outcome, InvalidResponse) and outcome.confirms
            if confirms and not is_confirmed:
                self._validations.confirm(*name, asked_at_s=asked.at_s)
                is_confirmed = True  # for all of them: requests in one call have one credential
            elif not isinstance(outcome, EmbedResult | ProxyError) and Failure(outcome, request).is_verdict:
                self._validations.note(*name, status_of(outcome.response))

    async def write(
        self, requests: Sequence[FetchRequest], results: Sequence[EmbedResult], asked: Asked
    ) -> list[EmbedResult]:
        """The results of a call, each with the entries to serve. What may be stored is in the cache then."""
        received: list[_Records] = []
        keys = 0  # of this turn
        for request, result in zip(requests, results, strict=True):
            keys += len(request.keys)
            if keys > KEYS_A_TURN and received:
                await turn()
                keys = len(request.keys)
            received.append(await self._records(request, result))
        written = await self._write(requests, received, asked.mark)
        return [
            # Texts are views of the whole response, which they would keep in memory.
            replace(result, entries=_entries(request, records, written), texts=())
            for request, records, result in zip(requests, received, results, strict=True)
        ]

    async def _write(
        self, requests: Sequence[FetchRequest], received: Sequence[_Records], asked: Mark
    ) -> dict[bool, dict[bytes, Entry]]:
        """What the cache has of the records that may be stored, by `Policy.overwrite` of their requests."""
        fresh: dict[bool, _Records] = {}
        for request, records in zip(reversed(requests), reversed(received), strict=True):
            if request.policy.is_stored:
                # Backwards: as in the cache, the first of two with the same key counts.
                fresh.setdefault(request.policy.overwrite, {}).update(records)
        if len(fresh) <= 1:  # the usual case
            return {kind: await self._cache.write(some, overwrite=kind, asked=asked) for kind, some in fresh.items()}
        # Both at once: of a store that hangs, nobody waits for two writes.
        kinds = sorted(fresh)
        writes = [self._cache.write(fresh[kind], overwrite=kind, asked=asked) for kind in kinds]
        return dict(zip(kinds, await asyncio.gather(*writes), strict=True))

    async def _records(self, request: FetchRequest, result: EmbedResult) -> _Records:
        now_s = int(self._clock())
        is_float = request.client_request.spec.encoding is Encoding.FLOAT
        texts = result.texts if is_float and result.texts else repeat(None)
        scope = request.client_request.scope_fingerprint
        received = list(zip(request.keys, result.vectors, result.tokens, texts, strict=False))
        records: _Records = {}
        async for some in in_turns(received):
            records |= {
                key: Record(
                    vector=vector,
                    model=result.model,
                    tokens=tokens,
                    tokens_exact=len(request.keys) == 1 and result.is_unmerged,
                    stored_at_s=now_s,
                    scope=scope,
                    numbers=None if text is None else bytes(text),
                )
                for key, vector, tokens, text in some
                if vector is not None
            }
        return records


def _entries(
    request: FetchRequest, records: _Records, written: Mapping[bool, Mapping[bytes, Entry]]
) -> dict[bytes, Entry]:
    if not request.policy.is_stored:
        return {key: Entry.of(record) for key, record in records.items()}
    entries = written[request.policy.overwrite]
    return {key: entries[key] for key in records}
