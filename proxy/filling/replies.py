"""What a running proxy's responses mean to a client that fills its cache (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson

from proxy.protocol import rate_limits

_THROTTLED = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, 529})
_TRANSIENT = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, 500, 502, 504})
# Every request would fail in the same way. 404: the upstream does not have the model.
_HOPELESS = frozenset({401, 402, 403, 404, 405})
_NO_QUOTA = "insufficient_quota"  # https://platform.openai.com/docs/guides/error-codes: waiting does not help
_MAX_SHOWN = 300


class Stopped(Exception):
    """Nothing more can be sent, and the message says why."""


class NotTold(Stopped):
    """The proxy does not tell this credential what is cached. A worker that has validated it would."""


class Refused(Exception):
    """The proxy or the upstream refused a batch, perhaps for one of its items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """The batch has to be sent again. ``retry_after_s`` is None if the response does not say when. ``is_limit``: all
    other batches have to wait as well."""

    reason: str
    retry_after_s: float | None
    is_limit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """``hits`` of the items were in the cache; the upstream billed ``tokens`` for the others."""

    hits: int
    misses: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def cache(self) -> str:
        """The `X-Cache` of a proxy."""
        return self.headers.get("X-Cache", "")

    def json(self) -> Any:
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None


def read_embedded(reply: Reply, items: int, *, now_s: float) -> Embedded | Later:
    """What became of a batch of so many items. Raises `Refused` and `Stopped`."""
    if reply.status not in {HTTPStatus.OK, HTTPStatus.CREATED}:
        return _read_failure(reply, now_s)
    if reply.cache not in {"HIT", "PARTIAL", "MISS"}:
        raise Stopped(_why_uncached(reply))
    if "detail=whole-body" in reply.headers.get("Cache-Status", ""):
        raise Stopped(
            "the proxy keys these requests by their whole body, so other requests would not hit;"
            " see what embedding-proxy explain says of the parameters"
        )
    response = reply.json()
    usage = response.get("usage") if type(response) is dict else None
    tokens = usage.get("prompt_tokens") if type(usage) is dict else 0
    hits = {"HIT": items, "MISS": 0}.get(reply.cache)
    if hits is None:
        hits = int(reply.headers.get("X-Cache-Hits", "0"))
    return Embedded(
        hits=hits, misses=items - hits, tokens=tokens if reply.cache != "HIT" and type(tokens) is int else 0
    )


def read_missing(reply: Reply, items: int) -> list[int]:
    """The positions of items that are not cached, from a reply to a request ``only-if-cached``.

    Raises `Stopped`, or its subclass `NotTold`.
    """
    if reply.status == HTTPStatus.NO_CONTENT and reply.cache == "HIT":
        return []
    response = reply.json()
    error = response.get("error") if type(response) is dict else None
    if reply.status == HTTPStatus.GATEWAY_TIMEOUT and type(error) is dict and error.get("code") == "not_cached":
        missing = error.get("missing")
        if type(missing) is list and len(missing) <= items:
            return missing
        raise NotTold(
            "the proxy says what is cached only to an API key that the upstream has accepted recently;"
            " send something with it first, as with --limit 1, or use a proxy that has the upstream's key"
        )
    if reply.status < HTTPStatus.BAD_REQUEST:
        raise Stopped(_why_uncached(reply))
    raise Stopped(_described(reply))


def _read_failure(reply: Reply, now_s: float) -> Later:
    reason = _described(reply)
    if reply.status in _THROTTLED and _NO_QUOTA.encode() not in reply.body:
        stated = rate_limits.of_refusal(reply.headers, reply.body, now_s=now_s)
        return Later(reason=reason, retry_after_s=stated.retry_after_s, is_limit=True)
    if reply.status in _TRANSIENT:
        return Later(reason=reason, retry_after_s=None, is_limit=False)
    if reply.status in _HOPELESS or reply.status in _THROTTLED or reply.status < HTTPStatus.BAD_REQUEST:
        raise Stopped(reason)
    raise Refused(reason)


def _why_uncached(reply: Reply) -> str:
    if reply.cache == "BYPASS":
        reason = reply.headers.get("Cache-Status", "").rpartition("detail=")[2]
        return f"the proxy relays these requests without caching ({reason}); see embedding-proxy explain"
    return f"status {reply.status} without X-Cache, so this is not an embedding-proxy's embeddings route"


def _described(reply: Reply) -> str:
    """The status and the error's message, as one printable line."""
    response = reply.json()
    error = response.get("error") if type(response) is dict else None
    message = error.get("message") if type(error) is dict else error
    text = " ".join(str(message or reply.body[:_MAX_SHOWN].decode(errors="replace")).split())
    return f"{reply.status} {''.join(filter(str.isprintable, text))[:_MAX_SHOWN]}".strip()
