"""The metrics by client: what each uses, its budgets, and why it gets no hits (pure)."""

from proxy.telemetry.definitions import Definition

# With --client-keys, or with --client-labels-key-env.
CLIENT_REQUESTS = Definition(
    "embedding_proxy_client_requests",
    "Requests on the embeddings route by client and outcome. other: clients without a label of their own. unknown"
    " key: requests with none of the listed keys.",
    ("client", "outcome"),
)
CLIENT_ITEMS = Definition(
    "embedding_proxy_client_items",
    "Input items as in embedding_proxy_items, by client.",
    ("client", "result"),
)
CLIENT_TOKENS = Definition(
    "embedding_proxy_client_tokens",
    "Input tokens by client. billed: of items that were asked of the upstream for this client; what several clients"
    " wait for is charged to the first of them. saved: what this client's cached, joined and duplicate items cost when"
    " they were first asked for. The sums over clients are those of embedding_proxy_tokens.",
    ("client", "kind"),
)
CLIENT_COST = Definition(
    "embedding_proxy_client_cost",
    "The cost of these tokens, for models with a price in the configuration and a label of their own; in the prices'"
    " currency.",
    ("client", "kind"),
)
CLIENT_BYPASSES = Definition(
    "embedding_proxy_client_bypasses",
    "Requests that were relayed unread, by client and reason.",
    ("client", "reason"),
)
CLIENT_HELD_SECONDS = Definition(
    "embedding_proxy_client_rate_limit_wait_seconds",
    "How long the client's requests have waited for an upstream's rate limit, in all.",
    ("client",),
)
BY_CLIENT = (CLIENT_REQUESTS, CLIENT_ITEMS, CLIENT_TOKENS, CLIENT_COST, CLIENT_BYPASSES, CLIENT_HELD_SECONDS)

# Budgets of clients.
BUDGET_SPENT = Definition(
    "embedding_proxy_budget_spent",
    "What a client has spent of a budget in the present window, by all processes with the same store, as far as this"
    " one knows; in tokens or in money. Client *: all that share the budget.",
    ("budget", "client", "unit"),
)
BUDGET_LIMIT = Definition(
    "embedding_proxy_budget_limit",
    "The budget itself, for every client that has used it in the present window.",
    ("budget", "client", "unit"),
)
BUDGET_REFUSALS = Definition(
    "embedding_proxy_budget_refusals",
    "Upstream calls that were not made because the client's budget is used up. Their requests get 429.",
    ("budget", "client"),
)
BUDGET_STORE_ERRORS = Definition(
    "embedding_proxy_budget_store_errors",
    "Reads and reports of what was spent that the store did not reply to. Reports are repeated.",
)

UNCACHED_REQUESTS = Definition(
    "embedding_proxy_uncached_requests",
    "Requests that could not be cached item by item and were no hits, by client, reason, the field that the reason is"
    " about, and the client's program: relayed unread, keyed by their whole body, or passed through on a path that is"
    " not cached (wrong-path). After 200 combinations all others are other.",
    ("client", "reason", "field", "user_agent"),
)
