"""The result of an analysis. Its JSON is an interface: names are kept, and new ones may be added."""

from msgspec import Struct

from proxy.analysis.simulation import Outcome
from proxy.analysis.statistics import ModelTotals, Repetition


class LineProblem(Struct, frozen=True):
    """Lines of one file that were not used, for one reason."""

    file: str
    reason: str
    lines: int
    first_line: int


class FileSummary(Struct, frozen=True):
    name: str
    format: str
    lines: int
    requests: int
    texts: int  # of a corpus


class BypassCount(Struct, frozen=True):
    """Requests that a proxy would not cache item by item, by its reason."""

    reason: str
    requests: int
    items: int
    is_cached_whole: bool  # the same body is a hit, but not the same item in another body


class Money(Struct, frozen=True):
    """In the unit of the prices. ``per_million_tokens`` is by model, None without a price."""

    without_cache: float
    at_best: float  # with a cache that keeps everything
    models_without_price: list[str]


class Scenario(Struct, frozen=True):
    """What a proxy of these sizes would have done. ``store_bytes`` is None without a store."""

    memory_bytes: int
    store_bytes: int | None
    evicts: bool  # something was evicted, so that the hits depend on the random choices of TinyLFU
    hit_rate: float  # of items
    items: Outcome
    tokens_upstream: int
    money_upstream: float | None


class Assumptions(Struct, frozen=True):
    tokens: str  # exact, estimated or both
    dimensions: dict[str, int]  # of models whose requests do not say
    guessed_dimensions: list[str]  # of these, the models that are not known
    model: str | None  # of the texts of corpora
    batch: int  # texts of corpora in a request
    rate: float | None  # requests a second where files have no times; None: they have
    provider: str


class Report(Struct, frozen=True):
    version: str
    files: list[FileSummary]
    unread: list[LineProblem]
    skipped: list[LineProblem]
    repetition: Repetition
    models: list[ModelTotals]
    bypasses: list[BypassCount]
    refused_requests: int  # by the proxy itself
    memory_needed_bytes: int  # to keep everything
    store_needed_bytes: int
    money: Money | None  # None: the configuration has no prices
    scenarios: list[Scenario]
    assumptions: Assumptions
    begins_at_s: float | None = None  # Unix time of the first request
    ends_at_s: float | None = None
