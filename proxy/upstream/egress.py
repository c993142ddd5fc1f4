"""How an upstream is reached: by which forward proxy, whose certificates are trusted, and which one is shown (pure)."""

import re
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from proxy.errors import ConfigError
from proxy.upstream import base_urls

NONE = "none"  # what a setting is given to undo what a file or a variable says
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

    proxy: ForwardProxy | None = None  # None: connect directly, whatever the environment says
    ca: Path | None = None  # the only authorities to be trusted; None: the system's
    cert: Path | None = None  # to show to a server that asks for one; the chain, its own certificate first
    cert_key: Path | None = None  # None: it is in the file of the certificate

    @property
    def has_files(self) -> bool:
        return self.ca is not None or self.cert is not None


DIRECT = Egress()


def parse_proxy(text: str) -> ForwardProxy | None:
    """``http://user:password@host:port``, percent-encoded; None for ``none``. The login is for Basic (RFC 7617).

    Raises `ConfigError`, which never shows the login.
    """
    url = text.strip()
    if url.lower() == NONE:
        return None
    parts = base_urls.split(url)
    if parts is None or parts.hostname is None or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ConfigError(f"{_shown(url)!r} is not a forward proxy; {_hint(url) or _ACCEPTED}")
    login, _, authority = parts.netloc.rpartition("@")
    plain = f"{parts.scheme}://{authority}"
    if not base_urls.is_plain(plain):
        raise ConfigError(f"{_shown(url)!r} is not a forward proxy; {_ACCEPTED}")
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
        raise ConfigError("the user of a forward proxy has a colon in it, or the password a control character")
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def _shown(url: str) -> str:
    """Without user, password, path and query, however badly these are written."""
    scheme, mark, rest = url.partition("://")
    if not mark or not _SCHEME.fullmatch(scheme):
        scheme, mark, rest = "", "", url
    login, at, host = rest.rpartition("@")
    return scheme + mark + ("…@" if login or at else "") + re.split(r"[/?#]", host)[0]


def _hint(url: str) -> str:
    if url.lower().startswith("socks"):
        return f"SOCKS is not supported; {_ACCEPTED}"
    if "@" in url:
        return f"{_ACCEPTED}; percent-encode what is no letter or digit in these, as %40 for @"
    guess = f"http://{url}"
    return f"did you mean {guess}?" if _SCHEME.match(url) and base_urls.is_plain(guess) and "/" not in url else ""
