"""The upstreams of one proxy, and which of them a model is asked of."""

from collections.abc import Sequence
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

# A client can name any number of models, of any length.
_MAX_REMEMBERED, _MAX_NAME = 4096, 256


@dataclass(slots=True, kw_only=True, eq=False)
class Origin:
    """One upstream: what is known of it, the way to it, and who else serves its models."""

    name: str
    provider: Provider
    routes: Routes
    client: UpstreamClient
    key: str | None = field(default=None, repr=False)  # the proxy's own; None: the client's goes upstream
    cors: Cors = field(default_factory=Cors)
    is_shared: bool = False  # all clients see the same entries
    fallbacks: "tuple[Fallback, ...]" = ()  # in order; as the operator declared
    # What it called each model in its last answer to each client: an alternative's answers go by that name, too.
    _names: dict[tuple[bytes, str | None], str] = field(default_factory=dict)

    @property
    def limits(self) -> Limits:
        """What fits into a call wherever it ends up."""
        return Limits(*map(min, zip(*(way.origin.provider.limits for way in self.candidates), strict=True)))

    @property
    def merge_limits(self) -> Limits:
        """What fits into a call for several requests."""
        limits = self.limits
        return limits._replace(items=min(limits.items, MAX_MERGED_ITEMS))

    @property
    def neutral_headers(self) -> frozenset[str]:
        """Names in lower case that are neutral wherever a request ends up, besides those that are so everywhere."""
        if not self.provider.neutral_headers:
            return self.provider.neutral_headers
        return frozenset.intersection(*(way.origin.provider.neutral_headers for way in self.candidates))

    def outbound(self, forwarded: CIMultiDict[str]) -> CIMultiDict[str]:
        """A request's fields as this upstream is to see them: with the proxy's key for it, if there is one."""
        forwarded = self.cors.outbound(forwarded)
        if self.key is None:
            return forwarded
        outbound = headers.without_credentials(forwarded)
        name, _, scheme = self.provider.auth.partition(": ")
        outbound[name] = f"{scheme} {self.key}" if scheme else self.key
        return outbound

    def target(self, given: str) -> str:
        """A request's target as this upstream is to see it: where the proxy has a key for it, without the client's."""
        return given if self.key is None else query.without_credentials(given)

    def remember(self, client: bytes, asked: str | None, answered: str) -> None:
        """What it called a model that a client asked for. With entries of their own, clients may not have the same
        model by one name, and do not learn each other's names."""
        if self.fallbacks and answered:
            if len(self._names) >= _MAX_REMEMBERED:
                self._names.clear()
            self._names[self._who(client), asked] = answered

    def name_of(self, client: bytes, asked: str | None) -> str:
        """What it called the model in its last answer to that client; "" before the first."""
        return self._names.get((self._who(client), asked), "")

    def _who(self, client: bytes) -> bytes:
        return b"" if self.is_shared else client

    @property
    def candidates(self) -> "tuple[Fallback, ...]":
        return (Fallback(self), *self.fallbacks)


@dataclass(frozen=True, slots=True)
class Fallback:
    origin: Origin
    model: str | None = None  # what the model is called there; None: the same


class Router:
    """``routed`` are patterns of model names (``*``, ``?``, ``[…]``) and whose they are; the first that fits counts."""

    def __init__(self, default: Origin, routed: Sequence[tuple[Sequence[str], Origin]] = ()) -> None:
        self.default = default
        self.all = (default, *(origin for _, origin in routed))
        self._routed = routed
        self._known: dict[str, Origin] = {}

    @property
    def has_several(self) -> bool:
        """Whether it matters which model a request asks for."""
        return bool(self._routed)

    def asked_at(self, target: str, model: str | None) -> Origin:
        """The upstream for a request to ``target`` whose body names ``model``; None: it names none that can be read.

        A model that the path names goes first. Raises `InvalidRequest` where neither names one: the texts may be meant
        for one upstream alone.
        """
        if not self._routed:
            return self.default
        named = parse_path_model(target)
        if named is not None and named.is_deployment:
            return self._with_deployment(named.name, model)
        names = [name for name in (named.name if named else model_in_path(target), model) if name is not None]
        if not names and self.default.provider.needs_model:
            raise InvalidRequest(
                "Several upstreams are configured, and neither the body nor the path names a model that says which of"
                " them this request is for."
            )
        return next((origin for origin in map(self.of, names) if origin is not self.default), self.default)

    def _with_deployment(self, deployment: str, model: str | None) -> Origin:
        """On Azure the path says what computes, and the body need not; whoever has no deployments is not asked."""
        for name in (deployment, model):
            origin = self.default if name is None else self.of(name)
            if origin is not self.default and origin.provider.has_deployments:
                return origin
        if not self.default.provider.has_deployments:
            raise InvalidRequest(f"No upstream with deployments has models for {deployment!r}.")
        return self.default

    def of(self, model: str) -> Origin:
        """The upstream for ``model``, which is whatever the client wrote there."""
        known = self._known.get(model)
        if known is None:
            known = next((origin for patterns, origin in self._routed if _fits(model, patterns)), self.default)
            if len(model) <= _MAX_NAME:
                if len(self._known) >= _MAX_REMEMBERED:
                    self._known.clear()
                self._known[model] = known
        return known

    @property
    def are_several(self) -> bool:
        return bool(self._routed)

    def is_embeddings(self, target: str) -> bool:
        """Whether any upstream's map takes a POST to ``target`` for the cached route; its model says which upstream
        is asked."""
        return any(_takes(origin, target) for origin in self.all)


def _takes(origin: Origin, target: str) -> bool:
    route = origin.routes.find(target)
    return route is not None and route.is_embeddings


def _fits(model: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)
