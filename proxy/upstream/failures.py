"""Failures to get a response: the one place where exceptions of the HTTP client become the proxy's own errors."""

import re
import ssl
from http import HTTPStatus
from typing import NamedTuple

from aiohttp import (
    ClientConnectionResetError,
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientError,
    ClientHttpProxyError,
    ClientOSError,
    ClientPayloadError,
    ClientResponseError,
    ClientSSLError,
    ConnectionTimeoutError,
    ServerDisconnectedError,
)

from proxy.errors import ProxyError, UpstreamBroke, UpstreamStalled, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream.egress import ForwardProxy

_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"})
# Alerts about a client's certificate (RFC 8446 §6.2), as OpenSSL names them.
_REFUSED_CERTIFICATE = re.compile(
    r".*ALERT_(UNKNOWN_CA|(BAD|UNSUPPORTED)_CERTIFICATE|CERTIFICATE_(REVOKED|EXPIRED|UNKNOWN)|ACCESS_DENIED)"
)


class FailureMapper:
    """Maps the exceptions of requests to one upstream to an error for the client, without addresses, and to a text for
    the operator, with addresses."""

    def __init__(self, proxy: ForwardProxy | None) -> None:
        self._proxy = proxy

    def to_error(self, error: Exception, *, is_connected: bool = True) -> ProxyError:
        """``is_connected``: the request had got a connection."""
        if isinstance(error.__cause__, ProxyError):
            return error.__cause__  # the request's own body failed: not the upstream's fault
        # A failure of the route to the upstream is the same for every call.
        is_route_failure = isinstance(error, ClientConnectorError | ConnectionTimeoutError | ClientHttpProxyError)
        may_be_about_call = is_connected and not is_route_failure and not is_tls_alert(error)
        if isinstance(error, TimeoutError):
            return (UpstreamStalled if may_be_about_call else UpstreamTimeout)("The upstream did not respond in time.")
        message = f"The upstream could not be reached: {self._reason(error, is_connected).why}."
        return (UpstreamBroke if may_be_about_call else UpstreamUnreachable)(message)

    def describe(self, error: Exception, *, is_connected: bool = True) -> str:
        """For the operator: with addresses and a hint, without credentials."""
        if isinstance(error, ClientHttpProxyError):
            text = f"it answered {error.status} to CONNECT"  # the exception's text has the URL with its query
        else:
            # The client calls a connection without TLS "ssl:default", and shows the context of one with TLS.
            text = re.sub(r" ssl:(\w+|<[^>]*>)(?= \[)", "", str(error)) or type(error).__name__
        hint = self._reason(error, is_connected).hint
        through = "" if self._proxy is None else f"through {self._proxy.url}: "
        return f"{through}{text}{'; ' if hint else ''}{hint}"

    def is_connect_failure(self, error: Exception) -> bool:
        """Whether ``error``, of a request that got no connection, shows that none can be made."""
        return isinstance(error, ClientConnectorError | TimeoutError) or self._is_proxy_failure(error)

    def _reason(self, error: Exception, is_connected: bool) -> "_Reason":
        proxy = self._proxy
        if isinstance(error, ClientHttpProxyError):
            is_anonymous = proxy is not None and proxy.authorization is None
            is_login = error.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
            hint = "give user:password@ in its URL" if is_login and is_anonymous else ""
            return _Reason(_proxy_refusal(error.status), hint)
        if proxy is not None and isinstance(error, ClientConnectorError):
            is_at_proxy = (error.host, error.port) == (proxy.host, proxy.port)
        else:
            is_at_proxy = not is_connected and self._is_proxy_failure(error)
        if is_at_proxy:
            return _reason(error, "the forward proxy", "the forward proxy's")
        return _reason(error, "it", "its")

    def _is_proxy_failure(self, error: Exception) -> bool:
        """Whether the forward proxy caused ``error`` of a request that got no connection: it refused CONNECT, sent an
        invalid response to it, or none."""
        kinds = (ServerDisconnectedError, ClientResponseError, OSError)
        return self._proxy is not None and isinstance(error, kinds)


class _Reason(NamedTuple):
    why: str  # after "The upstream could not be reached: "
    hint: str = ""  # what the operator can do


def proxy_refused(status: int) -> UpstreamUnreachable:
    """The forward proxy itself responded with ``status``."""
    return UpstreamUnreachable(f"The upstream could not be reached: {_proxy_refusal(status)}.")


def broke_midway(error: Exception) -> ProxyError:
    """For a response that failed while its body was being relayed."""
    if isinstance(error, TimeoutError):
        return UpstreamTimeout("The upstream's response stalled.")
    return UpstreamUnreachable("The upstream's response was cut off.")


def is_tls_alert(error: Exception) -> bool:
    """Whether the server ended TLS with an alert, as when it refuses a client certificate. With TLS 1.3 that alert
    comes after the handshake."""
    return "ALERT" in _tls_reason(error)


def broke_before_response(error: ClientError) -> bool:
    """Whether a request's connection broke before the first byte of a response."""
    if isinstance(error, ServerDisconnectedError):
        return isinstance(error.message, str)  # otherwise it is the part of the head that was received
    return isinstance(error, ClientOSError | ClientConnectionResetError) and not isinstance(error, ClientConnectorError)


def _proxy_refusal(status: int) -> str:
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return "the forward proxy refused this proxy's credentials (407)"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"the forward proxy can't connect to it ({status})"
    return f"the forward proxy does not allow it ({status})"


def _reason(error: Exception, it: str, its: str) -> _Reason:
    tls = _tls_reason(error)
    if tls in _NO_TLS:
        return _Reason(f"{it} does not speak TLS", "is its URL http:// and not https://?")
    if tls.endswith("CERTIFICATE_REQUIRED"):
        return _Reason(f"{it} asks for a client certificate", "give --upstream-cert")
    if _REFUSED_CERTIFICATE.fullmatch(tls):
        return _Reason(f"{it} refused this proxy's client certificate")
    for kind, words, hint in (
        (ClientConnectorDNSError, f"{its} host name is not known", ""),
        (ClientConnectorCertificateError, f"{its} certificate is not trusted", "set --upstream-ca to its authority"),
        (ClientSSLError, f"TLS with {it} failed", ""),
        (ClientConnectorError, f"{it} can't be connected to", ""),
        (ServerDisconnectedError, f"{it} closed the connection without a response", ""),
        (ClientPayloadError, f"{its} response was cut off", ""),
        (ClientResponseError, f"{its} response is not HTTP", ""),
    ):
        if isinstance(error, kind):
            return _Reason(words, hint)
    return _Reason("the connection broke")


def _tls_reason(error: BaseException | None) -> str:
    """OpenSSL's name of the TLS failure behind an error; "" if there is none."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and getattr(error, "reason", None):  # aiohttp's own subclasses have none
            return error.reason
        error = error.__cause__
    return ""
