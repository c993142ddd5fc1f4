"""Who may read the upstream's response to a call that failed."""

from multidict import CIMultiDict, CIMultiDictProxy

from proxy.errors import Overloaded
from proxy.fetch.outcomes import ErrorResponse
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.result import Failure
from proxy.tenant import Tenant
from proxy.upstream.client import UpstreamResponse
from tests.support.client_requests import client_request_for

A = b"a" * 32


def request() -> FetchRequest:
    return FetchRequest(client_request_for(["private text"], [A]), [A], Policy(min_stored_at_s=0))


def quoting() -> ErrorResponse:
    headers = CIMultiDictProxy(CIMultiDict({"Retry-After": "3", "X-Debug": "private text"}))
    return ErrorResponse(UpstreamResponse(status=429, reason="", headers=headers, body=b"private text"), b"{}")


def test_only_the_reader_gets_the_upstreams_words() -> None:
    mine, other = request(), request()
    failure = Failure(quoting(), mine, reader=mine.client_request)
    assert failure.for_client(mine.client_request) is failure.cause
    seen = failure.for_client(other.client_request)
    assert isinstance(seen, ErrorResponse)
    assert b"private text" not in seen.response.body
    assert dict(seen.response.headers) == {"Content-Type": "application/json", "Retry-After": "3"}


def test_a_failure_without_reader_is_nobodys() -> None:
    mine = request()
    seen = Failure(quoting(), mine).for_client(mine.client_request)
    assert isinstance(seen, ErrorResponse)
    assert b"private text" not in seen.response.body


def test_too_many_requests_of_one_tenant_are_no_failure_of_another() -> None:
    mine, same, other = request(), request(), request()
    other.client_request.reservation.tenant = Tenant(b"other")
    failure = Failure(Overloaded("too much waits"), mine)
    assert (failure.is_for(same), failure.is_for(other)) == (True, False)
