"""Parses a request on the embeddings route, and chooses its upstream."""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from proxy import turns
from proxy.access.access import Access
from proxy.access.validations import Credential, CredentialId, CredentialScope, Validations
from proxy.canary.epochs import EpochOf
from proxy.fetch.request import ClientRequest
from proxy.http.bodies import Body, BodyReader
from proxy.labels import BypassReason
from proxy.protocol import embedding_request, keys, query, request_body
from proxy.protocol.bypass import Bypass
from proxy.protocol.directives import cache_control
from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.headers import Headers
from proxy.protocol.identities import Identity
from proxy.protocol.json_structure import Structure
from proxy.protocol.response_spec import ResponseSpec
from proxy.protocol.targets import PathModel, parse_path_model
from proxy.reservation import MemoryReservation
from proxy.telemetry.tracing import Span
from proxy.upstream.router import Origin, Router

_T = TypeVar("_T")

_PLAIN_JSON = re.compile(r"application/json\s*(;\s*charset=\"?utf-?8\"?\s*)?", re.IGNORECASE)
# Longer work would block the event loop.
_MAX_ON_LOOP_S = 0.0005
# A request with more is parsed in turns with others.
_MANY_VALUES = 256
# For less memory the exact size is not worth computing.
_SMALL_BYTES = 64 * 1024


class RequestHead(Protocol):
    """What the reader needs of a request besides its body."""

    @property
    def headers(self) -> Headers: ...

    @property
    def raw_path(self) -> str: ...


class BypassedRequest(NamedTuple):
    """A request that is relayed to ``origin`` as it came. ``items`` is an estimate of their number."""

    bypass: Bypass
    origin: Origin
    credential_id: CredentialId
    model: str | None
    items: int


class Reader:
    def __init__(
        self,
        origins: Router,
        access: Access,
        validations: Validations,
        bodies: BodyReader,
        *,
        epoch_of: EpochOf,
    ) -> None:
        """``epoch_of`` is called with the URL in a request's keys and its model, in any thread."""
        self._origins = origins
        self._epoch_of = epoch_of
        self._access = access
        self._validations = validations
        self._bodies = bodies

    async def read(
        self,
        request: RequestHead,
        sent: Body,
        own: Identity,
        reservation: MemoryReservation,
        *,
        client: str | None,
        span: Span,
    ) -> ClientRequest | BypassedRequest:
        """Parse a request whose body was ``sent`` by a client of ``own`` identity, for the ledger ``client``.

        Before it is parsed, ``reservation`` takes the memory for parsing; in the end, it has that of the result.
        Raises `ProxyError`.
        """
        body, sent_bytes = sent, reservation.bytes
        try:
            identity = self._access.outgoing(request.headers, own)
            _require_json(request, is_signed=identity.is_signed)
            if "Content-Encoding" in request.headers:
                body = await self._bodies.inflated(request.headers, sent.content, reservation)
        except Bypass as bypass:
            return await self._run(body, reservation, self._bypassed, request, body.content, bypass, reservation)
        objects_bytes = body.structure.objects_bytes
        reservation.take(objects_bytes)
        if _is_large(body):
            await turns.turn()
        read = await self._read(request, body, own, identity, reservation=reservation, client=client, span=span)
        if isinstance(read, BypassedRequest):
            reservation.give_back(reservation.bytes - sent_bytes)
        else:
            _give_back_unused(reservation, read, body.structure)
        return read

    async def _run(
        self, body: Body, reservation: MemoryReservation, function: Callable[..., _T], *arguments: Any
    ) -> _T:
        if body.structure.parse_and_key_s > _MAX_ON_LOOP_S:
            return await self._bodies.worker.run(function, *arguments, held=reservation)
        return function(*arguments)

    async def _read(
        self,
        request: RequestHead,
        body: Body,
        own: Identity,
        identity: Identity,
        *,
        reservation: MemoryReservation,
        client: str | None,
        span: Span,
    ) -> ClientRequest | BypassedRequest:
        """``identity`` is the one that the request has upstream, as far as it is known without the upstream."""
        fields: dict[str, Any] = {}
        origin = None
        try:
            fields = await self._parse_object(body)
            named = parse_path_model(request.raw_path)
            model = request_body.model_of(fields) or (named.name if named else None)
            origin = self._origins.choose(request.raw_path, model)
            own, identity = self._identities_for(origin, request, own, identity)
            target = origin.target(request.raw_path)
            url = _embeddings_url(origin, target)
            parsed = await self._parse_request(body, fields, origin, named, reservation)
        except Bypass as bypass:
            if origin is None:
                return await self._run(body, reservation, self._bypassed, request, body.content, bypass, reservation)
            credential_id, items = self._credential_id(reservation, origin, own), request_body.count_items(fields)
            return BypassedRequest(bypass, origin, credential_id, model, items)
        identity = _with_content_type(identity, request.headers)
        keyed_url, hashed = query.keyed(url), identity.vector_affecting
        epoch, scope = self._epoch_of(keyed_url, parsed.model), self._access.scope(identity)
        steps = keys.derive_in_steps(parsed, url=keyed_url, scope=scope, vector_headers=hashed, epoch=epoch)
        return ClientRequest(
            parsed=parsed,
            spec=_spec(parsed, model, await turns.run(steps), origin),
            origin=origin,
            target=target,
            url=url,
            received=request.headers,
            directives=cache_control(request.headers),
            identity=identity,
            scope=scope,
            credential=Credential(
                self._credential_id(reservation, origin, own), CredentialScope(keyed_url, parsed.model)
            ),
            client=client,
            reservation=reservation,
            epoch=epoch,
            span=span,
        )

    def _identities_for(
        self, origin: Origin, request: RequestHead, own: Identity, identity: Identity
    ) -> tuple[Identity, Identity]:
        """The client's ``own`` identity and the one that the request has upstream. They depend on the ``origin``, which
        may have neutral header fields of its own."""
        if origin.neutral_headers <= self._access.neutral_headers:
            return own, identity
        own = self._access.identity(request.headers, request.raw_path, origin)
        return own, self._access.outgoing(request.headers, own, origin)

    async def _parse_object(self, body: Body) -> dict[str, Any]:
        """Raises `Bypass`."""
        if body.structure.parse_s <= _MAX_ON_LOOP_S:
            return request_body.parse_object(body.content)
        return await turns.run(request_body.parse_object_in_steps(body.content))

    async def _parse_request(
        self,
        body: Body,
        fields: dict[str, Any],
        origin: Origin,
        named: PathModel | None,
        reservation: MemoryReservation,
    ) -> EmbeddingRequest:
        """Raises `Bypass`."""
        members, provider = body.structure.members, origin.provider
        if _is_large(body):
            with suppress(Bypass):  # most others are keyed as a whole, which has no short steps
                apart = embedding_request.parse_items_apart(body.content, fields, provider, named, members=members)
                return await turns.run(apart)
        parse = partial(embedding_request.parse_request, members=members)
        return await self._run(body, reservation, parse, body.content, fields, provider, named)

    def _bypassed(
        self, request: RequestHead, body: bytes, bypass: Bypass, reservation: MemoryReservation
    ) -> BypassedRequest:
        """A request that was not understood, read just far enough to choose an upstream."""
        target = request.raw_path
        origin = self._origins.choose(target, request_body.peek_model(body) if self._origins.has_several else None)
        own = self._access.identity(request.headers, target, origin)
        return BypassedRequest(bypass, origin, self._credential_id(reservation, origin, own), None, 1)

    def _credential_id(self, reservation: MemoryReservation, origin: Origin, own: Identity) -> CredentialId:
        return self._validations.credential_id(reservation.tenant.name, origin, own)


def _give_back_unused(reservation: MemoryReservation, read: ClientRequest, structure: Structure) -> None:
    objects_bytes = structure.objects_bytes
    if objects_bytes > _SMALL_BYTES:
        reservation.give_back(objects_bytes - embedding_request.memory_bytes(read.parsed, structure))
        reservation.keep(read.parsed.items)


def _spec(parsed: EmbeddingRequest, model: str | None, derived: list[bytes], origin: Origin) -> ResponseSpec:
    has_id = origin.provider.responses_have_id
    return ResponseSpec(model, parsed.encoding, tuple(derived), has_id, is_keyed_whole=parsed.is_keyed_whole)


def _is_large(body: Body) -> bool:
    structure = body.structure
    return structure.values > _MANY_VALUES or structure.parse_and_key_s > _MAX_ON_LOOP_S


def _require_json(request: RequestHead, *, is_signed: bool) -> None:
    """Raises `Bypass`."""
    if is_signed:  # the upstream would reject any other body
        raise Bypass(BypassReason.SIGNED_BODY)
    content_type = request.headers.get("Content-Type", "application/json")
    # In another charset the same bytes are another text.
    if content_type != "application/json" and not _PLAIN_JSON.fullmatch(content_type):
        raise Bypass(BypassReason.CONTENT_TYPE)


def _with_content_type(identity: Identity, given: Headers) -> Identity:
    """``identity`` of a request whose body is read as JSON. Without Content-Type the upstream decides how to read the
    body, so such requests share no entries with requests that have the field."""
    if "Content-Type" in given:
        return identity
    return identity._replace(vector_affecting=[*identity.vector_affecting, ("content-type", "")])


def _embeddings_url(origin: Origin, target: str) -> str:
    """Raises `Bypass`."""
    route = origin.routes.find(target)
    if route is None or not route.is_embeddings:  # where the model's upstream has another API
        raise Bypass(BypassReason.OTHER_ROUTE)
    return route.url
