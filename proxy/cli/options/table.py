"""The table of options. Flags, variables, keys of the file, README's table and the tests' settings come from it."""

from collections.abc import Collection

import click
from platformdirs import user_cache_path

from proxy.cli.options import types
from proxy.cli.options.calls import CALL_OPTIONS
from proxy.cli.options.canary import CANARY_OPTIONS
from proxy.cli.options.option import Option


def _default_store() -> str:
    return f"sqlite:///{user_cache_path('embedding-proxy') / 'cache.sqlite3'}"


def _or_none(names: Collection[str] | None) -> Collection[str]:
    return names or frozenset()


OPTIONS = (
    Option(
        name="host",
        default="127.0.0.1",
        help="Address to listen on for clients; `unix:/path` listens on a Unix socket.",
    ),
    Option(
        name="port",
        type=types.PORT,
        default="8080",
        help="Port to listen on for clients; `0` selects a free port.",
    ),
    Option(name="admin-host", default="127.0.0.1", help="Address to listen on for the admin port."),
    Option(
        name="admin-port",
        type=types.PORT,
        default="9090",
        help="Port for the status page at `/`, `/metrics`, `/healthz`, `/readyz` and `/openapi.json`.",
    ),
    Option(
        name="upstream",
        metavar="URL|NAME",
        default="demo",
        help="Base URL of the embeddings API, or the name of a provider (list them with `embedding-proxy providers`);"
        " `demo` is built in and works offline.",
        field=None,
    ),
    Option(
        name="provider",
        metavar="NAME",
        default_words="generic",
        help="Which provider's API the URL of `--upstream` serves.",
        field=None,
    ),
    Option(
        name="store",
        type=types.STORE,
        default=_default_store,
        default_words="SQLite in the user's cache folder",
        help="`memory:`, `sqlite:////absolute/path` (three slashes: a relative path), `redis://…`,"
        " `redis+cluster://…` or `redis+sentinel://…`, each with `rediss` for TLS, or `unix:///socket`.",
    ),
    Option(
        name="store-limit",
        type=types.STORE_LIMIT,
        default="10GiB",
        help="Maximum size of the SQLite file. The least recently read entries are evicted first. If several proxies"
        " use the file, the largest limit applies.",
        field="store_limit_bytes",
    ),
    Option(
        name="memory",
        type=types.SIZE,
        default="512MiB",
        help="Maximum size of the vectors cached in memory, in front of the store.",
        field="memory_bytes",
    ),
    Option(
        name="ttl",
        type=types.TTL,
        default="none",
        help="How long to serve an entry after it was stored, such as `30d`.",
        field="ttl_s",
    ),
    Option(
        name="share",
        type=click.Choice(["credential", "all"]),
        default="credential",
        help="Which entries a request can hit: those that its own credential paid for, or, with `all`, one set for"
        " every credential that the upstream accepts.",
        field="shares_all",
        to_field=lambda scope: scope == "all",
    ),
    Option(
        name="revalidate",
        type=types.POSITIVE_SECONDS,
        default="10m",
        help="How long a credential counts as valid after the upstream's last 2xx response to it.",
        field="revalidate_s",
    ),
    Option(
        name="key-headers",
        type=types.HEADER_NAMES,
        help="Extra request headers to include in the cache key, such as `X-Route, X-User`. Credential and routing"
        " headers are detected automatically.",
        to_field=_or_none,
    ),
    Option(
        name="neutral-headers",
        type=types.NEUTRAL_HEADERS,
        help="Request headers to exclude from the cache key, such as `X-Session-Token`, although their names look like"
        " credentials or routing. Tracing, mesh and CDN headers are detected automatically.",
        link="[More](docs/providers.md#header-fields).",
        to_field=_or_none,
    ),
    Option(
        name="upstream-key-env",
        metavar="NAME",
        help="Env var holding the upstream's API key, which the proxy then sends in place of the clients' keys.",
        field=None,
    ),
    Option(
        name="upstream-proxy",
        metavar="URL",
        type=types.FORWARD_PROXY,
        help="Forward proxy for all upstream calls, such as `http://user:password@host:3128`. Proxy variables in the"
        " environment (`HTTPS_PROXY`, …) are ignored.",
        field=None,
    ),
    Option(
        name="upstream-ca",
        metavar="FILE",
        type=types.PEM_FILE,
        default_words="the system's",
        help="PEM bundle of the certificate authorities to trust for upstreams. SIGHUP reloads it.",
        field=None,
    ),
    Option(
        name="upstream-cert",
        metavar="FILE",
        type=types.PEM_FILE,
        help="PEM client certificate, or chain, for upstreams that request one. SIGHUP reloads it.",
        field=None,
    ),
    Option(
        name="upstream-cert-key",
        metavar="FILE",
        type=types.PEM_FILE,
        default_words="in the file of --upstream-cert",
        help="Private key of `--upstream-cert`, in PEM and unencrypted.",
        link="[Each upstream can have its own](docs/providers.md#forward-proxies-and-private-certificates).",
        field=None,
    ),
    Option(
        name="client-keys",
        type=types.FILE,
        help="File of the client keys to accept (add one with `embedding-proxy keys add`). SIGHUP reloads it.",
    ),
    Option(
        name="client-labels-key-env",
        metavar="NAME",
        help="Without `--client-keys`: env var holding a secret. Metrics and log then name clients by a short MAC of"
        " their credential under it, the first 50 that the upstream accepts; all others are `other`.",
        link="[More](docs/clients.md).",
        field=None,
    ),
    Option(
        name="cors-origins",
        type=types.ORIGINS,
        default_words="the upstream decides",
        help="Origins of the web pages that can read responses, such as `https://app.example.com, http://localhost:3000`,"
        " or `*`.",
        link="[Web pages](#web-pages).",
        to_field=_or_none,
    ),
    Option(
        name="record-key-env",
        metavar="NAME",
        help="Env var holding the secret used to authenticate records in a shared store.",
        field=None,
    ),
    Option(
        name="workers",
        type=types.COUNT,
        default="1",
        help="Worker processes, one per core. Memory, queue and concurrency limits apply to all workers combined"
        " (Linux only).",
        field=None,
    ),
    Option(
        name="max-body",
        type=types.BODY_LIMIT,
        default="64MiB",
        help="Maximum size of a request body on the embeddings route. Larger ones get 413.",
        field="max_body_bytes",
    ),
    Option(
        name="usage",
        type=click.Choice(["billed", "full"]),
        default="billed",
        help="`usage` in responses: what the upstream billed, or, with `full`, what it would have billed without the"
        " cache.",
        field="reports_full_usage",
        to_field=lambda usage: usage == "full",
    ),
    *CALL_OPTIONS,
    *CANARY_OPTIONS,
    Option(
        name="drain-delay",
        type=types.SECONDS,
        default="0s",
        help="On SIGTERM: how long to keep accepting while reporting not ready.",
        field="drain_delay_s",
    ),
    Option(
        name="shutdown-timeout",
        type=types.SECONDS,
        default="30s",
        help="After `--drain-delay`: how long to finish in-flight requests. A second signal exits immediately.",
        field="shutdown_timeout_s",
    ),
    Option(
        name="log-format",
        type=click.Choice(["console", "json"]),
        default="console",
        help="`console` for people, `json` for machines.",
    ),
    Option(
        name="log-requests",
        type=click.Choice(["yes", "no"]),
        default="yes",
        help="Whether to log a line per request. The whole log goes to stderr.",
        field="logs_requests",
        to_field=lambda choice: choice == "yes",
    ),
    Option(
        name="traces",
        type=click.Choice(["off", "otlp"]),
        default="off",
        help="`otlp` exports OpenTelemetry spans as the standard `OTEL_*` variables configure. Needs the extra `otel`.",
        link="[Traces](#traces).",
    ),
)

BY_KEY = {option.key: option for option in OPTIONS}

CONFIG = Option(
    name="config",
    type=types.FILE,
    help="TOML file with any of these options as keys: `log_format` for `--log-format`.",
)
