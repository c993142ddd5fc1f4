"""What a request on the embeddings route asks, and of which upstream."""

import asyncio
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from aiohttp.web import BaseRequest

from proxy.access.admission import Access
from proxy.http.bodies import Body, BodyReader, BodyReservation
from proxy.protocol import embedding_request, keys, query, request_body
from proxy.protocol.bypass import Bypass
from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.identities import Identity
from proxy.protocol.targets import parse_path_model
from proxy.upstream.router import Origin, Router

_T = TypeVar("_T")

_PLAIN_JSON = re.compile(r"application/json\s*(;\s*charset=\"?utf-?8\"?\s*)?", re.IGNORECASE)
# The event loop does nothing else meanwhile.
_MAX_ON_LOOP_S = 0.005
# What is a large request, and how many turns of the event loop it has before the next one begins.
_MANY_VALUES, _TURNS = 256, 10
# For less memory the exact amount is not worth finding out.
_LITTLE_BYTES = 64 * 1024


class Read(NamedTuple):
    """A request that was understood. ``keys`` are those of its items."""

    asked: EmbeddingRequest
    keys: list[bytes]
    origin: Origin
    target: str  # as the origin is to see it
    url: str
    keyed_url: str  # without credentials
    model: str | None
    own: Identity  # the client's own
    identity: Identity  # as the upstream sees it


class Unread(NamedTuple):
    """A request that goes to ``origin`` as it came. ``items`` is how many it seems to have."""

    bypass: Bypass
    origin: Origin
    own: Identity  # the client's own
    model: str | None
    items: int


class _Turns:
    """Lets large requests that come at once begin one by one, so that others need not wait for all of them.

    Each is several steps: to read it, to look its items up, to fetch them. Would all take these steps together, each
    turn of the event loop would be as long as one step of every one of them.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def next(self) -> None:
        await self._lock.acquire()
        self._go_on(_TURNS)

    def _go_on(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._go_on, turns - 1)
        else:
            self._lock.release()


class Reader:
    def __init__(self, origins: Router, access: Access, bodies: BodyReader) -> None:
        self._origins = origins
        self._access = access
        self._bodies = bodies
        self._turns = _Turns()

    async def read(
        self, request: BaseRequest, sent: Body, own: Identity, reservation: BodyReservation
    ) -> Read | Unread:
        """Understand a request whose body was ``sent`` by a client of ``own`` identity.

        Before it is parsed, ``reservation`` has what parsing takes; in the end, what the result takes.
        Raises `ProxyError`.
        """
        body, sent_bytes = sent, reservation.bytes
        try:
            _require_json(request, is_signed=self._access.outgoing(request.headers, own).is_signed)
            if "Content-Encoding" in request.headers:
                body = await self._bodies.inflated(request, sent.content, reservation)
        except Bypass as bypass:
            return await self._run(body, reservation, self._unread, request, body.content, bypass)
        objects_bytes = body.structure.objects_bytes
        reservation.take(objects_bytes)
        if body.structure.values > _MANY_VALUES:
            await self._turns.next()
        read = await self._run(body, reservation, self._read, request, body.content, own)
        if isinstance(read, Unread):
            reservation.give_back(reservation.bytes - sent_bytes)
        elif objects_bytes > _LITTLE_BYTES:
            reservation.give_back(objects_bytes - embedding_request.memory_bytes(read.asked, body.structure))
        return read

    async def _run(self, body: Body, reservation: BodyReservation, function: Callable[..., _T], *arguments: Any) -> _T:
        if body.structure.parse_and_key_s > _MAX_ON_LOOP_S:
            return await self._bodies.worker.run(function, *arguments, held=reservation)
        return function(*arguments)

    def _read(self, request: BaseRequest, body: bytes, own: Identity) -> Read | Unread:
        fields: dict[str, Any] = {}
        origin = None
        try:
            fields = request_body.parse_object(body)
            named = parse_path_model(request.raw_path)
            model = request_body.model_of(fields) or (named.name if named else None)
            origin = self._origins.choose(request.raw_path, model)
            own = self._own(request, origin, own)
            target = origin.target(request.raw_path)
            url = _embeddings_url(origin, target)
            asked = embedding_request.parse_request(body, fields, origin.provider, named)
        except Bypass as bypass:
            if origin is None:
                return self._unread(request, body, bypass)
            return Unread(bypass, origin, own, model, request_body.count_items(fields))
        identity = self._access.outgoing(request.headers, own, origin)
        if "Content-Type" not in request.headers:
            # What an upstream makes of that is its own; where it takes it for JSON, so do we.
            identity = identity._replace(vector_affecting=[*identity.vector_affecting, ("content-type", "")])
        keyed_url, scope = query.keyed(url), self._access.scope(identity)
        derived = keys.derive(asked, url=keyed_url, scope=scope, vector_headers=identity.vector_affecting)
        return Read(asked, derived, origin, target, url, keyed_url, model, own, identity)

    def _unread(self, request: BaseRequest, body: bytes, bypass: Bypass) -> Unread:
        """What was not understood may be read well enough to say who is asked."""
        target = request.raw_path
        origin = self._origins.choose(target, request_body.peek_model(body) if self._origins.has_several else None)
        return Unread(bypass, origin, self._access.identity(request.headers, target, origin), None, 1)

    def _own(self, request: BaseRequest, origin: Origin, own: Identity) -> Identity:
        """The client's own identity, now that the upstream is known."""
        if origin.neutral_headers <= self._access.neutral_headers:
            return own
        return self._access.identity(request.headers, request.raw_path, origin)


def _require_json(request: BaseRequest, *, is_signed: bool) -> None:
    """Raises `Bypass`."""
    if is_signed:  # the upstream would refuse any other body
        raise Bypass("signed-body")
    content_type = request.headers.get("Content-Type", "application/json")
    # In another charset the same bytes are another text.
    if content_type != "application/json" and not _PLAIN_JSON.fullmatch(content_type):
        raise Bypass("content-type")


def _embeddings_url(origin: Origin, target: str) -> str:
    """Raises `Bypass`."""
    route = origin.routes.find(target)
    if route is None or not route.is_embeddings:  # where the model's upstream has another API
        raise Bypass("other-route")
    return route.url
