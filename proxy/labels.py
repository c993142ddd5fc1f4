"""The fixed words for how requests and items ended (pure).

Metric labels, the access log, traces, ``status.json`` and response headers all use these values. They are part of the
proxy's interface: dashboards and alerts match on them.
"""

from enum import StrEnum

from proxy.breaker import State


class RequestOutcome(StrEnum):
    """Outcome of one request on the data port."""

    # Enum's own `__hash__` is slow, since it is written in Python, and every request looks up outcomes.
    __hash__ = str.__hash__

    HIT = "hit"  # no item was fetched, except to validate a credential
    PARTIAL = "partial"  # some items were fetched
    MISS = "miss"  # all items were fetched
    BYPASS = "bypass"  # relayed unread, whatever the upstream responded
    ERROR = "error"
    # For requests on other routes, so only in the access log and in traces.
    PASS = "pass"  # noqa: S105 - passed through
    PREFLIGHT = "preflight"  # CORS


# Outcomes of requests on the embeddings route.
OUTCOMES = (
    RequestOutcome.HIT,
    RequestOutcome.PARTIAL,
    RequestOutcome.MISS,
    RequestOutcome.BYPASS,
    RequestOutcome.ERROR,
)


class ItemResult(StrEnum):
    """Where the vector of one input item came from."""

    __hash__ = str.__hash__

    MEMORY = "memory"
    STORE = "store"
    DUPLICATE = "duplicate"  # the same item is in the request more than once
    JOINED = "joined"  # another request was already fetching it
    UPSTREAM = "upstream"
    BYPASS = "bypass"  # the request was relayed unread


# The request that counts such an item did not itself ask the upstream for it.
FROM_CACHE = (ItemResult.MEMORY, ItemResult.STORE, ItemResult.DUPLICATE, ItemResult.JOINED)


class BypassReason(StrEnum):
    """Why a request can't be cached item by item: it is keyed by its whole body, or relayed unread."""

    CONTENT_ENCODING = "content-encoding"
    CONTENT_TYPE = "content-type"
    CROSS_ITEM = "cross-item"  # a vector may depend on the request's other items
    DUPLICATE_KEY = "duplicate-key"  # of a JSON object
    EMPTY_ITEM = "empty-item"
    ENCODING = "encoding"  # of the vectors
    INEXACT_NUMBER = "inexact-number"
    INPUT_FORM = "input-form"
    LIST_PARAMETER = "list-parameter"
    MODEL = "model"  # missing, not a string, or too long
    MULTI_VECTOR = "multi-vector"  # several vectors an item
    NOT_AN_OBJECT = "not-an-object"
    NOT_JSON = "not-json"
    OTHER_ROUTE = "other-route"  # the model's upstream has another API
    REMOTE_MEDIA = "remote-media"  # what the URL refers to may change
    SIGNED_BODY = "signed-body"
    STREAM = "stream"
    TOKEN_RANGE = "token-range"  # noqa: S105
    TOO_COMPLEX = "too-complex"
    TOO_DEEP = "too-deep"
    TOO_MANY_ITEMS = "too-many-items"
    UNKNOWN_FIELD = "unknown-field"
    UPSTREAM_CACHE = "upstream-cache"  # it controls a cache of the upstream


class CanaryVerdict(StrEnum):
    """What a check of a model says (`proxy.canary`), from the best to the worst."""

    FIRST = "first"  # its vectors are what later checks are compared with
    SAME_BITS = "same-bits"
    WITHIN_NOISE = "within-noise"  # no farther from the first vectors than two responses for one text may differ
    LAST_BITS = "last-bits"  # farther, by less than a search would notice
    FAILED = "failed"  # no vectors
    DRIFTED = "drifted"  # other weights
    OTHER_MODEL = "other-model"  # the response names another model
    DIMENSIONS = "dimensions"  # vectors of another length


# The upstream no longer serves the model that it did.
CANARY_ALARMS = (CanaryVerdict.DRIFTED, CanaryVerdict.OTHER_MODEL, CanaryVerdict.DIMENSIONS)

# A circuit breaker's states, indexed by the value of its gauge.
BREAKER_STATES = (State.CLOSED, State.HALF_OPEN, State.OPEN)
