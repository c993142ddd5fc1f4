"""The upstreams of one proxy, and which one serves a model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from multidict import CIMultiDict

from proxy.errors import InvalidRequest
from proxy.protocol import headers, query
from proxy.protocol.cors import Cors
from proxy.protocol.provider import MAX_MERGED_ITEMS, Limits, Provider
from proxy.protocol.targets import model_in_path, parse_path_model
from proxy.upstream.client import UpstreamClient
from proxy.upstream.urls import Routes

# Clients can name any number of models, of any length.
_MAX_REMEMBERED, _MAX_NAME = 4096, 256


@dataclass(slots=True, kw_only=True, eq=False)
class Origin:
    """One upstream: its provider's rules, its URLs, its HTTP client, and the fallbacks that serve its models."""

    name: str
    provider: Provider
    routes: Routes
    client: UpstreamClient
    key: str | None = field(default=None, repr=False)  # the proxy's own; None: the client's goes upstream
    canary_key: str | None = field(default=None, repr=False)  # of the canary's calls; None: ``key``
    cors: Cors = field(default_factory=Cors)
    is_shared: bool = False  # all clients see the same entries
    # All of these include the origin itself.
    candidates: "tuple[Fallback, ...]" = field(init=False, repr=False)  # in the order in which they are tried
    limits: Limits = field(init=False)  # of a call, whichever candidate gets it
    merge_limits: Limits = field(init=False)  # of a call for several requests
    # Lower-case names that are neutral at every candidate, in addition to those that are always neutral.
    neutral_headers: frozenset[str] = field(init=False)
    # The model name in its last response to each client: a fallback's responses get that name, too.
    _model_names: dict[tuple[bytes, str | None], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.set_fallbacks(())

    def set_fallbacks(self, fallbacks: "Iterable[Fallback]") -> None:
        """Declare, in order, the upstreams that serve the same models. They may refer to each other, so this comes
        after all of them are made."""
        self.candidates = (Fallback(self), *fallbacks)
        providers = [candidate.origin.provider for candidate in self.candidates]
        self.limits = Limits(*map(min, zip(*(provider.limits for provider in providers), strict=True)))
        self.merge_limits = self.limits._replace(items=min(self.limits.items, MAX_MERGED_ITEMS))
        self.neutral_headers = frozenset.intersection(*(provider.neutral_headers for provider in providers))

    def outbound(self, forwarded: CIMultiDict[str]) -> CIMultiDict[str]:
        """The fields of a request to this upstream: with the proxy's key for it, if there is one."""
        forwarded = self.cors.outbound(forwarded)
        if self.key is None:
            return forwarded
        return self.with_key(headers.without_credentials(forwarded), self.key)

    def with_key(self, fields: CIMultiDict[str], key: str) -> CIMultiDict[str]:
        """``fields`` with a key for this upstream, in the field that its provider takes it from."""
        name, _, scheme = self.provider.auth.partition(": ")
        fields[name] = f"{scheme} {key}" if scheme else key
        return fields

    def target(self, received: str) -> str:
        """The target of a request to this upstream: without the client's credentials if the proxy has a key for it."""
        return received if self.key is None else query.without_credentials(received)

    def remember(self, client: bytes, requested: str | None, responded: str) -> None:
        """Note the upstream's name of a model that a client requested. If clients don't share entries, it is noted for
        that client only: one name may mean different models to different clients, and none learns another's names."""
        if len(self.candidates) > 1 and responded:
            if len(self._model_names) >= _MAX_REMEMBERED:
                self._model_names.clear()
            self._model_names[self._name_scope(client), requested] = responded

    def name_of(self, client: bytes, requested: str | None) -> str:
        """The upstream's name of the model in its last response to that client; "" before the first."""
        return self._model_names.get((self._name_scope(client), requested), "")

    def _name_scope(self, client: bytes) -> bytes:
        return b"" if self.is_shared else client


@dataclass(frozen=True, slots=True)
class Fallback:
    origin: Origin
    model: str | None = None  # the model's name there; None: the same


class Router:
    """Chooses the upstream of a request by its model. ``routed`` has patterns of model names (``*``, ``?``, ``[…]``),
    each list with its upstream; the first match counts."""

    def __init__(self, default: Origin, routed: Sequence[tuple[Sequence[str], Origin]] = ()) -> None:
        self.default = default
        self.all = (default, *(origin for _, origin in routed))
        self._routed = routed
        self._known: dict[str, Origin] = {}

    @property
    def has_several(self) -> bool:
        """Whether the upstream of a request depends on its model."""
        return bool(self._routed)

    def choose(self, target: str, model: str | None) -> Origin:
        """The upstream for a request to ``target`` whose body names ``model``; None if it names no readable model.

        A model in the path takes precedence. Raises `InvalidRequest` if neither names a model and the default upstream
        needs one: the texts may be meant for one upstream alone.
        """
        if not self._routed:
            return self.default
        named = parse_path_model(target)
        if named is not None and named.is_deployment:
            return self._for_deployment(named.name, model)
        names = [name for name in (named.name if named else model_in_path(target), model) if name is not None]
        if not names and self.default.provider.needs_model:
            raise InvalidRequest(
                "Several upstreams are configured, and neither the body nor the path names a model to choose one by."
            )
        return next((origin for origin in map(self.for_model, names) if origin is not self.default), self.default)

    def _for_deployment(self, deployment: str, model: str | None) -> Origin:
        """On Azure the path names the deployment, and the body need not name a model. An upstream without deployments
        never gets such a request."""
        for name in (deployment, model):
            origin = self.default if name is None else self.for_model(name)
            if origin is not self.default and origin.provider.has_deployments:
                return origin
        if not self.default.provider.has_deployments:
            raise InvalidRequest(f"No upstream with deployments has models for {deployment!r}.")
        return self.default

    def for_model(self, model: str) -> Origin:
        """The upstream for ``model``, which is any text that a client sent."""
        known = self._known.get(model)
        if known is None:
            known = next((origin for patterns, origin in self._routed if matches(model, patterns)), self.default)
            if len(model) <= _MAX_NAME:
                if len(self._known) >= _MAX_REMEMBERED:
                    self._known.clear()
                self._known[model] = known
        return known

    def is_embeddings(self, target: str) -> bool:
        """Whether a POST to ``target`` is the cached route at any upstream; its model decides at which."""
        return any(origin.routes.is_embeddings(target) for origin in self.all)


def matches(model: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)
