"""Redirects of one upstream: never followed; clients get locations on this proxy."""

import logging

from multidict import CIMultiDict

from proxy.protocol.headers import Headers
from proxy.protocol.targets import loggable_path, resolve
from proxy.upstream.urls import Routes

_log = logging.getLogger(__name__)

_STATUSES = frozenset({301, 302, 303, 307, 308})
_LOCATIONS = ("Location", "Content-Location")  # RFC 9110 §10.2.2, §8.7


class Redirects:
    def __init__(self, name: str, routes: Routes) -> None:
        self._name = name
        self._routes = routes
        self._has_warned = False

    def relocate(self, url: str, headers: CIMultiDict[str]) -> None:
        """Change the locations in the fields of a response from ``url`` so that they lead a client through this proxy.
        A location that no path of this proxy leads to is removed."""
        for name in _LOCATIONS:
            for location in headers.popall(name, ()):
                target = self._routes.client_location(url, location)
                if target is not None:
                    headers.add(name, target)

    def check(self, url: str, status: int, headers: Headers) -> None:
        """Warn once if the upstream redirects the embeddings route: the base URL is probably wrong."""
        if status not in _STATUSES or self._has_warned:
            return
        location = headers.get("Location", "")
        hint = self._routes.redirect_hint(url, location)
        if hint is None:
            return
        self._has_warned = True
        there = resolve(url, location)
        _log.warning(
            "upstream %s redirects embeddings calls (%d, to %s%s); redirects are not followed: %s (logged once)",
            self._name,
            status,
            there._replace(path="").address,
            loggable_path(there.path),  # the client's own path may be in it
            hint,
        )


def has_location(headers: Headers) -> bool:
    return any(name in headers for name in _LOCATIONS)
