"""Maps paths on this proxy to URLs of one upstream and back, and recognizes the cached route (pure)."""

import re
from dataclasses import dataclass

from proxy.protocol import targets
from proxy.protocol.provider import Provider
from proxy.protocol.providers import GENERIC

_BASE = re.compile(r"(https?://[^/?#]+)(.*)")
# The end of a base URL. What comes before it is the parent of Azure's routes.
_AZURE_TAIL = re.compile(r"(?:/openai(?:/v1|/deployments/[^/]+)?|(?:/api)?/v1)\Z")
_AZURE = re.compile(r"(.*?)(/openai/v1|(/openai)?/deployments/[^/]+)/embeddings")
# A path below this prefix goes to the upstream without the prefix, and is not mapped otherwise. Only
# `Routes.client_location` makes such paths, for URLs that no other path leads to.
_VERBATIM = "/.upstream"


@dataclass(frozen=True, slots=True)
class Route:
    url: str
    is_embeddings: bool  # POST here is the cached route


class Routes:
    """The map of one upstream, whose ``base_url`` is that of its SDKs: scheme, host and maybe a path.

    Of ``provider`` only the paths are used. Requests that are not about embeddings reach the upstream only if it
    ``is_default``.
    """

    def __init__(self, base_url: str, provider: Provider = GENERIC, *, is_default: bool = True) -> None:
        match = _BASE.fullmatch(base_url)
        if match is None:
            msg = f"not an http(s) URL: {base_url!r}"
            raise ValueError(msg)
        self._origin, self._base = match[1], match[2].rstrip("/")
        scheme, host, port = targets.resolve(base_url, "").origin
        self._addresses = {(scheme, host, port)}
        if scheme == "https":  # an application behind a TLS terminator may write http in its locations
            self._addresses |= {("http", host, port), ("http", host, 80)}
        self._provider, self._is_default = provider, is_default
        self._embeddings = Route(f"{self._origin}{self._base}{provider.path}", is_embeddings=True)
        starts = (self._base, *provider.aliases)
        self._paths = frozenset(start + provider.path for start in starts)
        self._variants = frozenset(_variants(starts, provider.path))
        self._set_azure()

    def _set_azure(self) -> None:
        """Set the parent paths of the upstream's Azure routes: ``_root`` for routes with /openai, ``_home`` for others.

        A gateway may have these routes below a path of its own, which may or may not contain /openai
        (https://learn.microsoft.com/azure/api-management/azure-openai-api-from-specification).
        """
        self._root = _AZURE_TAIL.sub("", self._base)
        self._home = self._root + ("/openai" if self._base.startswith(self._root + "/openai") else "")
        # Prefixes to remove from a client's path: its base URL may have /v1 or /openai once too often. But a path below
        # the upstream's own base path is not changed.
        before = {"", "/openai", *self._provider.prefixes} - {self._base}
        self._before_azure = frozenset({self._root, *before})

    def find(self, target: str) -> Route | None:
        """Map the target of a POST in origin form (RFC 9112 §3.2.1); None for any other form.

        The client's target is always appended to the upstream's scheme, host and port, so it can't choose them.
        """
        if target in self._paths:
            return self._embeddings
        relayed = self.relayed(target)
        if relayed is None:
            return None
        url = self._cached_url(target)
        return Route(relayed, is_embeddings=False) if url is None else Route(url, is_embeddings=True)

    def is_embeddings(self, target: str) -> bool:
        """Whether a POST to ``target`` is the cached route."""
        return target in self._paths or (target.startswith("/") and self._cached_url(target) is not None)

    def relayed(self, target: str) -> str | None:
        """The URL for a request that is passed through, with its path and query unchanged; None as for `find`."""
        if not target.startswith("/"):
            return None
        path, mark, query = target.partition("?")
        if path in self._paths:
            return self._embeddings.url + mark + query
        return self._origin + self._map_path(path) + mark + query

    def embeddings(self, target: str, *, model: str | None = None) -> str:
        """The URL of the cached route for a target that is the cached route of another upstream; ``model`` is the
        model's name here, if it differs."""
        if model is not None:
            target = targets.with_path_model(target, model)
        url = self._embeddings.url if target in self._paths else self._cached_url(target)
        if url is not None:
            return url
        named = targets.parse_path_model(target)
        is_deployment = named is not None and named.is_deployment
        return self._embeddings.url + ("" if is_deployment else targets.split(target)[1])  # the query is Azure's own

    def client_location(self, url: str, location: str) -> str | None:
        """The location to send to a client in place of ``location`` of a response from ``url``, so that the client
        reaches the same resource through this proxy; None if no path of this proxy leads there.

        A location outside the upstream is not changed.
        """
        there = targets.resolve(url, location)
        if not location or there.origin not in self._addresses:
            return location
        rest = there.path + there.query
        # Clients read two slashes as the start of a host, and browsers read a backslash as a slash.
        is_path = rest[1:2] not in {"/", "\\"}
        target = rest if is_path and self._leads_to(rest) else _VERBATIM + rest
        if not self._is_default and not targets.is_embeddings_like(target):
            return None
        return target + there.fragment

    def redirect_hint(self, url: str, location: str) -> str | None:
        """What to configure so that calls to ``url``, which the upstream redirects to ``location``, need no redirect;
        None if ``url`` is not that of the cached route."""
        path = url[len(self._origin) :]
        if self.find(path) != Route(url, is_embeddings=True):
            return None
        there = targets.resolve(url, location)
        path = path.partition("?")[0]
        is_below = path.startswith(self._base + "/")  # Azure's routes and engines may be elsewhere
        end = path.removeprefix(self._base) if is_below else path
        if there.authority and there.path.endswith(end):
            base = there.path.removesuffix(end) + ("" if is_below else self._base)
            right = there._replace(path=base).address
            if right != self._origin + self._base:
                return f"set --upstream {right} (base_url, if it has an [[upstream]] table)"
        name, own = self._provider.name, self._provider.path
        if there.path.endswith(own + "/"):
            return f'set path = "{own}/" in [providers.{name}] of the configuration file'
        return f"check --upstream (base_url): it is the part of the URL before {own}"

    def _leads_to(self, rest: str) -> bool:
        route = self.find(rest)
        return route is not None and route.url == self.relayed(rest) == self._origin + rest

    def _cached_url(self, target: str) -> str | None:
        """The URL of the cached route if ``target`` is one of its spellings, all of which have the same URL."""
        path, query = targets.split(target)
        path = targets.normalized(path)
        if path in self._variants:
            return self._embeddings.url + query
        if targets.has_dot_segments(path) or target.startswith(_VERBATIM + "/"):
            return None
        if self._provider.has_deployments and (azure := _AZURE.fullmatch(path)):
            if azure[1] in self._before_azure:
                start = self._root if azure[2].startswith("/openai") else self._home
                return self._origin + start + path[azure.start(2) :] + query
            return self._origin + path + query
        named = targets.parse_path_model(path)
        if named is not None and not named.is_deployment:
            return self._origin + self._map_path(path) + query
        return None

    def _map_path(self, path: str) -> str:
        if path.startswith(_VERBATIM + "/"):
            return path[len(_VERBATIM) :]
        if self._base and path.startswith(self._base + "/"):
            return path
        for prefix in self._provider.prefixes:
            if path == prefix or path.startswith(prefix + "/"):
                return self._base + path[len(prefix) :] or "/"
        if self._provider.has_deployments and path.startswith("/openai/"):
            return self._root + path
        return path


def _variants(starts: tuple[str, ...], path: str) -> set[str]:
    """The normalized paths of the embeddings route: ``path`` below each of ``starts``, also with the start or ``path``
    repeated, as when a client adds /v1 to a base URL that has it already. One start below a different one (/openai/v1)
    is no repetition: that is the upstream's own path."""
    doubled = {first + second for first in starts for second in starts if _is_suffix(first, second)}
    names = {start + path for start in starts}
    variants = names | {start + path for start in doubled} | {name + path for name in names}
    return set(map(targets.normalized, variants))


def _is_suffix(first: str, second: str) -> bool:
    """Whether either path ends with the other."""
    return first.endswith(second) or second.endswith(first)
