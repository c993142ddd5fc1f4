"""A request to explain, wherever it was written down (pure)."""

from dataclasses import dataclass, field

from multidict import CIMultiDict


class UnreadableRequest(ValueError):
    """Not a request that can be explained. The message says why, and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPRequest:
    """``target`` is in origin form. ``notes`` say what is uncertain about the request as it was written down."""

    method: str = "POST"
    target: str = "/v1/embeddings"
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict, repr=False)
    body: bytes = field(default=b"", repr=False)
    notes: tuple[str, ...] = ()


def target_of(url: str) -> str:
    """Path and query of a URL, with or without its scheme and host."""
    rest = url.partition("://")[2] if "://" in url else url
    if rest.startswith("/"):
        return rest.partition("#")[0]
    path_at = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    target = rest[path_at:].partition("#")[0]
    return target if target.startswith("/") else "/" + target
