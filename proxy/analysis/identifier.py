"""The keys under which a proxy would find the items of a logged request, derived by the proxy's own functions."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import orjson
from multidict import CIMultiDict

from proxy.access.access import Access
from proxy.access.validations import Validations
from proxy.analysis.call import Call
from proxy.config.settings import UpstreamSetting
from proxy.errors import BodyTooComplex
from proxy.labels import BypassReason
from proxy.protocol import content_coding, embedding_request, json_structure, keys, query, request_body
from proxy.protocol.bypass import Bypass
from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.header_kinds import Fields
from proxy.protocol.identities import Identity
from proxy.protocol.items import ItemKind
from proxy.protocol.provider import InputFormat, Provider
from proxy.protocol.targets import parse_path_model
from proxy.upstream.client import UpstreamClient
from proxy.upstream.router import Fallback, Origin, Router
from proxy.upstream.urls import Routes

_JSON_TYPES = frozenset({"application/json", "application/json;charset=utf-8", "application/json;charset=utf8"})
_MAX_IDENTITIES = 4096  # of different headers
_NO_CLIENT = cast(UpstreamClient, None)  # nothing is sent
_MAX_ALIKE = 4096  # texts of a request, and kinds of requests
_SCALARS = frozenset({str, int, bool, type(None)})
_HeaderFields = tuple[tuple[str, str], ...]
_Signature = tuple[_HeaderFields, str, tuple[tuple[str, Any], ...], tuple[type, ...]]  # 1 and True are equal


class Identified(NamedTuple):
    """A request that a proxy would look up, with the key of each item in input order."""

    request: EmbeddingRequest
    keys: list[bytes]
    provider: Provider


class _Alike(NamedTuple):
    """The common part of requests that differ only in their texts, as in `proxy.embeddings.known_head`."""

    first: EmbeddingRequest
    text_keys: keys.TextKeys
    provider: Provider
    accepts_text: bool
    accepts_list: bool

    @classmethod
    def of(cls, found: Identified, text_keys: keys.TextKeys) -> "_Alike | None":
        """None if the texts may change more than their own keys."""
        request, provider = found.request, found.provider
        if request.kind is not ItemKind.TEXT or "modality" in request.parameters or provider.references:
            return None
        accepts_list = InputFormat.TEXTS in provider.inputs and not provider.is_fused_model(request.model)
        return cls(request, text_keys, provider, InputFormat.TEXT in provider.inputs, accepts_list)

    def identified(self, given: Any) -> Identified | None:
        """A request with this ``input``; None if it has to be parsed."""
        if type(given) is str and given and self.accepts_text:
            texts = [given]
        elif type(given) is list and self.accepts_list and 0 < len(given) <= _MAX_ALIKE and _are_texts(given):
            texts = given
        else:
            return None
        return Identified(self.first._replace(items=texts), self.text_keys.of(texts), self.provider)


def _are_texts(given: list[Any]) -> bool:
    return set(map(type, given)) == {str} and "" not in given


class Identifier:
    """Derives the keys that a proxy with these settings would derive."""

    def __init__(
        self,
        default: UpstreamSetting,
        routed: Sequence[UpstreamSetting] = (),
        *,
        shares_all: bool = False,
        key_headers: frozenset[str] = frozenset(),
        neutral_headers: frozenset[str] = frozenset(),
    ) -> None:
        self._router = _router(default, routed)
        self._access = Access(
            shares_all=shares_all,
            owns_key=default.key is not None,
            client_keys=None,
            validations=Validations(ttl_s=1.0, clock=lambda: 0.0),
            key_headers=key_headers,
            neutral_headers=neutral_headers,
        )
        self._alike: dict[_Signature, _Alike] = {}
        self._identities: dict[tuple[_HeaderFields, str, str], tuple[Identity, Fields]] = {}

    def identify(self, call: Call) -> Identified:
        """Raises `Bypass` for a request that would be relayed and not cached, `ProxyError` for one that the proxy
        would refuse."""
        signature = _signature(call)
        alike = None if signature is None else self._alike.get(signature)
        if alike is not None and (found := alike.identified(call.fields["input"])) is not None:
            return found
        found, text_keys = self._parse(call)
        if signature is not None and alike is None and len(self._alike) < _MAX_ALIKE:
            alike = _Alike.of(found, text_keys)
            if alike is not None:
                self._alike[signature] = alike
        return found

    def _parse(self, call: Call) -> tuple[Identified, keys.TextKeys]:
        """Raises `Bypass` and `ProxyError`. The keys are for other texts in the same request, if it has texts."""
        _require_plain(call.headers)
        body = orjson.dumps(call.fields) if call.body is None else call.body
        structure = json_structure.of(body)
        if structure.is_too_complex:
            raise BodyTooComplex("The body has too many values.")
        named = parse_path_model(call.target)
        model = request_body.model_of(call.fields) or (named.name if named else None)
        origin = self._router.choose(call.target, model)
        identity, scope = self._identity(origin, call)
        route = origin.routes.find(origin.target(call.target))
        if route is None or not route.is_embeddings:
            raise Bypass(BypassReason.OTHER_ROUTE)
        request = embedding_request.parse_request(body, call.fields, origin.provider, named, members=structure.members)
        url, vector_headers = query.keyed(route.url), identity.vector_affecting
        derived = keys.derive(request, url=url, scope=scope, vector_headers=vector_headers, epoch=0)
        text_keys = keys.TextKeys(request, url=url, scope=scope, vector_headers=vector_headers, epoch=0)
        return Identified(request, derived, origin.provider), text_keys

    def _identity(self, origin: Origin, call: Call) -> tuple[Identity, Fields]:
        """The identity that a request has upstream, and the scope of its entries. Raises `Bypass`."""
        of = call.headers, call.target, origin.name
        found = self._identities.get(of)
        if found is None:
            fields = CIMultiDict(call.headers)
            own = self._access.identity(fields, call.target, origin)
            identity = self._access.outgoing(fields, own, origin)
            found = identity, self._access.scope(identity)
            if len(self._identities) < _MAX_IDENTITIES:
                self._identities[of] = found
        if found[0].is_signed:
            raise Bypass(BypassReason.SIGNED_BODY)
        return found


def _signature(call: Call) -> _Signature | None:
    """Equal for requests that differ in their ``input`` only; None if that is not easy to see."""
    fields = call.fields
    if "input" not in fields or (call.body is not None and call.body.count(b":") != len(fields)):
        return None  # if the body has more colons than fields, two members may have one name
    rest = tuple([(name, value) for name, value in fields.items() if name != "input"])
    if any(type(value) not in _SCALARS for _, value in rest):
        return None
    return call.headers, call.target, rest, tuple([type(value) for _, value in rest])


def _router(default: UpstreamSetting, routed: Sequence[UpstreamSetting]) -> Router:
    settings = (default, *routed)
    origins = {
        setting.name: Origin(
            name=setting.name,
            provider=setting.provider,
            routes=Routes(setting.base_url, setting.provider, is_default=setting is default),
            client=_NO_CLIENT,
            key=setting.key,
        )
        for setting in settings
    }
    for setting in settings:
        origins[setting.name].set_fallbacks(
            Fallback(origins[other.upstream], other.model) for other in setting.same_model
        )
    return Router(origins[default.name], [(setting.models, origins[setting.name]) for setting in routed])


def _require_plain(headers: _HeaderFields) -> None:
    """Raises `Bypass` for a body that is not declared as plain JSON."""
    for name, value in headers:
        if name.lower() == "content-type" and value.lower().replace(" ", "").replace('"', "") not in _JSON_TYPES:
            raise Bypass(BypassReason.CONTENT_TYPE)
        if name.lower() == "content-encoding" and value.lower() not in content_coding.CODINGS:
            raise Bypass(BypassReason.CONTENT_ENCODING)
