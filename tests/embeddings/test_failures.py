"""The responses to requests that failed: whose words a client gets, and when its own body is sent once more."""

import gzip
from typing import Any

import orjson
import pytest
from aiohttp.web import Response, StreamResponse

from proxy.embeddings.failures import FailureResponses
from proxy.embeddings.log_once import LogOnce
from proxy.embeddings.response_body import LARGE_BYTES
from proxy.errors import KeyRefused, Overloaded, ProxyError, UpstreamBroke, UpstreamUnreachable
from proxy.fetch.outcomes import CallFailure, ErrorResponse, InvalidResponse
from proxy.fetch.request import ClientRequest, FetchRequest, Policy
from proxy.fetch.result import Failure
from proxy.http.streamed import Streamed
from proxy.labels import ItemResult, RequestOutcome
from proxy.ledger.ledger import Ledger
from proxy.telemetry.metrics import Metrics
from proxy.tenant import Tenant
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.router import Origin
from tests.support import proxy_log
from tests.support.client_requests import client_request_for
from tests.support.fake_client import FakeClient, origin_of, response

A, B = b"a" * 32, b"b" * 32
OTHER_BODY = b"{}"
REPLAYED = b"the response to the client's own body"


class Client(FakeClient):
    has_succeeded = True


class Fetcher:
    """Its ``send_own_body`` responds with ``response``; ``own_bodies`` are the requests that were sent again."""

    def __init__(self) -> None:
        self.has_retries = True
        self.asked: list[Origin] = []
        self.own_bodies: list[ClientRequest] = []
        self.response: UpstreamResponse | ProxyError = response(200, REPLAYED)

    def takes_retry(self, origin: Origin) -> bool:
        self.asked.append(origin)
        return self.has_retries

    async def send_own_body(self, client_request: ClientRequest) -> UpstreamResponse:
        self.own_bodies.append(client_request)
        if isinstance(self.response, ProxyError):
            raise self.response
        return self.response


class Failures:
    def __init__(self) -> None:
        self.fetcher, self.client = Fetcher(), Client()
        self.metrics = Metrics(ledger=Ledger(max_clients=9))
        as_fetcher: Any = self.fetcher
        self.responses = FailureResponses(as_fetcher, self.metrics, LogOnce())

    def request(self, *, key: str | None = None, **more: Any) -> ClientRequest:
        return client_request_for(["one", "two"], [A, B], origin=origin_of(self.client, key=key), **more)

    async def respond(
        self, cause: CallFailure, *, keys: tuple[bytes, ...] = (A, B), client_request: ClientRequest | None = None
    ) -> tuple[RequestOutcome, StreamResponse]:
        """To the client whose fetch of ``keys`` failed."""
        client_request = client_request or self.request()
        request = FetchRequest(client_request, list(keys), Policy(0.0))
        return await self.responses.respond(client_request, Failure(cause, request, reader=client_request))

    async def relayed(self, response: UpstreamResponse, **more: Any) -> tuple[RequestOutcome, StreamResponse]:
        """The same for an error response to the client's own body."""
        client_request = self.request(**more)
        return await self.respond(ErrorResponse(response, client_request.parsed.body), client_request=client_request)

    @property
    def items(self) -> float:
        """That were counted as the upstream's, for the model and for the client."""
        counted = self.metrics.of_model("m").items[ItemResult.UPSTREAM].value
        assert counted == self.metrics.row(None, "m").items[ItemResult.UPSTREAM]
        return counted


@pytest.fixture
def failures() -> Failures:
    return Failures()


def content(response: StreamResponse) -> bytes:
    assert isinstance(response, Response)
    assert isinstance(response.body, bytes)
    return response.body


# --- the proxy's own errors


async def test_an_error_of_the_proxys_own_is_raised_anew(failures: Failures) -> None:
    cause = UpstreamUnreachable("no route")
    with pytest.raises(UpstreamUnreachable, match="no route") as raised:
        await failures.respond(cause)
    assert raised.value is not cause
    assert not failures.fetcher.own_bodies


async def test_a_broken_call_of_the_whole_body_is_not_sent_again(failures: Failures) -> None:
    with pytest.raises(UpstreamBroke):
        await failures.respond(UpstreamBroke("broke"))
    assert not failures.fetcher.asked


async def test_a_broken_call_of_a_part_is_made_again_with_the_whole_body(failures: Failures) -> None:
    client_request = failures.request()
    outcome, found = await failures.respond(UpstreamBroke("broke"), keys=(A,), client_request=client_request)
    assert (outcome, content(found)) == (RequestOutcome.MISS, REPLAYED)
    assert failures.fetcher.own_bodies == [client_request]
    assert failures.fetcher.asked == [client_request.origin]


async def test_a_part_is_not_sent_again_if_that_cannot_help_or_may_not_be_tried(failures: Failures) -> None:
    with pytest.raises(UpstreamUnreachable):
        await failures.respond(UpstreamUnreachable("down"), keys=(A,))
    failures.fetcher.has_retries = False
    with pytest.raises(UpstreamBroke):
        await failures.respond(UpstreamBroke("broke"), keys=(A,))
    assert not failures.fetcher.own_bodies


async def test_a_failure_without_a_call_is_not_sent_again(failures: Failures) -> None:
    with pytest.raises(UpstreamBroke):
        await failures.responses.respond(failures.request(), Failure(UpstreamBroke("broke")))
    assert not failures.fetcher.asked


# --- the upstream's errors


async def test_the_response_to_the_clients_own_body_is_relayed(failures: Failures) -> None:
    outcome, found = await failures.relayed(response(400, b"item 1 is too long", X_Some="1"))
    assert (outcome, found.status, content(found)) == (RequestOutcome.ERROR, 400, b"item 1 is too long")
    assert found.headers["X-Some"] == "1"
    assert found.headers["X-Cache"] == "MISS"
    assert found.headers["Cache-Status"] == "embedding-proxy; fwd=miss; fwd-status=400"
    assert found.headers["X-Cache-Saved-Tokens"] == "0"
    assert not failures.fetcher.own_bodies
    assert failures.items == 0


async def test_what_is_everybodys_is_relayed_whatever_was_sent(failures: Failures) -> None:
    outcome, found = await failures.respond(ErrorResponse(response(401, b"bad key"), OTHER_BODY), keys=(A,))
    assert (outcome, found.status, content(found)) == (RequestOutcome.ERROR, 401, b"bad key")
    assert not failures.fetcher.own_bodies


async def test_an_error_about_another_body_is_none_about_the_clients(failures: Failures) -> None:
    failures.fetcher.has_retries = False  # it is no outage
    outcome, found = await failures.respond(ErrorResponse(response(400, b"item 0"), OTHER_BODY), keys=(A,))
    assert (outcome, content(found)) == (RequestOutcome.MISS, REPLAYED)


async def test_what_may_be_an_outage_is_asked_again_while_it_may_be(failures: Failures) -> None:
    outcome, found = await failures.respond(ErrorResponse(response(500, b"item 0"), OTHER_BODY), keys=(A,))
    assert (outcome, content(found)) == (RequestOutcome.MISS, REPLAYED)
    failures.fetcher.has_retries = False
    outcome, found = await failures.respond(ErrorResponse(response(500, b"item 0"), OTHER_BODY), keys=(A,))
    assert (outcome, found.status) == (RequestOutcome.ERROR, 500)
    assert b"item 0" not in content(found)
    assert len(failures.fetcher.own_bodies) == 1


async def test_the_failure_of_the_second_call_is_raised(failures: Failures) -> None:
    failures.fetcher.response = UpstreamUnreachable("gone")
    with pytest.raises(UpstreamUnreachable, match="gone"):
        await failures.respond(ErrorResponse(response(400, b""), OTHER_BODY), keys=(A,))


# --- responses that can't be stored


async def test_an_invalid_response_to_the_clients_own_body_is_relayed_and_said_once(
    failures: Failures, caplog: pytest.LogCaptureFixture
) -> None:
    client_request = failures.request()
    cause = InvalidResponse(response(200, b"odd"), client_request.parsed.body, "dimensions", by_origin=True)
    for _ in range(2):
        outcome, found = await failures.respond(cause, client_request=client_request)
        assert (outcome, found.status, content(found)) == (RequestOutcome.MISS, 200, b"odd")
    assert failures.items == 4
    assert proxy_log.messages(caplog) == [
        "a response of the upstream is relayed and not stored: dimensions (logged once; counted in metrics)"
    ]


async def test_an_invalid_response_to_a_part_is_not_relayed(failures: Failures) -> None:
    cause = InvalidResponse(response(200, b"odd"), OTHER_BODY, "dimensions", by_origin=True)
    outcome, found = await failures.respond(cause, keys=(A,))
    assert (outcome, content(found)) == (RequestOutcome.MISS, REPLAYED)


async def test_an_error_inside_a_200_to_a_part_is_not_relayed_whatever_it_is_about(failures: Failures) -> None:
    odd = response(200, {"error": {"code": 429, "message": "slow"}})
    cause = InvalidResponse(odd, OTHER_BODY, "error-in-200", by_origin=True)
    outcome, found = await failures.respond(cause, keys=(A,))
    assert (outcome, content(found)) == (RequestOutcome.MISS, REPLAYED)


async def test_a_client_whose_response_is_relayed_is_known_from_then_on(failures: Failures) -> None:
    client_request = failures.request()
    client_request.client = "team"
    await failures.responses.send_own_body(client_request)
    assert failures.metrics.ledger.label_of("team") == "team"
    assert failures.metrics.row("team", "m").items[ItemResult.UPSTREAM] == 2


async def test_an_error_inside_a_200_is_an_error(failures: Failures) -> None:
    outcome, found = await failures.relayed(response(200, {"error": {"code": 429, "message": "slow"}}))
    assert (outcome, found.status) == (RequestOutcome.ERROR, 200)
    assert failures.items == 0


# --- the proxy's own key, and its base URL


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["status", "inside 200", "compressed inside 200"])
async def test_a_refusal_of_the_proxys_own_key_is_not_the_clients(
    failures: Failures, status: int, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = orjson.dumps({"error": {"code": status, "message": "bad key sk-own"}})
    refusal = response(status if where == "status" else 200, body)
    if where == "compressed inside 200":
        refusal = response(200, gzip.compress(body), Content_Encoding="gzip")
    with pytest.raises(KeyRefused) as raised:
        await failures.relayed(refusal, key="sk-own")
    assert "sk-own" not in str(raised.value)
    assert proxy_log.messages(caplog) == [
        f"an upstream refused the key that the proxy holds for it: status {status} from one"
        " (logged once; counted in metrics)"
    ]
    outcome, found = await failures.relayed(refusal)  # the client's key
    assert (outcome, found.status) == (RequestOutcome.ERROR, refusal.status)


@pytest.mark.parametrize("status", [404, 405])
async def test_a_wrong_base_url_is_said_once(failures: Failures, status: int, caplog: pytest.LogCaptureFixture) -> None:
    for has_succeeded in (True, False, False):
        failures.client.has_succeeded = has_succeeded
        client_request = failures.request()
        client_request.url += "?api-version=1"
        cause = ErrorResponse(response(status, b""), client_request.parsed.body)
        outcome, found = await failures.respond(cause, client_request=client_request)
        assert (outcome, found.status) == (RequestOutcome.ERROR, status)
        assert bool(proxy_log.messages(caplog)) is not has_succeeded
    assert proxy_log.messages(caplog) == [
        f"perhaps the base URL is wrong, or the model's name: {status} from http://upstream/v1/embeddings"
        " (logged once; counted in metrics)"
    ]


async def test_another_error_says_nothing_of_the_base_url(failures: Failures, caplog: pytest.LogCaptureFixture) -> None:
    failures.client.has_succeeded = False
    await failures.relayed(response(400, b""))
    assert not proxy_log.messages(caplog)


# --- how it is relayed


async def test_the_fields_of_other_caches_and_of_the_connection_are_no_longer_true(failures: Failures) -> None:
    upstream = response(
        429, b"slow", X_Cache="HIT", Cache_Status="other; hit", Connection="close", Content_Length="999"
    )
    _, found = await failures.relayed(upstream)
    assert found.headers.getall("X-Cache") == ["MISS"]
    assert found.headers.getall("Cache-Status") == [
        "other; hit", "embedding-proxy; fwd=miss; fwd-status=429"
    ]  # fmt: skip
    assert "Connection" not in found.headers
    assert found.content_length == 4


@pytest.mark.parametrize("size", [LARGE_BYTES, LARGE_BYTES + 1])
async def test_a_large_response_is_written_in_parts_and_takes_memory_meanwhile(failures: Failures, size: int) -> None:
    client_request = failures.request()
    failures.fetcher.response = response(200, b"x" * size, X_Some="1")
    outcome, found = await failures.responses.send_own_body(client_request)
    is_large = size > LARGE_BYTES
    assert (outcome, found.status, found.content_length) == (RequestOutcome.MISS, 200, size)
    assert isinstance(found, Streamed) is is_large
    assert (found.headers["X-Some"], found.headers["X-Cache"]) == ("1", "MISS")
    if isinstance(found, Streamed):
        assert b"".join(found.parts) == b"x" * size
    assert client_request.reservation.bytes == (size if is_large else 0)


async def test_a_large_response_is_not_relayed_without_memory_for_it(failures: Failures) -> None:
    client_request = failures.request()
    failures.fetcher.response = response(200, b"x" * (LARGE_BYTES + 1))
    client_request.reservation._capacity.take(Tenant(b"another"), 1, 1)
    with pytest.raises(Overloaded):
        await failures.responses.send_own_body(client_request)


async def test_a_relayed_response_counts_for_the_model_that_the_path_names(failures: Failures) -> None:
    """Azure's bodies name none."""
    client_request = failures.request()
    client_request.parsed = client_request.parsed._replace(model=None)
    failures.metrics.admit_model("m")
    cause = ErrorResponse(response(203, {"data": []}), client_request.parsed.body)
    outcome, _ = await failures.respond(cause, client_request=client_request)
    assert (outcome, failures.items) == (RequestOutcome.MISS, 2)
    assert failures.metrics.of_model(None).items[ItemResult.UPSTREAM].value == 0
