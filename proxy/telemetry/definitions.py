"""Every metric: its name, meaning, labels and buckets (pure).

Names follow https://prometheus.io/docs/practices/naming/. Counters get the suffix ``_total`` when they are scraped.
"""

from typing import NamedTuple

# A hit takes tenths of a millisecond, the slowest upstream response minutes.
_LATENCY_S = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
_STAGE_S = (0.00001, 0.00005, 0.0002, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
_STORE_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_LAG_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
_AGE_S = (60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0, 2592000.0)
_WAIT_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_BATCH_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Definition(NamedTuple):
    """A metric. ``buckets`` are a histogram's upper bounds, in rising order; counters and gauges have none."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# Requests on the embeddings route.
REQUESTS = Definition(
    "embedding_proxy_requests",
    "Requests on the embeddings route: hit, no item was asked for upstream, except to validate a credential;"
    " partial, some were; miss, all were; bypass, relayed unread, whatever the upstream responded; error, ended with an"
    " error response, rejected clients included. Status 499: the client left before its response was complete; 502 may"
    " also be a relayed response that broke off.",
    ("outcome", "status", "model"),
)
REQUEST_SECONDS = Definition(
    "embedding_proxy_request_duration_seconds",
    "From the last byte of the request's headers until the response is ready, by outcome.",
    ("outcome",),
    _LATENCY_S,
)
STAGE_SECONDS = Definition(
    "embedding_proxy_stage_duration_seconds",
    "Where a request's time goes. Once per request that is not relayed unread: parse, reading and identifying it;"
    " lookup, in memory and store; assemble, writing the response. Once per part of a request that is sent upstream:"
    " wait, while its batch gathers. Once per upstream call: slot, waiting for the concurrency limit; upstream, from"
    " sending it to the last byte of its response, if it got one.",
    ("stage",),
    _STAGE_S,
)
BYPASSES = Definition(
    "embedding_proxy_bypasses",
    "Requests on the embeddings route that were relayed unread, by what made their meaning uncertain. Those that got no"
    " response to relay are errors.",
    ("reason",),
)
WHOLE_BODY_REQUESTS = Definition(
    "embedding_proxy_whole_body_requests",
    "Requests that could be keyed only by their whole body, not item by item, by reason.",
    ("reason",),
)
VARYING_HEADER_MISSES = Definition(
    "embedding_proxy_varying_header_misses",
    "Requests that missed, by a header field of which one credential and model had shown only new values since their"
    " last hit. Counted in steps of 20.",
    ("header",),
)
VALIDATIONS = Definition(
    "embedding_proxy_validations",
    "Validations of a credential that the upstream had not accepted recently, each counted once however many requests"
    " wait for it: confirmed, refused, or unknown, when the upstream gave no verdict.",
    ("result",),
)
REQUESTS_IN_FLIGHT = Definition("embedding_proxy_requests_in_flight", "Requests on the embeddings route in progress.")
HELD_BYTES = Definition("embedding_proxy_held_request_bytes", "Memory of requests and responses in progress.")
HELD_LIMIT_BYTES = Definition(
    "embedding_proxy_held_request_limit_bytes",
    "Limit on the memory of requests and responses in progress; requests that exceed it get 503.",
)

# By model.
ITEMS = Definition(
    "embedding_proxy_items",
    "Input items of requests that did not end with an error: served from memory, from the store, or as a duplicate"
    " within their request; joined to another request's fetch of the same item; asked of the upstream; bypass, relayed"
    " unread.",
    ("result", "model"),
)
TOKENS = Definition(
    "embedding_proxy_tokens",
    "Input tokens: billed, as the upstream counted them, whether or not a client waited for the response; saved, what"
    " cached, joined and duplicate items cost when they were first asked for. Requests relayed unread are not"
    " included.",
    ("kind", "model"),
)
COST = Definition(
    "embedding_proxy_cost",
    "The cost of these tokens, for models with a price in the configuration and a label of their own; in the prices'"
    " currency.",
    ("kind", "model"),
)

# Embeddings calls to upstreams.
UPSTREAM_SECONDS = Definition(
    "embedding_proxy_upstream_duration_seconds",
    "One embeddings call upstream that got a response, from sending it to the last byte of the response. Requests"
    " relayed unread are not included.",
    ("upstream",),
    _LATENCY_S,
)
UPSTREAM_BATCH_ITEMS = Definition(
    "embedding_proxy_upstream_batch_items",
    "Items in one embeddings call upstream, whether or not it got a response. Requests relayed unread are not"
    " included.",
    buckets=_BATCH_ITEMS,
)
UPSTREAM_MERGED_REQUESTS = Definition(
    "embedding_proxy_upstream_merged_requests",
    "Requests whose items were merged into one embeddings call upstream.",
    buckets=_BATCH_ITEMS,
)
UPSTREAM_RESPONSES = Definition(
    "embedding_proxy_upstream_answers",
    "Embeddings calls upstream by HTTP status, that of the error where a 200 is one; or unreachable, or timeout."
    " Requests relayed unread are not included.",
    ("upstream", "status"),
)
UPSTREAM_REJECTED = Definition(
    "embedding_proxy_upstream_rejected",
    "Responses with status 200 that were not stored because they were invalid, by what was wrong.",
    ("reason",),
)
UPSTREAM_FALLBACKS = Definition(
    "embedding_proxy_upstream_fallbacks",
    "Embeddings calls to a fallback: an upstream declared to serve the same model as one that could not respond.",
    ("upstream",),
)
QUEUED_ITEMS = Definition(
    "embedding_proxy_upstream_queued_items", "Items that were handed to the batcher and have no response yet."
)
RATE_LIMITED_ITEMS = Definition(
    "embedding_proxy_upstream_rate_limited_items", "Items that wait for an upstream's rate limit."
)
RATE_LIMIT_WAIT_SECONDS = Definition(
    "embedding_proxy_upstream_rate_limit_wait_seconds",
    "How long requests waited for an upstream's rate limit, each time until they were sent or given up.",
    (),
    _WAIT_S,
)
RATE_LIMIT_REFUSALS = Definition(
    "embedding_proxy_upstream_rate_limit_refusals",
    "Calls that an upstream refused for its rate limit or its load. Their requests wait and are sent again.",
    ("upstream",),
)
RATE_LIMIT_GIVEN_UP = Definition(
    "embedding_proxy_upstream_rate_limit_given_up",
    "Requests that got an upstream's refusal, because its rate limit held them for longer than they may wait.",
    ("upstream",),
)
RATE_LIMIT_HELD_SECONDS = Definition(
    "embedding_proxy_upstream_rate_limit_held_seconds",
    "For how long an upstream's rate limit has made requests wait without a pause. No series: no limit is known.",
    ("upstream", "model"),
)
RATE_LIMIT_CALLS_PER_SECOND = Definition(
    "embedding_proxy_upstream_rate_limit_calls_per_second",
    "The limit on calls that the proxy keeps to, as it was stated or learned. No series: none is known.",
    ("upstream", "model"),
)
QUEUE_LIMIT_ITEMS = Definition(
    "embedding_proxy_upstream_queue_limit_items",
    "Limit on items queued in the batcher; requests that exceed it get 503.",
)
BREAKER_STATE = Definition(
    "embedding_proxy_breaker_state",
    "Circuit breakers, one for reads and one for writes of the store and one per upstream: 0 closed, 1 half-open, 2"
    " open.",
    ("circuit",),
)

# The store.
STORE_SECONDS = Definition(
    "embedding_proxy_store_duration_seconds",
    "One read or write of the store, for one request or several.",
    ("operation",),
    _STORE_S,
)
STORE_ERRORS = Definition(
    "embedding_proxy_store_errors",
    "Reads and writes of the store that failed, timed out, or were not tried (open: its circuit breaker is open); they"
    " cost hits, not requests.",
    ("operation", "reason"),
)
STORE_PENDING_BYTES = Definition(
    "embedding_proxy_store_pending_write_bytes",
    "Records waiting to be written to the store. Above 64 MiB, upstream calls wait.",
)
STORE_UNSTORED_ITEMS = Definition(
    "embedding_proxy_store_unstored_items",
    "Items that an upstream has embedded and that were not written to the store, by reason: those of"
    " embedding_proxy_store_errors_total; busy also means that too many bytes wait for a store that hangs; stopped,"
    " that the process ended first. Until memory evicts them, they are written when they are asked for again and the"
    " store works.",
    ("reason",),
)
STORE_INVALID_RECORDS = Definition(
    "embedding_proxy_store_invalid_records",
    "Stored values that were invalid and treated as misses, each counted once until it is replaced. checksum:"
    " damaged. untagged: without a tag, as before a record key was set. other-key: tagged under a record key"
    " that this proxy does not have. tag: names this proxy's record key, but was not tagged with it. key:"
    " copied from another key. The others: of another version or program.",
    ("reason",),
)
STORE_CHANGES_AGE = Definition(
    "embedding_proxy_store_changes_age_seconds",
    "Time since this process last read which records were replaced in the store, which it does twice a second. Until it"
    " reads that, it may serve from memory what another process has replaced.",
)

# The memory tier.
MEMORY_BYTES = Definition("embedding_proxy_memory_bytes", "Size of the memory tier, its own estimate.")
MEMORY_LIMIT_BYTES = Definition("embedding_proxy_memory_limit_bytes", "Limit on the size of the memory tier.")
MEMORY_ENTRIES = Definition("embedding_proxy_memory_entries", "Entries in the memory tier.")
MEMORY_EVICTED_AGE = Definition(
    "embedding_proxy_memory_evicted_age_seconds",
    "Time since an entry was stored, when the memory tier evicts it for lack of space.",
    buckets=_AGE_S,
)
MEMORY_DISCARDED = Definition(
    "embedding_proxy_memory_discarded_entries",
    "Entries that were removed from the memory tier because the store may have another record: replaced, a process has"
    " replaced it, or is about to; again, the same two seconds later, in case that process died meanwhile; missed, all"
    " entries, after this process missed some of what was replaced; purged, an operator removes it from the store.",
    ("reason",),
)

# The canary: whether an upstream still computes the vectors that it once did.
_CANARY = ("upstream", "model")
CANARY_CHECKS = Definition(
    "embedding_proxy_canary_checks",
    "Checks of a model by this process, by what they said: first, its vectors are what later checks are compared with;"
    " same-bits; within-noise, no farther from the first vectors than the upstream's responses for one text are from"
    " each other; last-bits, farther, but by less than a search would notice; drifted, other weights; dimensions,"
    " vectors of another length; other-model, the response names another model; failed, no vectors.",
    (*_CANARY, "verdict"),
)
CANARY_VERDICT = Definition(
    "embedding_proxy_canary_verdict",
    "What the latest check of a model that got vectors said, in whichever process: 1 for that verdict, 0 for the"
    " others. failed is 1 beside it if later checks failed.",
    (*_CANARY, "verdict"),
)
CANARY_DISTANCE = Definition(
    "embedding_proxy_canary_distance",
    "The largest cosine distance (1 - cosine) of a text's vector to its first one, in the latest check that got"
    " vectors.",
    _CANARY,
)
CANARY_NOISE = Definition(
    "embedding_proxy_canary_noise",
    "The largest cosine distance between two responses of the upstream for one text, alone and in a batch.",
    _CANARY,
)
CANARY_CHANGED = Definition(
    "embedding_proxy_canary_changed_ratio",
    "The ratio of numbers that differ in any bit from the first vectors, in the latest check that got vectors.",
    _CANARY,
)
CANARY_EPOCH = Definition(
    "embedding_proxy_canary_epoch",
    "Which generation of the key a model's entries have; it grows when its weights change, with --on-drift new-epoch.",
    _CANARY,
)
CANARY_FAILURES = Definition(
    "embedding_proxy_canary_failures", "Failed checks of a model in a row, by all processes.", _CANARY
)
CANARY_MEASURED_AT = Definition(
    "embedding_proxy_canary_measured_timestamp_seconds",
    "Unix time of the latest check of a model that got vectors; 0 before the first.",
    _CANARY,
)
CANARY_TOKENS = Definition(
    "embedding_proxy_canary_tokens",
    "Tokens that the upstream billed for checks by this process. They are in no other count of tokens.",
    _CANARY,
)

# The process.
LOOP_LAG = Definition(
    "embedding_proxy_event_loop_lag_seconds",
    "How late the event loop runs a task that is due: the delay of every request at each of its steps.",
    buckets=_LAG_S,
)
BUILD_INFO = Definition(
    "embedding_proxy_build_info", "Always 1; the versions are in the labels.", ("version", "python")
)
