"""The keys that requests to a proxy would have, derived by the code that serves requests."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from multidict import CIMultiDict

from proxy.access.access import Access, Admission
from proxy.access.validations import Validations
from proxy.app.request_path import make_access
from proxy.app.upstreams import open_router
from proxy.canary.epochs import FIRST_EPOCH, EpochOf
from proxy.config.settings import Settings
from proxy.embeddings.reader import BypassedRequest, Reader
from proxy.errors import ConfigError, ProxyError
from proxy.fetch.request import ClientRequest
from proxy.http.bodies import Body, BodyReader
from proxy.protocol import json_structure
from proxy.protocol.keys import scope_fingerprint
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import NO_SPAN
from proxy.upstream.router import Origin, Router

# The texts of one request: far fewer than the limits on a body's complexity allow.
_TEXTS_A_REQUEST = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestForm:
    """What requests have in common besides their texts. All of it may be part of their keys."""

    model: str
    credential: str | None = field(default=None, repr=False)  # the client's API key; None: it sends none
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the body, besides `model` and `input`
    headers: Sequence[tuple[str, str]] = ()  # besides the one that has the credential
    path: str = "/v1/embeddings"  # on the proxy; Azure's has a deployment


@dataclass(frozen=True, slots=True)
class _Head:
    headers: CIMultiDict[str]
    raw_path: str


class RequestReader:
    """Reads requests as a proxy by these settings does. It sends nothing."""

    def __init__(
        self, router: Router, access: Access, bodies: BodyReader, validations: Validations, epoch_of: EpochOf
    ) -> None:
        self._router = router
        self._access = access
        self._bodies = bodies
        self._reader = Reader(router, access, validations, bodies, epoch_of=epoch_of)

    async def read(self, body: bytes, headers: CIMultiDict[str], path: str) -> ClientRequest | BypassedRequest:
        """What the proxy would understand of a request. Raises `ProxyError` for one that it would refuse."""
        own = self._access.identity(headers, path)
        reservation = self._bodies.reserve(self._access.tenant(own, Admission()))
        try:
            sent = Body(body, json_structure.of(body))
            return await self._reader.read(_Head(headers, path), sent, own, reservation, client=None, span=NO_SPAN)
        finally:
            reservation.release()

    async def keys_of(self, texts: Sequence[str], form: RequestForm) -> list[bytes]:
        """The keys of ``texts``, in order. Raises `ConfigError` if the proxy would not cache such requests text by
        text."""
        keys: list[bytes] = []
        for start in range(0, len(texts), _TEXTS_A_REQUEST):
            keys += (await self.read_texts(texts[start : start + _TEXTS_A_REQUEST], form)).spec.keys
        return keys

    async def read_texts(self, texts: Sequence[str], form: RequestForm) -> ClientRequest:
        """The request for ``texts``, of which there is at least one. Raises `ConfigError` as `keys_of` does."""
        body = orjson.dumps({"model": form.model, "input": texts, **form.fields})
        try:
            read = await self.read(body, self.headers_of(form), form.path)
        except ProxyError as error:
            raise ConfigError(f"the proxy would refuse such a request: {error.message}") from error
        doubt = read.bypass if isinstance(read, BypassedRequest) else read.parsed.doubt
        if doubt is not None or isinstance(read, BypassedRequest):
            reason = f"{doubt} {doubt.field}".rstrip() if doubt else ""
            raise ConfigError(f"the proxy does not cache such a request text by text: {reason}")
        return read

    def headers_of(self, form: RequestForm) -> CIMultiDict[str]:
        """The header fields of a client that sends its key where the model's provider expects it."""
        return _headers_of(form, self._router.choose(form.path, form.model))

    def scopes_of(self, form: RequestForm) -> set[bytes]:
        """The fingerprints of the scopes of ``form``'s credential. It may have several, because the upstreams'
        providers expect it in different header fields. Raises `ConfigError` if other clients share them."""
        if self._access.is_shared:
            raise ConfigError("all clients share the entries (--share all, or the proxy has the upstream's key)")
        scopes = set()
        for origin in self._router.all:
            headers = _headers_of(form, origin)
            scopes.add(scope_fingerprint(self._access.scope(self._access.identity(headers, form.path, origin))))
        return scopes


def _headers_of(form: RequestForm, origin: Origin) -> CIMultiDict[str]:
    headers = CIMultiDict([("Content-Type", "application/json"), *form.headers])
    if form.credential is not None:
        name, _, scheme = origin.provider.auth.partition(": ")
        headers[name] = f"{scheme} {form.credential}" if scheme else form.credential
    return headers


@asynccontextmanager
async def open_request_reader(settings: Settings, *, epoch_of: EpochOf = FIRST_EPOCH) -> AsyncIterator[RequestReader]:
    """A reader of requests to a proxy by ``settings``, in the epochs of ``epoch_of``, until the block ends."""
    async with AsyncExitStack() as stack:
        metrics = Metrics(prices=settings.prices)
        router = await open_router(stack, settings, metrics)
        validations = Validations(ttl_s=settings.revalidate_s, clock=time.monotonic)
        bodies = BodyReader(metrics, max_bytes=settings.max_body_bytes, max_held_bytes=settings.max_held_bytes)
        stack.callback(bodies.close)
        yield RequestReader(router, make_access(settings, validations, None), bodies, validations, epoch_of)
