"""The part of the table of options that is about upstream calls: batches, rate limits, queues, timeouts."""

from proxy.cli.options import types
from proxy.cli.options.option import Option

CALL_OPTIONS = (
    Option(
        name="batch-window",
        type=types.SECONDS,
        default="10ms",
        help="How long to collect misses into one call while another call is in flight. A lone request never waits.",
        field="batch_window_s",
    ),
    Option(
        name="max-batch-items",
        type=types.COUNT,
        default_words="the provider's limit",
        help="Maximum items in one upstream call. Larger batches are split.",
    ),
    Option(
        name="rate-limit-wait",
        type=types.SECONDS,
        default="60s",
        help="How long a request may wait for the upstream's rate limit, from its start. Refused calls (429,"
        " or 503 and 529 with `Retry-After`) are sent again when the limit allows it. `0s` relays refusals at once.",
        field="rate_limit_wait_s",
    ),
    Option(
        name="interactive-items",
        type=types.COUNT,
        default="4",
        help="Requests of at most so many items go first while others wait for a rate limit. A header `Priority: u=0`"
        " to `u=7` overrides that.",
    ),
    Option(
        name="max-queued-items",
        type=types.COUNT,
        default="100000",
        help="Maximum items queued for the upstream. Excess requests get 503 with `Retry-After`.",
    ),
    Option(
        name="max-held",
        type=types.HELD_LIMIT,
        default="1GiB",
        help="Maximum memory of all requests and responses in progress, at least `--max-body`. Excess requests get 503"
        " with `Retry-After`.",
        field="max_held_bytes",
    ),
    Option(
        name="max-connections",
        type=types.COUNT,
        default="10000",
        help="Maximum client connections. Excess connections get 503.",
    ),
    Option(
        name="upstream-concurrency",
        type=types.COUNT,
        default="64",
        help="Maximum embeddings calls in flight to each upstream.",
    ),
    Option(
        name="upstream-connect-timeout",
        type=types.POSITIVE_SECONDS,
        default="10s",
        help="Maximum time to connect to an upstream.",
        field="upstream_connect_timeout_s",
    ),
    Option(
        name="upstream-read-timeout",
        type=types.POSITIVE_SECONDS,
        default="600s",
        help="Maximum time to wait for an upstream's next byte, including the first.",
        field="upstream_read_timeout_s",
    ),
    Option(
        name="upstream-timeout",
        type=types.POSITIVE_SECONDS,
        default="600s",
        help="Maximum total time of an embeddings call to an upstream.",
        field="upstream_timeout_s",
    ),
)
