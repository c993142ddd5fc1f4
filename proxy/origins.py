"""The upstreams of one proxy, and which of them a model is asked of."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from proxy.providers import Limits, Provider
from proxy.routes import Route, Routes
from proxy.upstream import Upstream

# A client can name any number of models.
_MAX_REMEMBERED = 4096


@dataclass(slots=True, kw_only=True, eq=False)
class Origin:
    """One upstream: what is known of it, the way to it, and who else serves its models."""

    name: str
    provider: Provider
    routes: Routes
    client: Upstream
    alternatives: "tuple[Alternative, ...]" = ()  # in order; as the operator declared

    @property
    def limits(self) -> Limits:
        """What fits into a call wherever it ends up."""
        return Limits(*map(min, zip(*(way.origin.provider.limits for way in self.ways), strict=True)))

    @property
    def ways(self) -> "tuple[Alternative, ...]":
        return (Alternative(self), *self.alternatives)


@dataclass(frozen=True, slots=True)
class Alternative:
    origin: Origin
    model: str | None = None  # what the model is called there; None: the same


class Origins:
    """``routed`` are patterns of model names (``*``, ``?``, ``[…]``) and whose they are; the first that fits counts."""

    def __init__(self, default: Origin, routed: Sequence[tuple[Sequence[str], Origin]] = ()) -> None:
        self.default = default
        self._routed = routed
        self._known: dict[str, Origin] = {}

    def of(self, model: Any) -> Origin:
        """Who is asked for ``model``, which is whatever the client wrote there."""
        if not self._routed or type(model) is not str:
            return self.default
        known = self._known.get(model)
        if known is None:
            known = next((origin for patterns, origin in self._routed if _fits(model, patterns)), self.default)
            if len(self._known) < _MAX_REMEMBERED:
                self._known[model] = known
        return known

    def find(self, target: str) -> Route | None:
        """Where a request goes by its target alone. All but embeddings go to the default."""
        route = self.default.routes.find(target)
        if route is None or route.is_embeddings:
            return route
        others = (origin.routes.find(target) for _, origin in self._routed)
        return next((other for other in others if other and other.is_embeddings), route)


def _fits(model: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)
