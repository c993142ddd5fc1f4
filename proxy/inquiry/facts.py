"""What is known of an upstream after it was asked (pure). Its JSON is an interface: names are kept."""

from enum import StrEnum

from msgspec import Struct


class Verdict(StrEnum):
    YES = "yes"
    NO = "no"
    IGNORED = "ignored"  # accepted, without an effect
    UNKNOWN = "unknown"  # the upstream failed for another reason


class Fact(Struct, frozen=True):
    """``detail`` is what the upstream said, or what was measured."""

    verdict: Verdict
    detail: str = ""


class BatchFact(Struct, frozen=True):
    largest_accepted: int  # items of one call
    smallest_refused: int | None  # None: none was, up to the number that was tried
    detail: str = ""


class Latency(Struct, frozen=True):
    """Of calls for one item."""

    calls: int
    least_s: float
    median_s: float
    most_s: float


class Facts(Struct, frozen=True):
    url: str  # of the embeddings route
    provider: str
    model: str
    model_answered: str | None
    dimensions: int
    inputs: dict[str, Fact]  # by the names of `proxy.protocol.provider.InputFormat`
    encodings: dict[str, Fact]
    shorter: dict[str, Fact]  # by the name of the field that asks for fewer dimensions
    batch: BatchFact
    repeats_alone: Fact
    repeats_in_batch: Fact  # the same text twice in one call
    same_alone_and_in_batch: Fact
    float_text: str
    reports_tokens: bool
    has_id: bool
    latency: Latency
    rate_limit_headers: dict[str, str]
    calls: int
    tokens: int  # as far as the upstream reports them
