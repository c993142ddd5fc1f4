"""Settings: frozen and typed, with the units in their names (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proxy.ledger.spending import SpendingBudget
from proxy.protocol.provider import Provider
from proxy.protocol.providers import GENERIC
from proxy.upstream import base_urls
from proxy.upstream.egress import DIRECT, Egress

KIB, MIB, GIB = 1024, 1024**2, 1024**3

# Not an address: the demo listens on a socket of its own. The URL is part of every key, so its number changes whenever
# the demo's vectors change, and old entries are not served beside new ones.
DEMO_BASE_URL = "http://demo-2.invalid/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SameModel:
    """The operator declares that another upstream serves the same model, under the name ``model``."""

    upstream: str
    model: str | None = None  # None: the same name


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """What the operator knows of an upstream's limits for the models that match ``models``; None: unknown."""

    models: tuple[str, ...]
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSetting:
    name: str  # a provider's name, `demo`, or the URL's host
    base_url: str
    provider: Provider = GENERIC
    key: str | None = field(default=None, repr=False)  # the proxy's own; None: the client's key goes upstream
    canary_key: str | None = field(default=None, repr=False)  # of the canary's calls; None: ``key``
    models: tuple[str, ...] = ()  # patterns of the models routed to it; none: all models that no other upstream has
    same_model: tuple[SameModel, ...] = ()
    egress: Egress = DIRECT
    limits: tuple[RateLimit, ...] = ()  # the first whose patterns match a model applies

    @property
    def is_demo(self) -> bool:
        return self.base_url == DEMO_BASE_URL

    @property
    def uses_tls(self) -> bool:
        """Whether any connection on the way to it uses TLS."""
        proxy = self.egress.proxy
        return self.base_url.startswith("https:") or (proxy is not None and proxy.url.startswith("https:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSetting:
    """One of: nothing (`memory:`), a ``path`` to a SQLite file, a ``url`` of one or more Redis servers."""

    path: Path | None = None
    url: str | None = field(default=None, repr=False)  # a password may be in it

    def __str__(self) -> str:
        if self.path is not None:
            return f"sqlite:///{self.path}"
        return "memory:" if self.url is None else base_urls.redacted(self.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """``[budgets]``."""

    budgets: tuple[SpendingBudget, ...] = ()
    fails_open: bool = True  # whether calls go on while the store that counts them fails


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The defaults of what operators set are in the table of options (`proxy.cli.options.table`)."""

    host: str
    port: int  # 0: any free one
    admin_host: str
    admin_port: int
    upstream: UpstreamSetting  # the default: for all models that are not routed to another
    routed: tuple[UpstreamSetting, ...] = ()
    store: StoreSetting
    store_limit_bytes: int
    store_timeout_s: float = 0.05  # how long a request waits for the store; no option sets it
    memory_bytes: int
    ttl_s: float | None  # None: for as long as there is room
    shares_all: bool  # one scope for all validated credentials
    revalidate_s: float
    key_headers: frozenset[str]  # names in lower case
    neutral_headers: frozenset[str]  # likewise
    cors_origins: frozenset[str]  # as browsers send them, or just "*"; none: the upstream decides
    client_keys: Path | None  # None: any client that can connect is served
    client_labels_key: bytes | None = field(default=None, repr=False)  # None: no pseudonyms in metrics and log
    record_key: bytes | None = field(default=None, repr=False)
    prices: Mapping[str, float] = field(default_factory=dict)  # per million tokens, by patterns of model names
    budgets: BudgetSettings = BudgetSettings()
    reports_full_usage: bool
    batch_window_s: float
    max_batch_items: int | None  # None: the provider's limit
    max_body_bytes: int
    rate_limit_wait_s: float  # 0: refusals are relayed
    interactive_items: int
    max_queued_items: int
    max_held_bytes: int
    max_connections: int
    upstream_concurrency: int
    upstream_connect_timeout_s: float
    upstream_read_timeout_s: float
    upstream_timeout_s: float
    canary_interval_s: float | None  # None: no canary
    on_drift: str  # alarm or new-epoch
    drain_delay_s: float
    shutdown_timeout_s: float
    log_format: str  # console or json
    logs_requests: bool
    traces: str  # off or otlp

    @property
    def owns_key(self) -> bool:
        return self.upstream.key is not None

    @property
    def counts_clients(self) -> bool:
        """Whether metrics and log tell clients apart."""
        return self.client_keys is not None or self.client_labels_key is not None

    @property
    def begins_epochs(self) -> bool:
        """Whether entries of a model whose weights have changed are not served any more."""
        return self.on_drift == "new-epoch"

    @property
    def upstreams(self) -> tuple[UpstreamSetting, ...]:
        return (self.upstream, *self.routed)

    @property
    def has_files(self) -> bool:
        """Whether there are files to reload on SIGHUP."""
        return self.client_keys is not None or any(own.egress.has_files for own in self.upstreams)
