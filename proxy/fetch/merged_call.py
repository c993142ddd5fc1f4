"""Upstream calls for several requests: merged, split again when they fail, and their responses shared out."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from itertools import accumulate, islice, pairwise

from multidict import CIMultiDict

from proxy.errors import Overloaded, ProxyError
from proxy.fetch.merge_limits import MergeLimits
from proxy.fetch.outcomes import (
    Blame,
    CallFailure,
    EmbedResult,
    ErrorResponse,
    InvalidResponse,
    Outcome,
    blame,
    relayed_fields,
    without_quotes,
)
from proxy.fetch.request import FetchRequest
from proxy.fetch.retry_budget import RetryBudget
from proxy.fetch.upstream_call import UpstreamCalls, ValidResponse
from proxy.protocol import embedding_request
from proxy.protocol.header_kinds import is_assertion
from proxy.protocol.tokens import share_tokens
from proxy.telemetry.metrics import Metrics
from proxy.turns import in_turns
from proxy.upstream.router import Origin

_FIRST_PROBES = 2
# Some upstreams reject a request without a User-Agent; the body is JSON, however each client writes its Content-Type.
_ALWAYS_SENT = frozenset({"user-agent", "content-type"})


class MergedCalls:
    def __init__(
        self,
        calls: UpstreamCalls,
        metrics: Metrics,
        budgets: defaultdict[Origin, RetryBudget],
        merge_limits: MergeLimits,
    ) -> None:
        self._calls = calls
        self._merged_requests = metrics.upstream_merged_requests
        self._budgets = budgets
        self._merge_limits = merge_limits

    async def outcomes(self, requests: Sequence[FetchRequest]) -> Sequence[Outcome | ProxyError]:
        """Send requests of one group in one call. If it fails, the outcomes may be those of calls for each alone."""
        if len(requests) == 1:
            return [await self._alone(requests[0])]
        sent = await self._together(requests)
        if not isinstance(sent, list):
            return await self._send_apart(requests, sent)
        # A vector of a merged response may be unusable because the call was merged.
        unusable = [i for i, result in enumerate(sent) if result.unusable is not None]
        outcomes: list[Outcome | ProxyError] = [*sent]
        for i, outcome in zip(
            unusable, await asyncio.gather(*(self._alone(requests[i]) for i in unusable)), strict=True
        ):
            outcomes[i] = outcome
        return outcomes

    async def _alone(self, request: FetchRequest) -> Outcome | ProxyError:
        """One request's own call."""
        self._merged_requests.observe(1)
        sent = await self._calls.send(request.client_request, [request], request.body, len(request.keys))
        return next(_share_out([request], sent)) if isinstance(sent, ValidResponse) else sent

    async def _together(self, requests: Sequence[FetchRequest]) -> list[EmbedResult] | CallFailure:
        """One call for several requests."""
        # Two parts of one large request may be in one call.
        self._merged_requests.observe(len({id(request.client_request) for request in requests}))
        items = [item for request in requests for item in request.items]
        client_request = requests[0].client_request
        client_request = client_request.with_headers(await _common_headers(requests))
        sent = await self._calls.send(
            client_request, requests, embedding_request.reduced_body(client_request.parsed, items), len(items)
        )
        if not isinstance(sent, ValidResponse):
            return sent
        self._merge_limits.merging_worked(client_request.origin.name, client_request.parsed.model)
        shares, results = _share_out(requests, sent), list[EmbedResult]()
        async for some in in_turns(requests):
            results += islice(shares, len(some))
        return results

    async def _send_apart(
        self, requests: Sequence[FetchRequest], failure: CallFailure
    ) -> Sequence[Outcome | ProxyError]:
        """The outcomes of requests whose merged call failed: each is sent alone, once, if that could help.

        If the failure concerns everybody, nothing is sent. If it is about the call, each request is sent alone. If it
        may be an outage, two are sent, then four, and so on, until the calls saved by merging and the retry budget are
        used up.
        """
        outcomes: list[Outcome | ProxyError] = [without_quotes(failure)] * len(requests)
        if isinstance(failure, Overloaded):  # the tenant that the call counted as may have too many others
            first = requests[0].client_request.tenant.name
            others = [i for i, request in enumerate(requests) if request.client_request.tenant.name != first]
            of_others = await self.outcomes([requests[i] for i in others]) if others else ()
            for i, outcome in zip(others, of_others, strict=True):
                outcomes[i] = outcome
            return outcomes
        is_about_first = _is_about_first(failure, requests)
        about = Blame.CALL if is_about_first else blame(failure)
        if about is Blame.EVERYBODY:
            return outcomes
        budget = self._budgets[requests[0].client_request.origin]
        start, size = 0, len(requests) if about is Blame.CALL else _FIRST_PROBES
        saved = len(requests) - 1  # calls, by merging
        while start < len(requests):
            count = min(size, len(requests) - start)
            if about is Blame.UNKNOWN:
                count = min(count, budget.calls(saved))
                budget.spend(count, saved)
                saved = max(0, saved - count)
            if not count:
                return outcomes
            probed = slice(start, start + count)
            outcomes[probed] = await asyncio.gather(*map(self._alone, requests[probed]))
            if not all(map(_is_outage, outcomes[probed])):
                budget.succeeded()
                about, size = Blame.CALL, len(requests)
            else:
                size *= 2
            start += count
        if not is_about_first and _is_about_merging(outcomes):
            self._note_merging_failed(requests, is_certain=blame(failure) is Blame.CALL)
        return outcomes

    def _note_merging_failed(self, requests: Sequence[FetchRequest], *, is_certain: bool) -> None:
        client_request, items = requests[0].client_request, sum(len(request.keys) for request in requests)
        self._merge_limits.merging_failed(
            client_request.origin.name, client_request.parsed.model, items, is_certain=is_certain
        )


def _is_about_first(failure: CallFailure, requests: Sequence[FetchRequest]) -> bool:
    """Whether the upstream may have rejected only the assertion of the first request, which was sent for all."""
    if not isinstance(failure, ErrorResponse) or failure.response.status != HTTPStatus.UNAUTHORIZED:
        return False
    return len({tuple(_assertions(request.client_request.headers)) for request in requests}) > 1


def _assertions(headers: CIMultiDict[str]) -> Iterator[tuple[str, str]]:
    return ((name.lower(), value) for name, value in headers.items() if is_assertion(name.lower()))


def _is_about_merging(outcomes: Sequence[Outcome | ProxyError]) -> bool:
    """Whether a call failed because it was merged: every request sent alone has a valid response, or every one has a
    response that can be relayed but not split."""
    return all(isinstance(outcome, EmbedResult) for outcome in outcomes) or all(
        isinstance(outcome, InvalidResponse) and outcome.confirms for outcome in outcomes
    )


def _is_outage(outcome: Outcome | ProxyError) -> bool:
    """Whether a request that was sent alone failed in a way that may be an outage."""
    return not isinstance(outcome, EmbedResult) and blame(outcome) is not Blame.CALL


async def _common_headers(requests: Sequence[FetchRequest]) -> CIMultiDict[str]:
    """Headers common to all merged requests, plus User-Agent and Content-Type: a header that only one of them has (a
    condition, a deadline, a cookie) must not affect the others.

    A proxy in front of this one renews its assertions all the time, so few requests of one credential have the same.
    Those of the first are sent: without any, an upstream that requires one would reject the call (`_is_about_first`).
    """
    fields = list(requests[0].client_request.headers.items())
    async for some in in_turns(requests[1:]):
        others = [request.client_request.headers for request in some]
        fields = [
            (name, value)
            for name, value in fields
            if _is_always_sent(name.lower()) or all(value in other.getall(name, ()) for other in others)
        ]
    return CIMultiDict(fields)


def _is_always_sent(name: str) -> bool:
    return name in _ALWAYS_SENT or is_assertion(name)


def _share_out(requests: Sequence[FetchRequest], sent: ValidResponse) -> Iterator[EmbedResult]:
    """Each request's part of one response."""
    parsed, response = sent.parsed, sent.response
    weights = [weight for request in requests for weight in request.weights]
    tokens = share_tokens(parsed.usage["prompt_tokens"], weights)
    is_unmerged = len(requests) == 1
    relayed = relayed_fields(response.headers, is_unmerged=is_unmerged)
    ends = accumulate([len(request.keys) for request in requests], initial=0)
    for start, end in pairwise(ends):
        billed = sum(tokens[start:end])
        vectors = parsed.vectors[start:end]
        unusable = None
        if parsed.unusable is not None and None in vectors:
            unusable = InvalidResponse(response, sent.body, parsed.unusable, sent.by_origin)
        yield EmbedResult(
            vectors=vectors,
            tokens=tokens[start:end],
            model=parsed.model,
            usage=parsed.usage if is_unmerged else {"prompt_tokens": billed, "total_tokens": billed},
            extra_fields=parsed.extra_fields,
            status=response.status,
            headers=response.headers,
            relayed=relayed,
            is_unmerged=is_unmerged,
            is_own_body=is_unmerged and requests[0].client_request.is_own_body(sent.body),
            by_origin=sent.by_origin,
            unusable=unusable,
            texts=parsed.texts[start:end],
        )
