"""The header fields that say what the cache did: X-Cache, Cache-Status (RFC 9211) and X-Cache-Saved-Tokens."""

from multidict import CIMultiDict

from proxy.protocol.response_spec import ResponseSpec

CACHE_NAME = "embedding-proxy"  # in Cache-Status
_OWN = ("X-Cache", "X-Cache-Hits", "X-Cache-Saved-Tokens")  # of this proxy, and not of another one behind it


def cache_headers(state: str, status: str, *, saved_tokens: int) -> CIMultiDict[str]:
    """``state`` is the value of X-Cache; ``status`` is what Cache-Status has after the cache's name."""
    return CIMultiDict(
        {
            "X-Cache": state,
            "Cache-Status": f"{CACHE_NAME}; {status}",
            "X-Cache-Saved-Tokens": str(saved_tokens),
        }
    )


def add_cache_headers(given: CIMultiDict[str], state: str, status: str, *, saved_tokens: int) -> None:
    """Add the cache headers to a response that may have those of other caches, each of which adds to Cache-Status
    (RFC 9211 §2)."""
    for name in _OWN:
        given.popall(name, None)
    given.extend(cache_headers(state, status, saved_tokens=saved_tokens))


def detail_of(spec: ResponseSpec) -> str:
    """How a request was keyed, for the ``detail`` of Cache-Status."""
    return "whole-body" if spec.is_keyed_whole else ""
