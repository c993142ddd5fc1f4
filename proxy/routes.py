"""Where a request goes: its path on this proxy → a URL of the upstream, and whether it is the cached route (pure)."""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from proxy.providers import GENERIC, Provider

# https://learn.microsoft.com/azure/ai-services/openai/reference: the deployment in the path chooses the model.
_AZURE_EMBEDDINGS = re.compile(r"/openai/(?:deployments/([^/?]+)|v1)/embeddings")
_BASE = re.compile(r"(https?://[^/?#]+)(.*)")


@dataclass(frozen=True, slots=True)
class Route:
    url: str
    is_embeddings: bool  # POST here is the cached route


def deployment_in(target: str) -> str | None:
    """The Azure deployment that a request target names; it, and not the body, says what computes."""
    match = _AZURE_EMBEDDINGS.fullmatch(target.partition("?")[0])
    return unquote(match[1]) if match is not None and match[1] is not None else None


class Routes:
    """The map for one upstream, whose ``base_url`` is what one would give an SDK: scheme, host and maybe a path.

    What of ``provider`` counts is where it has its embeddings and nothing else.
    """

    def __init__(self, base_url: str, provider: Provider = GENERIC) -> None:
        match = _BASE.fullmatch(base_url)
        if match is None:
            msg = f"not an http(s) URL: {base_url!r}"
            raise ValueError(msg)
        self._origin, self._base = match[1], match[2].rstrip("/")
        path = provider.path
        self._embeddings = Route(f"{self._origin}{self._base}{path}", is_embeddings=True)
        self._names = frozenset({self._base + path, *(alias + path for alias in provider.aliases)})
        self._prefixes = provider.prefixes
        self._has_deployments = provider.has_deployments

    def find(self, target: str) -> Route | None:
        """Map a request target in origin form (RFC 9112 §3.2.1); None for any other form.

        The client's target only ever follows the upstream's scheme, host and port, so it can't choose them.
        """
        if target in self._names:
            return self._embeddings
        if not target.startswith("/"):
            return None
        path, mark, query = target.partition("?")
        if path in self._names:
            return Route(self._embeddings.url + mark + query, is_embeddings=True)
        if self._has_deployments and _AZURE_EMBEDDINGS.fullmatch(path):
            return Route(self._origin + target, is_embeddings=True)
        return Route(self._passed_through(path) + mark + query, is_embeddings=False)

    def embeddings(self, target: str, *, model: str | None = None) -> str:
        """The URL of the cached route, for a target that another upstream's map took for its own; ``model`` is what the
        model is called here, if not as there."""
        path, mark, query = target.partition("?")
        deployment = _AZURE_EMBEDDINGS.fullmatch(path)
        if deployment is None:
            return self._embeddings.url + mark + query
        if not self._has_deployments:
            return self._embeddings.url  # the query is Azure's own
        if model is not None and deployment[1] is not None:
            target = f"{target[: deployment.start(1)]}{quote(model, safe='')}{target[deployment.end(1) :]}"
        return self._origin + target

    def _passed_through(self, path: str) -> str:
        if self._base and path.startswith(self._base + "/"):
            return self._origin + path
        for prefix in self._prefixes:
            if path == prefix or path.startswith(prefix + "/"):
                return self._origin + self._base + path[len(prefix) :]
        return self._origin + path
