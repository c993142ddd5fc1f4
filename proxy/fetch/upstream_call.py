"""One body sent upstream, and the validation of its response."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from proxy import turns
from proxy.errors import ProxyError
from proxy.fetch.failover import Failover
from proxy.fetch.outcomes import CallFailure, ErrorResponse, InvalidResponse, is_outage, is_success
from proxy.fetch.request import ClientRequest, FetchRequest
from proxy.fetch.retry_budget import RetryBudget
from proxy.protocol import embedding_response, vector_batch
from proxy.protocol.embedding_request import MAX_MODEL_CHARS
from proxy.protocol.embedding_response import EmbeddingResponse, InvalidEmbeddingResponse
from proxy.protocol.json_parts import LARGE_BYTES
from proxy.protocol.tokens import share_tokens
from proxy.protocol.vector_batch import ExpectedResponse
from proxy.steps import finish
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import Calls
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.flow_control import FlowControl
from proxy.upstream.router import Origin
from proxy.worker_thread import Worker

_T = TypeVar("_T")


class ValidResponse(NamedTuple):
    """A valid response to a call with ``body``."""

    parsed: EmbeddingResponse
    response: UpstreamResponse
    body: bytes
    by_origin: bool


class UpstreamCalls:
    def __init__(
        self,
        failover: Failover,
        metrics: Metrics,
        budgets: defaultdict[Origin, RetryBudget],
        *,
        max_incoming_bytes: int,
    ) -> None:
        self._failover = failover
        self._metrics = metrics
        self._budgets = budgets
        self._flow_control = FlowControl(max_incoming_bytes)
        self._worker = Worker("responses")
        self._large_parse = asyncio.Lock()  # one at a time uses memory, and is done early

    def close(self) -> None:
        self._worker.close()

    async def send(
        self, client_request: ClientRequest, requests: Sequence[FetchRequest], body: bytes, items: int
    ) -> ValidResponse | CallFailure:
        """Send ``body``, which has the items of ``requests``. URL, headers and credential are ``client_request``'s."""
        with self._spans(client_request, requests) as calls, self._flow_control.response() as flow:
            try:
                response, origin = await self._failover.embed(client_request, body, items, calls, flow=flow)
            except ProxyError as error:
                return error
            if not is_success(response.status):
                return ErrorResponse(response, body)
            by_origin = origin is client_request.origin
            try:
                parsed = await self._validated(client_request, origin, response, items)
            except InvalidEmbeddingResponse as invalid:
                self._metrics.upstream_rejected.labels(invalid.reason).inc()
                billed = await self._with(response, _billed, response)
                self._bill(client_request, requests, calls, billed)
                return InvalidResponse(response, body, invalid.reason, by_origin, invalid.embedding_text)
            self._metrics.admit_model(client_request.spec.model)
            self._bill(client_request, requests, calls, parsed.usage["prompt_tokens"])
        self._budgets[client_request.origin].succeeded()
        if parsed.unusable is not None:
            self._metrics.upstream_rejected.labels(parsed.unusable).inc()
        return ValidResponse(parsed, response, body, by_origin)

    async def send_own_body(self, client_request: ClientRequest) -> tuple[UpstreamResponse, bool]:
        """The response to the client's own body, to be relayed, and whether the origin itself gave it.

        Raises `ProxyError`.
        """
        self._metrics.upstream_merged_requests.observe(1)
        body, items = client_request.parsed.body, len(client_request.parsed.items)
        with self._spans(client_request) as calls, self._flow_control.response() as flow:
            response, origin = await self._failover.embed(client_request, body, items, calls, flow=flow)
            if is_success(response.status):
                billed = await self._with(response, _billed, response)
                self._bill(client_request, (), calls, billed)
        if not is_outage(response):
            self._budgets[client_request.origin].succeeded()
        return response, origin is client_request.origin

    def _spans(self, client_request: ClientRequest, requests: Sequence[FetchRequest] = ()) -> Calls:
        spans = [request.client_request.span for request in requests]
        return client_request.span.calls(spans, model=lambda: self._metrics.label_of(client_request.spec.model))

    async def _validated(
        self, client_request: ClientRequest, origin: Origin, response: UpstreamResponse, items: int
    ) -> EmbeddingResponse:
        """The response of ``origin`` to a call for so many items. Raises `InvalidEmbeddingResponse`."""
        _require_storable(origin, response)
        parsed = client_request.parsed
        expected = ExpectedResponse(origin.provider, items, parsed.packed, parsed.reads_base64)
        if len(response.body) <= LARGE_BYTES or "Content-Encoding" in response.headers:
            embeddings = await self._with(response, _parsed, response, expected)
        else:
            async with self._large_parse:
                embeddings = await self._parse_large(response.body, expected)
        return _named(client_request, origin, embeddings)

    async def _parse_large(self, body: bytes, expected: ExpectedResponse) -> EmbeddingResponse:
        """Raises `InvalidEmbeddingResponse`."""
        await turns.turn()
        batch = await turns.run(vector_batch.parse(body, expected))
        steps = embedding_response.parse(body, expected, batch)
        parsed = await (self._worker.run(finish, steps) if batch is None else turns.run(steps))
        await turns.turn()  # what is done with the result has one of its own
        return parsed

    async def _with(self, response: UpstreamResponse, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call ``function``, which parses ``response``: in a thread if that takes long."""
        if len(response.body) > LARGE_BYTES or "Content-Encoding" in response.headers:
            return await self._worker.run(function, *arguments)
        return function(*arguments)

    def _bill(self, client_request: ClientRequest, requests: Sequence[FetchRequest], calls: Calls, tokens: int) -> None:
        """Count what a call was billed: for the model, and for each of the clients whose items it had."""
        if tokens:
            self._metrics.admit_model(client_request.spec.model)
        self._metrics.of_model(client_request.spec.model).bill(tokens)
        calls.billed(tokens)
        for client, share in _by_client(client_request, requests, tokens):
            self._metrics.bill_client(client, client_request.spec.model, share)


def _by_client(
    client_request: ClientRequest, requests: Sequence[FetchRequest], tokens: int
) -> list[tuple[str | None, int]]:
    """What each client owes of a call: as much as its items' part of the response says (`proxy.fetch.merged_call`)."""
    clients = [request.client_request.client for request in requests]
    if len(set(clients)) <= 1:
        return [(client_request.client, tokens)]
    shares = iter(share_tokens(tokens, [weight for request in requests for weight in request.weights]))
    return [(client, sum(islice(shares, len(request.keys)))) for client, request in zip(clients, requests, strict=True)]


def _require_storable(origin: Origin, response: UpstreamResponse) -> None:
    """Raises `InvalidEmbeddingResponse`."""
    if not response.is_storable:
        raise InvalidEmbeddingResponse("status")
    if origin.provider.reports_fallback(response.headers):
        raise InvalidEmbeddingResponse("disowned")


def _parsed(response: UpstreamResponse, expected: ExpectedResponse) -> EmbeddingResponse:
    """Raises `InvalidEmbeddingResponse`."""
    provider, items, packed, reads_base64 = expected
    return embedding_response.parse_response(
        response.plain_body(), provider, items=items, packed=packed, reads_base64=reads_base64
    )


def _billed(response: UpstreamResponse) -> int:
    """What a 2xx that is not stored was billed, as far as it can be read."""
    try:
        return embedding_response.billed_tokens(response.plain_body())
    except InvalidEmbeddingResponse:
        return 0


def _named(client_request: ClientRequest, origin: Origin, embeddings: EmbeddingResponse) -> EmbeddingResponse:
    """A response under the model name that its entries get. Raises `InvalidEmbeddingResponse`."""
    parsed = client_request.parsed
    # A server of a single model may accept any model name, and none.
    if origin.provider.is_multi_vector_model(embeddings.model):
        raise InvalidEmbeddingResponse("multi-vector")
    if len(embeddings.model) > MAX_MODEL_CHARS:  # each record would have it
        raise InvalidEmbeddingResponse("model-name")
    if origin is client_request.origin:
        origin.remember(client_request.credential.id.credentials_mac, parsed.model, embeddings.model)
        return embeddings if embeddings.model else replace(embeddings, model=parsed.model or "")
    # A fallback responded. The model has one name in responses and in the store: the origin's, or none until that is
    # known.
    return replace(
        embeddings, model=client_request.origin.name_of(client_request.credential.id.credentials_mac, parsed.model)
    )
