"""Settings for reaching an upstream: forward proxy, trusted authorities, client certificate (pure)."""

import re
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from proxy.errors import ConfigError
from proxy.upstream import base_urls

NONE = "none"  # as a setting: no forward proxy, in spite of a file or a variable
_ACCEPTED = "accepted: http://host:port or https://host:port, with user:password@ before the host if it asks for them"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardProxy:
    """An HTTP proxy: it gets CONNECT for an https upstream (RFC 9110 §9.3.6), and the requests themselves, in absolute
    form, for an http one (RFC 9112 §3.2.2)."""

    url: str  # scheme, host and port; no credentials, so that it can be shown
    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)  # the value of Proxy-Authorization


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """The files are PEM."""

    proxy: ForwardProxy | None = None  # None: connect directly; the environment is ignored
    ca: Path | None = None  # the only trusted authorities; None: the system's
    cert: Path | None = None  # for a server that asks for one; a chain, the client's own certificate first
    cert_key: Path | None = None  # None: in the same file as the certificate

    @property
    def has_files(self) -> bool:
        return self.ca is not None or self.cert is not None


DIRECT = Egress()


def parse_proxy(text: str) -> ForwardProxy | None:
    """Parse ``http://user:password@host:port``, percent-encoded; None for ``none``. The scheme is Basic (RFC 7617).

    Raises `ConfigError`, which never shows user or password.
    """
    url = text.strip()
    if url.lower() == NONE:
        return None
    parts = base_urls.split(url)
    if parts is None or parts.hostname is None or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ConfigError(f"{_redacted(url)!r} is not a forward proxy; {_hint(url) or _ACCEPTED}")
    login, _, authority = parts.netloc.rpartition("@")
    plain = f"{parts.scheme}://{authority}"
    if not base_urls.is_plain(plain):
        raise ConfigError(f"{_redacted(url)!r} is not a forward proxy; {_ACCEPTED}")
    return ForwardProxy(
        url=plain,
        host=parts.hostname,
        port=parts.port or (443 if parts.scheme == "https" else 80),
        authorization=_authorization(login) if login else None,
    )


def _authorization(login: str) -> str:
    user, _, password = login.partition(":")
    user, password = unquote(user), unquote(password)
    if ":" in user or _CONTROL.search(user + password):
        raise ConfigError("the forward proxy's user contains a colon, or its user or password a control character")
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def _redacted(url: str) -> str:
    """The URL without user, password, path and query, however malformed."""
    scheme, mark, rest = url.partition("://")
    if not mark or not _SCHEME.fullmatch(scheme):
        scheme, mark, rest = "", "", url
    login, at, host = rest.rpartition("@")
    return scheme + mark + ("…@" if login or at else "") + re.split(r"[/?#]", host)[0]


def _hint(url: str) -> str:
    if url.lower().startswith("socks"):
        return f"SOCKS is not supported; {_ACCEPTED}"
    if "@" in url:
        return f"{_ACCEPTED}; percent-encode special characters in these, as %40 for @"
    guess = f"http://{url}"
    return f"did you mean {guess}?" if _SCHEME.match(url) and base_urls.is_plain(guess) and "/" not in url else ""
