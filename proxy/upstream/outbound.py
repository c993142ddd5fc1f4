"""The way out to one upstream: its forward proxy and its TLS as the HTTP client takes them, and why it failed."""

import logging
import re
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientHttpProxyError,
    ClientPayloadError,
    ClientResponseError,
    ClientSSLError,
    ConnectionTimeoutError,
    ServerDisconnectedError,
)
from multidict import CIMultiDict

from proxy.errors import ConfigError, ProxyError, UpstreamBroke, UpstreamStalled, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream.egress import Egress

_log = logging.getLogger(__name__)

_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")
_ENCRYPTED_KEY = re.compile(r"-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED")
_DER = b"\x30\x82"
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"})
# What a server says of a client's certificate (RFC 8446 §6.2), as OpenSSL names it.
_REFUSED_CERTIFICATE = re.compile(
    r".*ALERT_(UNKNOWN_CA|(BAD|UNSUPPORTED)_CERTIFICATE|CERTIFICATE_(REVOKED|EXPIRED|UNKNOWN)|ACCESS_DENIED)"
)


class Outbound:
    def __init__(self, name: str, egress: Egress) -> None:
        """``name`` is the upstream's. Raises `ConfigError` for files that can't be used."""
        self._name = name
        self._egress = egress
        self._tls: ssl.SSLContext | bool = True  # True: the client's default
        self._stamps: list[tuple[int, int, int] | None] = []
        self.reload()

    def reload(self) -> None:
        """Read the files again, for connections made from now on. Raises `ConfigError`, and then nothing changes."""
        if self._egress.has_files:
            # Noted first: what changes while the files are read is a change.
            self._stamps = self._stamped()
            try:
                self._tls = _context(self._egress)
            except ConfigError as error:
                raise ConfigError(f"upstream {self._name}: {error}") from None

    def refresh(self, *, is_told: bool = False) -> None:
        """Read the files again if they have changed, or in any case if the operator asks and ``is_told`` the result.

        What can't be used is logged, and changes nothing.
        """
        if not self._egress.has_files or not (is_told or self._stamped() != self._stamps):
            return
        try:
            self.reload()
            _log.info("upstream %s: certificates read again", self._name)
        except ConfigError as error:
            _log.error("%s; going on with those there were", error)

    def _stamped(self) -> list[tuple[int, int, int] | None]:
        """What changes with the files: a volume of Kubernetes' has other files at the same path when it is updated."""
        return [_stamp(path) for path in (self._egress.ca, self._egress.cert, self._egress.cert_key) if path]

    def options(self, url: str) -> Mapping[str, Any]:
        """Keywords of the HTTP client's for a request to ``url``."""
        proxy = self._egress.proxy
        if proxy is None:
            return {"ssl": self._tls}
        # The client would take credentials in the proxy's URL, too, but shows that URL in errors and warnings.
        fields = {"Proxy-Authorization": proxy.authorization} if proxy.authorization and _is_tls(url) else None
        return {"ssl": self._tls, "proxy": proxy.url, "proxy_headers": fields}

    def fields(self, url: str, headers: CIMultiDict[str]) -> CIMultiDict[str]:
        """``headers`` with what the forward proxy is to see. To an https upstream only CONNECT carries that."""
        proxy = self._egress.proxy
        if proxy is None or proxy.authorization is None or _is_tls(url):
            return headers
        headers = headers.copy()
        headers["Proxy-Authorization"] = proxy.authorization
        return headers

    def require_proxy_login(self, url: str, status: int) -> None:
        """Raises `UpstreamUnreachable` if this answer is the forward proxy's own: it wants other credentials."""
        if self._egress.proxy is not None and not _is_tls(url) and status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            raise UpstreamUnreachable(f"The upstream could not be reached: {_refusal(status)}.")

    def is_unconnected(self, error: Exception) -> bool:
        """Whether ``error``, of a request that got no connection, tells that none can be had."""
        return isinstance(error, ClientConnectorError | TimeoutError) or self._is_proxys(error)

    def is_refusal(self, error: Exception) -> bool:
        """Whether the server ended TLS with an alert, as it does to a certificate: with TLS 1.3 after the handshake."""
        return "ALERT" in _tls_reason(error)

    def mapped(self, error: Exception, *, is_connected: bool = True) -> ProxyError:
        """What the client is told; the exception's own text would name addresses."""
        if isinstance(error.__cause__, ProxyError):
            return error.__cause__  # the request's own body failed, which is no fault of the upstream
        # Whatever is wrong with the way is wrong for every call.
        is_the_ways = isinstance(error, ClientConnectorError | ConnectionTimeoutError | ClientHttpProxyError)
        may_be_calls = is_connected and not is_the_ways and not self.is_refusal(error)
        if isinstance(error, TimeoutError):
            return (UpstreamStalled if may_be_calls else UpstreamTimeout)("The upstream did not answer in time.")
        message = f"The upstream could not be reached: {self._reason(error, is_connected).why}."
        return (UpstreamBroke if may_be_calls else UpstreamUnreachable)(message)

    def described(self, error: Exception, *, is_connected: bool = True) -> str:
        """The same for the operator, with addresses, without credentials, and with what to do."""
        proxy = self._egress.proxy
        if isinstance(error, ClientHttpProxyError):
            text = f"it answered {error.status} to CONNECT"  # the exception's text has the URL with its query
        else:
            # The client calls a connection without TLS "ssl:default", and shows the context of one with TLS.
            text = re.sub(r" ssl:(\w+|<[^>]*>)(?= \[)", "", str(error)) or type(error).__name__
        hint = self._reason(error, is_connected).hint
        through = "" if proxy is None else f"through {proxy.url}: "
        return f"{through}{text}{'; ' if hint else ''}{hint}"

    def _reason(self, error: Exception, is_connected: bool) -> "_Reason":
        proxy = self._egress.proxy
        if isinstance(error, ClientHttpProxyError):
            is_anonymous = proxy is not None and proxy.authorization is None
            is_login = error.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
            return _Reason(
                _refusal(error.status), "give user:password@ in its URL" if is_login and is_anonymous else ""
            )
        if proxy is not None and isinstance(error, ClientConnectorError):
            is_at_proxy = (error.host, error.port) == (proxy.host, proxy.port)
        else:
            is_at_proxy = not is_connected and self._is_proxys(error)
        return (
            _reason(error, "the forward proxy", "the forward proxy's") if is_at_proxy else _reason(error, "it", "its")
        )

    def _is_proxys(self, error: Exception) -> bool:
        """Whether ``error``, of a request that got no connection, is the forward proxy's doing: it refused CONNECT, or
        answered it with nonsense, or not at all."""
        kinds = (ServerDisconnectedError, ClientResponseError, OSError)
        return self._egress.proxy is not None and isinstance(error, kinds)


class _Reason(NamedTuple):
    why: str  # after "The upstream could not be reached: "
    hint: str = ""  # what the operator may do about it


def _refusal(status: int) -> str:
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
        (ClientConnectorCertificateError, f"{its} certificate is not trusted", "--upstream-ca says whom to trust"),
        (ClientSSLError, f"TLS with {it} failed", ""),
        (ClientConnectorError, f"{it} can't be connected to", ""),
        (ServerDisconnectedError, f"{it} closed the connection without an answer", ""),
        (ClientPayloadError, f"{its} answer broke off", ""),
        (ClientResponseError, f"{its} answer is not HTTP", ""),
    ):
        if isinstance(error, kind):
            return _Reason(words, hint)
    return _Reason("the connection broke")


def _tls_reason(error: BaseException | None) -> str:
    """OpenSSL's name of the failure of TLS behind an error; "" if there is none."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and getattr(error, "reason", None):  # aiohttp's own subclasses have none
            return error.reason
        error = error.__cause__
    return ""


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _is_tls(url: str) -> bool:
    return url.startswith("https:")


def _context(egress: Egress) -> ssl.SSLContext:
    context = ssl.create_default_context() if egress.ca is None else _trusting(egress.ca)
    context.set_alpn_protocols(["http/1.1"])
    if egress.cert is not None:
        _show(context, egress.cert, egress.cert_key or egress.cert)
    return context


def _trusting(ca: Path) -> ssl.SSLContext:
    """Trust these authorities and no others."""
    text = _read(ca, "the CA file")
    if _CERTIFICATE not in text:
        raise ConfigError(f"the CA file {ca} has no certificate in PEM form{_der_hint(ca)}")
    try:
        context = ssl.create_default_context(cadata=text)
    except ssl.SSLError as error:
        raise ConfigError(f"the CA file {ca} can't be read: {error.reason or error}") from error
    # Python 3.13 sets both. Authorities of companies often fail the strict rules (no key usage, no key identifier) and
    # are trusted all the same, since the operator names them; and one in the middle of a chain may be the one named.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _show(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Present this certificate to a server that asks for one."""
    if _CERTIFICATE not in _read(cert, "the client certificate"):
        raise ConfigError(f"{cert} has no certificate in PEM form{_der_hint(cert)}")
    text = _read(key, "the client certificate's key")
    if _ENCRYPTED_KEY.search(text):
        raise ConfigError(
            f"the key in {key} is encrypted, and there is nobody to ask for its password;"
            f" decrypt it: openssl pkey -in {key} -out FILE"
        )
    if not _PRIVATE_KEY.search(text):
        hint = "; give --upstream-cert-key, or cert_key in an [[upstream]] table" if key == cert else ""
        raise ConfigError(f"{key} has no private key in PEM form{hint}")
    try:
        # Without a password the library would ask for one at the terminal.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        if "MISMATCH" in (error.reason or ""):
            raise ConfigError(
                f"the key in {key} is not that of the first certificate in {cert}; a chain begins with the client's own"
            ) from error
        raise ConfigError(f"{cert} and {key} can't be used: {error.reason or error}") from error


def _read(path: Path, what: str) -> str:
    try:
        return path.read_bytes().decode("ascii", errors="ignore")  # bundles have names in comments
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror}") from error


def _der_hint(path: Path) -> str:
    if not path.read_bytes().startswith(_DER):
        return ""
    return f"; it is DER: openssl x509 -inform DER -in {path} -out FILE"
