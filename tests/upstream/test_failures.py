"""What an exception of the HTTP client means: to the client without addresses, to the operator with a hint."""

import ssl
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.errors import BodyTooLarge, ProxyError, UpstreamBroke, UpstreamStalled, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream.egress import ForwardProxy
from proxy.upstream.failures import FailureMapper, broke_before_response, broke_midway, is_tls_alert, proxy_refused

PROXY = ForwardProxy(url="http://forward:3128", host="forward", port=3128)
KNOWN = ForwardProxy(url="http://forward:3128", host="forward", port=3128, authorization="Basic x")
INFO = RequestInfo(URL("http://h/?key=secret"), "POST", CIMultiDictProxy(CIMultiDict()), URL("http://h/?key=secret"))


def key_of(host: str, port: int) -> ConnectionKey:
    return ConnectionKey(host, port, False, True, None, None, None)


def at(host: str, kind: Any = aiohttp.ClientConnectorError, *, port: int = 443) -> Exception:
    made: Exception = kind(key_of(host, port), OSError(111, "Connection refused"))
    return made


def tls(reason: str, *, kind: Any = aiohttp.ClientConnectorSSLError) -> Exception:
    """As aiohttp raises a failure that OpenSSL calls ``reason``."""
    cause = ssl.SSLError(1, f"[SSL: {reason}] failed")
    cause.reason = reason
    made: Exception = kind(key_of("h", 443), cause) if kind is not aiohttp.ClientOSError else kind(1, "broke")
    made.__cause__ = cause
    return made


def http_proxy_error(status: int) -> Exception:
    return aiohttp.ClientHttpProxyError(INFO, (), status=status, message="no")


def why(error: Exception, proxy: ForwardProxy | None = None, *, is_connected: bool = True) -> str:
    message = FailureMapper(proxy).to_error(error, is_connected=is_connected).message
    assert message.startswith("The upstream could not be reached: ")
    return message.removeprefix("The upstream could not be reached: ").removesuffix(".")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (at("h", aiohttp.ClientConnectorDNSError), "its host name is not known"),
        (at("h"), "it can't be connected to"),
        (tls("WRONG_VERSION_NUMBER"), "it does not speak TLS"),
        (tls("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "it asks for a client certificate"),
        (tls("TLSV1_ALERT_UNKNOWN_CA"), "it refused this proxy's client certificate"),
        (tls("SSLV3_ALERT_BAD_CERTIFICATE"), "it refused this proxy's client certificate"),
        (tls("SSLV3_ALERT_HANDSHAKE_FAILURE"), "TLS with it failed"),
        (aiohttp.ServerDisconnectedError(), "it closed the connection without a response"),
        (aiohttp.ClientPayloadError(), "its response was cut off"),
        (aiohttp.ClientResponseError(INFO, ()), "its response is not HTTP"),
        (aiohttp.ClientOSError(104, "reset"), "the connection broke"),
    ],
)
def test_the_client_reads_what_happened(error: Exception, expected: str) -> None:
    assert why(error) == expected


def test_failures_at_the_forward_proxy_are_told_apart_from_those_behind_it() -> None:
    assert why(at("forward", port=3128), PROXY) == "the forward proxy can't be connected to"
    assert why(at("forward", aiohttp.ClientConnectorDNSError, port=3128), PROXY) == (
        "the forward proxy's host name is not known"
    )
    assert why(at("forward", port=443), PROXY) == why(at("h", port=3128), PROXY) == "it can't be connected to"
    gone = aiohttp.ServerDisconnectedError()
    assert why(gone, PROXY, is_connected=False) == "the forward proxy closed the connection without a response"
    assert why(gone, PROXY) == why(gone, None, is_connected=False) == "it closed the connection without a response"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (407, "the forward proxy refused this proxy's credentials (407)"),
        (403, "the forward proxy does not allow it (403)"),
        (500, "the forward proxy can't connect to it (500)"),
        (504, "the forward proxy can't connect to it (504)"),
    ],
)
def test_a_refusal_of_the_forward_proxy_has_its_status(status: int, expected: str) -> None:
    assert why(http_proxy_error(status), PROXY) == expected
    assert proxy_refused(status).message == f"The upstream could not be reached: {expected}."


def kind_of(error: Exception, *, is_connected: bool = True) -> type[ProxyError]:
    return type(FailureMapper(None).to_error(error, is_connected=is_connected))


def test_only_a_request_that_was_sent_may_have_caused_its_failure() -> None:
    assert kind_of(aiohttp.ServerDisconnectedError()) is UpstreamBroke
    assert kind_of(aiohttp.ServerDisconnectedError(), is_connected=False) is UpstreamUnreachable
    assert kind_of(at("h")) is kind_of(http_proxy_error(403)) is UpstreamUnreachable
    assert kind_of(tls("TLSV1_ALERT_UNKNOWN_CA", kind=aiohttp.ClientOSError)) is UpstreamUnreachable
    assert kind_of(aiohttp.ServerTimeoutError()) is UpstreamStalled
    assert kind_of(aiohttp.ServerTimeoutError(), is_connected=False) is UpstreamTimeout
    assert kind_of(aiohttp.ConnectionTimeoutError()) is UpstreamTimeout


def test_a_failure_of_the_requests_own_body_is_not_the_upstreams() -> None:
    error, own = aiohttp.ClientConnectionError(), BodyTooLarge("too large")
    error.__cause__ = own
    assert FailureMapper(None).to_error(error) is own


def test_the_operator_reads_addresses_and_what_to_do_but_no_credential() -> None:
    told = FailureMapper(None).describe
    assert told(at("h", port=8443)) == "Cannot connect to host h:8443 [Connection refused]"
    assert told(tls("WRONG_VERSION_NUMBER")).endswith("; is its URL http:// and not https://?")
    assert told(tls("TLSV13_ALERT_CERTIFICATE_REQUIRED")).endswith("; give --upstream-cert")
    assert told(aiohttp.ServerTimeoutError()) == "ServerTimeoutError"
    through = FailureMapper(PROXY).describe
    assert through(http_proxy_error(407)) == (
        "through http://forward:3128: it answered 407 to CONNECT; give user:password@ in its URL"
    )
    assert FailureMapper(KNOWN).describe(http_proxy_error(407)).endswith("it answered 407 to CONNECT")
    assert through(http_proxy_error(403)) == "through http://forward:3128: it answered 403 to CONNECT"


def test_which_failures_show_that_no_connection_can_be_made() -> None:
    direct, proxied = FailureMapper(None).is_connect_failure, FailureMapper(PROXY).is_connect_failure
    assert direct(at("h"))
    assert direct(TimeoutError())
    for error in (aiohttp.ServerDisconnectedError(), http_proxy_error(403), aiohttp.ClientOSError()):
        assert not direct(error)
        assert proxied(error)
    assert not proxied(aiohttp.ClientPayloadError())


def test_only_before_the_first_byte_of_a_response_a_request_may_be_sent_again() -> None:
    assert broke_before_response(aiohttp.ServerDisconnectedError())
    part: Any = aiohttp.http_parser.RawResponseMessage
    assert not broke_before_response(aiohttp.ServerDisconnectedError(part))
    assert broke_before_response(aiohttp.ClientOSError())
    assert broke_before_response(aiohttp.ClientConnectionResetError())
    for error in (at("h"), aiohttp.ClientPayloadError(), aiohttp.ServerTimeoutError()):
        assert not broke_before_response(error)  # type: ignore[arg-type]


def test_a_response_that_breaks_in_its_body() -> None:
    assert type(broke_midway(TimeoutError())) is UpstreamTimeout
    assert broke_midway(aiohttp.ClientPayloadError()).message == "The upstream's response was cut off."


def test_an_alert_is_found_behind_other_errors() -> None:
    outer = aiohttp.ClientOSError()
    outer.__cause__ = tls("TLSV1_ALERT_UNKNOWN_CA", kind=aiohttp.ClientOSError)
    assert is_tls_alert(outer)
    assert not is_tls_alert(tls("WRONG_VERSION_NUMBER"))
    assert not is_tls_alert(aiohttp.ClientOSError())
