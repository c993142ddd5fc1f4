"""The responses to requests that failed: the upstream's own where the client may read it."""

from aiohttp.web import Response, StreamResponse

from proxy.access.validations import CREDENTIAL_REFUSALS
from proxy.embeddings.cache_headers import add_cache_headers
from proxy.embeddings.log_once import LogOnce
from proxy.embeddings.response_body import LARGE_BYTES
from proxy.errors import KeyRefused, ProxyError
from proxy.fetch.fetcher import Fetcher
from proxy.fetch.outcomes import Blame, ErrorResponse, InvalidResponse, blame, in_own_words, is_success, status_of
from proxy.fetch.request import ClientRequest
from proxy.fetch.result import Failure
from proxy.http.streamed import Streamed, in_pieces
from proxy.labels import ItemResult, RequestOutcome
from proxy.protocol import headers
from proxy.reservation import MemoryReservation
from proxy.telemetry.metrics import Metrics
from proxy.upstream.client import UpstreamResponse

Resolved = tuple[RequestOutcome, StreamResponse]  # a request's outcome and response

_WRONG_URL = frozenset({404, 405})


class FailureResponses:
    def __init__(self, fetcher: Fetcher, metrics: Metrics, log_once: LogOnce) -> None:
        self._fetcher = fetcher
        self._metrics = metrics
        self._log_once = log_once

    async def respond(self, client_request: ClientRequest, failure: Failure) -> Resolved:
        """The upstream's response to the client's own body, or the failure that this client would have had alone.

        Raises `ProxyError`.
        """
        cause = failure.for_client(client_request)
        if isinstance(cause, ProxyError):
            is_of_part = failure.request is not None and not failure.request.is_whole
            if is_of_part and cause.may_be_about_call and self._fetcher.takes_retry(client_request.origin):
                return await self.send_own_body(client_request)
            raise cause.again()
        if isinstance(cause, InvalidResponse):
            self._log_once.warn(cause.reason, "a response of the upstream is relayed and not stored")
        is_everybodys = isinstance(cause, ErrorResponse) and blame(cause) is Blame.EVERYBODY
        if is_everybodys or client_request.is_own_body(cause.body):
            return self._relay(client_request, cause.response)
        # The response may name an item by its index in the call, which is another one in the client's list. And a
        # response to part of the request can't be relayed as the response to all of it.
        if blame(cause) is Blame.UNKNOWN and not self._fetcher.takes_retry(client_request.origin):
            return self._relay(client_request, in_own_words(cause.response))
        return await self.send_own_body(client_request)

    async def send_own_body(self, client_request: ClientRequest) -> Resolved:
        """Send the client's own body, and relay the response. Raises `ProxyError`."""
        return self._relay(client_request, await self._fetcher.send_own_body(client_request))

    def _relay(self, client_request: ClientRequest, response: UpstreamResponse) -> Resolved:
        origin, status = client_request.origin, response.status
        error_status = status_of(response)  # inside a 200 as well
        if origin.key is not None and error_status in CREDENTIAL_REFUSALS:
            self._log_once.warn(
                f"status {error_status} from {origin.name}", "an upstream refused the key that the proxy holds for it"
            )
            raise KeyRefused
        if status in _WRONG_URL and not origin.client.has_succeeded:
            url = client_request.url.partition("?")[0]
            self._log_once.warn(f"{status} from {url}", "perhaps the base URL is wrong, or the model's name")
        if not is_success(error_status):
            return RequestOutcome.ERROR, _relayed(response, client_request.reservation)
        items, model = len(client_request.spec.keys), client_request.spec.model
        self._metrics.of_model(model).items[ItemResult.UPSTREAM].inc(items)
        self._metrics.ledger.admit(client_request.client)
        self._metrics.row(client_request.client, model).count_items(ItemResult.UPSTREAM, items)
        return RequestOutcome.MISS, _relayed(response, client_request.reservation)


def _relayed(response: UpstreamResponse, reservation: MemoryReservation) -> StreamResponse:
    """An upstream's response, relayed. Raises `Overloaded`."""
    extra = headers.end_to_end(response.headers)
    extra.popall("Content-Length", None)
    add_cache_headers(extra, "MISS", f"fwd=miss; fwd-status={response.status}", saved_tokens=0)
    if len(response.body) > LARGE_BYTES:
        reservation.take(len(response.body), may_exceed=True)
        parts, length = in_pieces(response.body), len(response.body)
        return Streamed(parts, length=length, status=response.status, reason=response.reason, headers=extra)
    return Response(status=response.status, reason=response.reason, headers=extra, body=response.body)
