"""The connection settings of one upstream, as the HTTP client takes them: its forward proxy and its TLS context."""

import logging
import ssl
from collections.abc import Mapping
from typing import Any

from multidict import CIMultiDict

from proxy.errors import ConfigError
from proxy.upstream import tls
from proxy.upstream.egress import Egress

_log = logging.getLogger(__name__)


class Outbound:
    def __init__(self, name: str, egress: Egress) -> None:
        """``name`` is the upstream's. Raises `ConfigError` for files that can't be used."""
        self._name = name
        self._egress = egress
        self._tls: ssl.SSLContext | bool = True  # True: the client's default
        self._stamps: list[tls.Stamp] = []
        self.is_outdated = False  # its files could not be used when they were last read
        self.reload()

    def reload(self) -> None:
        """Read the files again, for new connections. Raises `ConfigError`, and then nothing changes."""
        if self._egress.has_files:
            # Taken first: a change while the files are read must be noticed later.
            self._stamps = tls.stamps(self._egress)
            self.is_outdated = True
            try:
                self._tls = tls.make_context(self._egress)
            except ConfigError as error:
                raise ConfigError(f"upstream {self._name}: {error}") from None
            self.is_outdated = False

    def refresh(self, *, is_forced: bool = False) -> None:
        """Read the files again if they have changed, or in any case if ``is_forced``, and log the result.

        Files that can't be used are logged and change nothing. They are read again each time, since what made them
        unusable may change without them (the permissions of a folder), but logged only once.
        """
        if not self._egress.has_files:
            return
        has_changed = tls.stamps(self._egress) != self._stamps
        if not (is_forced or has_changed or self.is_outdated):
            return
        is_news = is_forced or has_changed
        try:
            self.reload()
            _log.info("upstream %s: certificates reloaded", self._name)
        except ConfigError as error:
            if is_news:
                _log.error("%s; keeping the previous certificates", error)

    def options(self, url: str) -> Mapping[str, Any]:
        """Keyword arguments of the HTTP client for a request to ``url``."""
        proxy = self._egress.proxy
        if proxy is None:
            return {"ssl": self._tls}
        # The HTTP client accepts credentials in the proxy's URL, but it shows that URL in errors and warnings.
        fields = {"Proxy-Authorization": proxy.authorization} if proxy.authorization and _is_tls(url) else None
        return {"ssl": self._tls, "proxy": proxy.url, "proxy_headers": fields}

    def fields(self, url: str, headers: CIMultiDict[str]) -> CIMultiDict[str]:
        """``headers``, with the forward proxy's credentials if that proxy gets the request itself. For an https
        upstream only CONNECT carries them."""
        proxy = self._egress.proxy
        if proxy is None or proxy.authorization is None or _is_tls(url):
            return headers
        headers = headers.copy()
        headers["Proxy-Authorization"] = proxy.authorization
        return headers

    def is_proxy_response(self, url: str) -> bool:
        """Whether the forward proxy may have made a response from ``url`` itself: inside a TLS tunnel it can't."""
        return self._egress.proxy is not None and not _is_tls(url)


def _is_tls(url: str) -> bool:
    return url.startswith("https:")
