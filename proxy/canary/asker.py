"""The canary's calls: directly to a subject's upstream, apart from clients' requests.

They pass through the upstream's circuit breaker and count as its calls. They are sent one at a time. They are not
batched, stored or billed to anybody, and validate no credential.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from multidict import CIMultiDict

from proxy import __version__
from proxy.canary.check_bodies import CheckBodies
from proxy.canary.measurement import Measurement
from proxy.canary.subject import Subject
from proxy.errors import ProxyError
from proxy.protocol import embedding_response, query
from proxy.protocol.embedding_request import MAX_MODEL_CHARS
from proxy.protocol.embedding_response import EmbeddingResponse, InvalidEmbeddingResponse
from proxy.protocol.vectors import Vector
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.flow_control import FlowControl
from proxy.upstream.router import Origin

# The time limit of one check, which has a handful of short calls.
_CHECK_S = 300.0
_MAX_INCOMING_BYTES = 16 * 1024**2
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class CheckFailed(Exception):
    """A check got no vectors. ``detail`` says why in a few words, none of them the upstream's."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Asker:
    def __init__(self, bill: Callable[[Subject, int], None]) -> None:
        """``bill`` is called with the tokens of each response."""
        self._bill = bill
        self._flow_control = FlowControl(_MAX_INCOMING_BYTES)

    async def measure(self, origin: Origin, subject: Subject) -> Measurement:
        """Ask ``origin`` for all texts, twice. Raises `CheckFailed`."""
        try:
            async with asyncio.timeout(_CHECK_S):
                return await self._measure(origin, subject)
        except TimeoutError:
            raise CheckFailed("timeout") from None

    async def _measure(self, origin: Origin, subject: Subject) -> Measurement:
        bodies = CheckBodies(origin.provider, subject.model)
        model, alone = await self._one_by_one(origin, subject, bodies)
        if (batch := bodies.batch) is None:
            other, again = await self._one_by_one(origin, subject, bodies)
        else:
            response = await self._ask(origin, subject, batch, items=len(alone))
            other, again = response.model, _vectors(response)
        # If the responses name two models, both names are kept, so that one that differs from the reference is seen.
        return Measurement(model=model if other == model else f"{model} | {other}", alone=alone, again=again)

    async def _one_by_one(
        self, origin: Origin, subject: Subject, bodies: CheckBodies
    ) -> tuple[str, tuple[Vector, ...]]:
        responses = [await self._ask(origin, subject, body, items=1) for body in bodies.alone]
        models = dict.fromkeys(response.model for response in responses)
        return " | ".join(models), tuple(vector for response in responses for vector in _vectors(response))

    async def _ask(self, origin: Origin, subject: Subject, body: bytes, *, items: int) -> EmbeddingResponse:
        url = query.without_credentials(subject.url)
        try:
            with self._flow_control.response() as flow:
                response = await origin.client.embed(url, _headers(origin), body, items=items, flow=flow)
        except ProxyError as error:
            raise CheckFailed(error.code) from error
        parsed = _parsed(origin, response, items)
        self._bill(subject, parsed.usage["prompt_tokens"])
        return parsed


def _headers(origin: Origin) -> CIMultiDict[str]:
    fields = CIMultiDict(
        {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"embedding-proxy/{__version__} canary",
        }
    )
    key = origin.canary_key or origin.key
    return fields if key is None else origin.with_key(fields, key)


def _parsed(origin: Origin, response: UpstreamResponse, items: int) -> EmbeddingResponse:
    """Raises `CheckFailed`."""
    if response.status in _REFUSED and (origin.canary_key or origin.key) is None:
        raise CheckFailed(f"status {response.status}, asked without a key")
    if not response.is_storable:
        raise CheckFailed(f"status {response.status}")
    if origin.provider.reports_fallback(response.headers):
        raise CheckFailed("the gateway's own fallback responded")
    try:
        parsed = embedding_response.parse_response(response.plain_body(), origin.provider, items=items)
    except InvalidEmbeddingResponse as invalid:
        raise CheckFailed(f"invalid response: {invalid.reason}") from invalid
    if len(parsed.model) > MAX_MODEL_CHARS:  # it is kept in the store
        raise CheckFailed("invalid response: model-name")
    return parsed


def _vectors(response: EmbeddingResponse) -> tuple[Vector, ...]:
    """Raises `CheckFailed`."""
    found = tuple(vector for vector in response.vectors if vector is not None)
    if len(found) < len(response.vectors):
        raise CheckFailed(f"invalid response: {response.unusable}")
    return found
