"""Where a request goes: its path on this proxy → a URL of the upstream, and whether it is the cached route (pure)."""

import re
from dataclasses import dataclass

_EMBEDDINGS = frozenset({"/v1/embeddings", "/api/v1/embeddings", "/api/embeddings", "/embeddings"})
# https://learn.microsoft.com/azure/ai-services/openai/reference: the deployment in the path chooses the model.
_AZURE_EMBEDDINGS = re.compile(r"/openai/(?:deployments/[^/?]+|v1)/embeddings")
_VERSIONED = re.compile(r"/(?:api/)?v1(?=/|$)")
_BASE = re.compile(r"(https?://[^/?#]+)(.*)")


@dataclass(frozen=True, slots=True)
class Route:
    url: str
    is_embeddings: bool  # POST here is the cached route


class Routes:
    """The map for one upstream, whose ``base_url`` is what one would give an SDK: scheme, host and maybe a path."""

    def __init__(self, base_url: str) -> None:
        match = _BASE.fullmatch(base_url)
        if match is None:
            msg = f"not an http(s) URL: {base_url!r}"
            raise ValueError(msg)
        self._origin, self._path = match[1], match[2].rstrip("/")
        self._embeddings = Route(f"{self._origin}{self._path}/embeddings", is_embeddings=True)

    def find(self, target: str) -> Route | None:
        """Map a request target in origin form (RFC 9112 §3.2.1); None for any other form.

        The client's target only ever follows the upstream's scheme, host and port, so it can't choose them.
        """
        if target in _EMBEDDINGS:
            return self._embeddings
        if not target.startswith("/"):
            return None
        path, mark, query = target.partition("?")
        if path in _EMBEDDINGS:
            return Route(self._embeddings.url + mark + query, is_embeddings=True)
        if _AZURE_EMBEDDINGS.fullmatch(path):
            return Route(self._origin + target, is_embeddings=True)
        return Route(self._passed_through(target), is_embeddings=False)

    def _passed_through(self, target: str) -> str:
        own_path = self._path + "/"
        if self._path and target.startswith(own_path):
            return self._origin + target
        if versioned := _VERSIONED.match(target):
            return self._origin + self._path + target[versioned.end() :]
        return self._origin + target
