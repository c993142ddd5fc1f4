"""The command ``embedding-proxy serve``: flags, environment and file as settings, and what runs by them."""

import asyncio
import logging
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import uvloop
from click.core import ParameterSource
from platformdirs import user_cache_path

from proxy.cli import banner
from proxy.config import checks, header_names, paths, quantities, stores
from proxy.config.cors_origins import parse_cors_origins
from proxy.config.price_table import parse_prices
from proxy.config.provider_tables import parse_providers
from proxy.config.secrets import read_record_key, read_secret
from proxy.config.settings import Settings, UpstreamSetting
from proxy.config.suggestion import suggestion
from proxy.config.upstream_tables import parse_upstreams
from proxy.config.upstream_urls import parse_upstream
from proxy.errors import ConfigError
from proxy.http.listeners import Listeners, Sockets
from proxy.process import run
from proxy.process.supervisor import REFUSED, Supervisor
from proxy.protocol.provider import Provider
from proxy.telemetry import log
from proxy.upstream.egress import Egress, parse_proxy

_ENV_PREFIX = "EMBEDDING_PROXY_"
# Kubernetes puts the address of every Service into every Pod's environment; for one named `embedding-proxy` or
# `embedding-proxy-admin` these fall among ours (https://kubernetes.io/docs/tutorials/services/connect-applications-service/).
_KUBERNETES_LINK = re.compile(r"EMBEDDING_PROXY_(ADMIN_)?(SERVICE_(HOST|PORT)\w*|PORT_\d+_\w+)")
EXIT_USAGE = 2  # also of a process whose settings ask for what it can't do
# What of a configuration file is no single value, and where the context keeps it.
_FILE = "file"
_TABLES = {"upstream": list, "providers": dict, "prices": dict}
_WRITTEN = {
    "upstream": 'a URL or a name, as in upstream = "openai", or [[upstream]] tables, with two brackets',
    "providers": "tables, as [providers.NAME]",
    "provider": 'the name of a provider, as in provider = "vllm"; to change a provider, use [providers.NAME]',
    "prices": 'a table [prices] with lines as "text-embedding-3-*" = 0.02',
}


class _Parsed(click.ParamType[Any]):
    """An option whose text is read by one of `proxy.config`'s functions."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):  # click converts what it has converted once more
            return value
        try:
            return self._parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


_SIZE = _Parsed("size", quantities.parse_size)
_STORE_LIMIT = _Parsed("size", stores.parse_store_limit)
_DURATION = _Parsed("duration", quantities.parse_duration)
_HEADER_NAMES = _Parsed("names", header_names.parse_header_names)
_NEUTRAL_HEADERS = _Parsed("names", header_names.parse_neutral_headers)
_ORIGINS = _Parsed("origins", parse_cors_origins)
_STORE = _Parsed("url", stores.parse_store)
_PROXY = _Parsed("url", parse_proxy)
_FILE_PATH = _Parsed("file", paths.parse_file)
_SECONDS = _Parsed("duration", quantities.parse_seconds)
_POSITIVE = _Parsed("duration", quantities.parse_positive_seconds)
PORT = click.IntRange(0, 65535)
_COUNT = click.IntRange(1)


def _default_store() -> str:
    return f"sqlite:///{user_cache_path('embedding-proxy') / 'cache.sqlite3'}"


def _option(name: str, **attributes: Any) -> Callable[[Any], Any]:
    variable = _ENV_PREFIX + name.upper().replace("-", "_")
    shown = {"show_envvar": True, "show_default": True} | attributes
    return click.option(f"--{name}", envvar=variable, **shown)


def read_config_file(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Put the file under the flags and the environment, above the defaults."""
    if path is None:
        return
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = "; use upstream = … or [[upstream]] tables, not both" if "overwrite" in str(error) else ""
        raise click.UsageError(f"{path}: not TOML: {error}{hint}") from error
    ctx.meta[_FILE] = str(path)
    for key, kind in _TABLES.items():
        if isinstance(given.get(key), kind):
            ctx.meta[key] = given.pop(key)
    texts = {key: _text(key, value, path) for key, value in given.items()}
    if ctx.command is serve_command:
        ctx.default_map = texts


def _text(key: str, value: Any, path: Path) -> str:
    """A value of the file as the flag of that name would have it."""
    # The file is the server's, whatever command reads it.
    params = {str(param.name): param for param in serve_command.params if param.name not in {None, "config", "help"}}
    if key in _WRITTEN and not (key in params and type(value) is str):
        raise click.UsageError(f"{key} in {path}: accepted: {_WRITTEN[key]}")
    if key not in params:
        raise click.UsageError(unknown(f"key {key!r} in {path}", key, list(params)))
    kind = params[key].type
    if type(value) is bool and isinstance(kind, click.Choice) and "yes" in kind.choices:
        return "yes" if value else "no"
    if type(value) not in {str, int, float}:
        raise click.UsageError(f"{key} in {path}: not a single value; accepted: a string or a number")
    return str(value)


def drop_kubernetes_service_env() -> None:
    for name in ("EMBEDDING_PROXY_PORT", "EMBEDDING_PROXY_ADMIN_PORT"):
        if os.environ.get(name, "").startswith("tcp://"):
            del os.environ[name]


def forbid_unknown_variables(ctx: click.Context) -> None:
    known = {str(param.envvar) for param in ctx.command.params if param.envvar}
    for name, value in os.environ.items():
        if name in known and not value:
            # click would take the default, which for an upstream is the demo.
            raise click.UsageError(f"{name} is empty; give it a value or unset it")
        if name.startswith(_ENV_PREFIX) and name not in known and not _KUBERNETES_LINK.fullmatch(name):
            raise click.UsageError(unknown(f"environment variable {name}", name, sorted(known)))


def unknown(what: str, name: str, known: list[str]) -> str:
    return f"unknown {what}; {suggestion(name, known)}"


@click.command(name="serve")
@_option("host", default="127.0.0.1", help="Address to serve clients on, or unix:/path of a socket.")
@_option("port", type=PORT, default=8080, help="Port to serve clients on; 0 takes a free one.")
@_option("admin-host", default="127.0.0.1", help="Address for metrics and health.")
@_option("admin-port", type=PORT, default=9090, help="Port for metrics and health.")
@_option(
    "upstream",
    metavar="URL|NAME",
    default="demo",
    help="Base URL of the embeddings API, or the name of a provider (see: embedding-proxy providers);"
    " demo is built in and offline.",
)
@_option("provider", metavar="NAME", help="With a URL for --upstream: whose API it is; default: generic.")
@_option(
    "store",
    type=_STORE,
    default=_default_store,
    show_default="SQLite in the user's cache folder",
    help="memory:, sqlite:////path, redis://, redis+cluster://, redis+sentinel://, each with rediss for TLS, or unix://.",
)
@_option(
    "store-limit",
    type=_STORE_LIMIT,
    default="10GiB",
    help="Bound on the SQLite file; oldest-read goes first. Of several processes the largest counts.",
)
@_option("memory", type=_SIZE, default="512MiB", help="Bound on the vectors held in memory.")
@_option("ttl", type=_DURATION, default="none", help="How long an entry is served after it was stored.")
@_option(
    "share",
    type=click.Choice(["credential", "all"]),
    default="credential",
    help="Whose entries a request sees: those its own credential paid for, or everybody's whose credential is good.",
)
@_option("revalidate", type=_POSITIVE, default="10m", help="How long a credential counts as good after a 2xx upstream.")
@_option(
    "key-headers",
    type=_HEADER_NAMES,
    help="Extra request headers to include in the cache key, as X-Route, X-User. Credential and routing headers are"
    " detected automatically.",
)
@_option(
    "neutral-headers",
    type=_NEUTRAL_HEADERS,
    help="Request headers to leave out of the cache key, although they sound like a credential or like routing."
    " Tracing, mesh and CDN headers are detected automatically.",
)
@_option(
    "upstream-key-env",
    metavar="NAME",
    help="Environment variable with the upstream's key, if the proxy is to hold it; clients then need none.",
)
@_option(
    "upstream-proxy",
    metavar="URL",
    type=_PROXY,
    help="Forward proxy for all calls upstream, as http://user:password@host:port; the environment's are ignored.",
)
@_option(
    "upstream-ca",
    metavar="FILE",
    type=_FILE_PATH,
    help="PEM bundle of the authorities to trust upstream, in place of the system's; read again on SIGHUP.",
)
@_option(
    "upstream-cert",
    metavar="FILE",
    type=_FILE_PATH,
    help="PEM certificate (chain) to present to an upstream that asks for one; read again on SIGHUP.",
)
@_option(
    "upstream-cert-key",
    metavar="FILE",
    type=_FILE_PATH,
    help="Its private key, PEM and unencrypted; default: in the file of --upstream-cert.",
)
@_option(
    "client-keys",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the keys that may ask (see: embedding-proxy keys); read again on SIGHUP.",
)
@_option(
    "cors-origins",
    type=_ORIGINS,
    help="Web pages that may read responses: origins, as https://app.example.com, http://localhost:3000; or *."
    " Default: the upstream decides.",
)
@_option(
    "record-key-env",
    metavar="NAME",
    help="Environment variable with a secret that proves stored records to be the proxies' own.",
)
@_option(
    "workers",
    type=_COUNT,
    default=1,
    help="Processes that answer; bounds on memory, queue and calls upstream are for all of them together.",
)
@_option("max-body", type=_SIZE, default="64MiB", help="Largest request body read on the embeddings route.")
@_option(
    "usage",
    type=click.Choice(["billed", "full"]),
    default="billed",
    help="usage in answers: what the upstream billed, or what it would have without the cache.",
)
@_option("batch-window", type=_SECONDS, default="10ms", help="How long misses gather while a call is under way.")
@_option("max-batch-items", type=_COUNT, help="Most items in one call; default: what the provider documents.")
@_option("max-queued-items", type=_COUNT, default=100_000, help="Items waiting for the upstream; more get 503.")
@_option("max-held", type=_SIZE, default="1GiB", help="Request bodies held in memory; more get 503.")
@_option("max-connections", type=_COUNT, default=10_000, help="Clients' connections; more get 503.")
@_option("upstream-concurrency", type=_COUNT, default=64, help="Embeddings calls upstream at a time.")
@_option("upstream-connect-timeout", type=_SECONDS, default="10s", help="To connect to the upstream.")
@_option("upstream-read-timeout", type=_SECONDS, default="600s", help="For the upstream's next byte, the first too.")
@_option("upstream-timeout", type=_SECONDS, default="600s", help="For an embeddings call upstream in all.")
@_option("drain-delay", type=_SECONDS, default="0s", help="On SIGTERM: how long to go on accepting, not ready.")
@_option("shutdown-timeout", type=_SECONDS, default="30s", help="After that: how long to finish what is under way.")
@_option(
    "log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    help="For people or for machines.",
)
@_option(
    "log-requests",
    type=click.Choice(["yes", "no"]),
    default="yes",
    help="A line for each request, on stderr as all of the log.",
)
@_option(
    "traces",
    type=click.Choice(["off", "otlp"]),
    default="off",
    help="Send OpenTelemetry spans as the OTEL_* variables say; needs the extra otel.",
)
@_option(
    "config",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=read_config_file,
    help="TOML file with any of these as keys, log_format for --log-format.",
)
@click.pass_context
def serve_command(ctx: click.Context, /, **given: Any) -> int:
    """Serve. A flag beats the environment, which beats the file, which beats the default."""
    forbid_unknown_variables(ctx)
    upstream, routed = _upstreams(ctx)
    settings = Settings(
        host=given["host"],
        port=given["port"],
        admin_host=given["admin_host"],
        admin_port=given["admin_port"],
        upstream=upstream,
        routed=routed,
        store=given["store"],
        store_limit_bytes=given["store_limit"],
        shares_all=given["share"] == "all",
        revalidate_s=given["revalidate"],
        key_headers=given["key_headers"] or frozenset(),
        neutral_headers=given["neutral_headers"] or frozenset(),
        client_keys=given["client_keys"],
        cors_origins=given["cors_origins"] or frozenset(),
        record_key=None if given["record_key_env"] is None else read_record_key(given["record_key_env"], os.environ),
        memory_bytes=given["memory"],
        ttl_s=given["ttl"],
        max_body_bytes=given["max_body"],
        reports_full_usage=given["usage"] == "full",
        log_format=given["log_format"],
        logs_requests=given["log_requests"] == "yes",
        traces=given["traces"],
        batch_window_s=given["batch_window"],
        max_batch_items=given["max_batch_items"],
        max_queued_items=given["max_queued_items"],
        max_held_bytes=given["max_held"],
        max_connections=given["max_connections"],
        prices=parse_prices(ctx.meta.get("prices", {}), ctx.meta.get(_FILE, "")),
        upstream_concurrency=given["upstream_concurrency"],
        upstream_connect_timeout_s=given["upstream_connect_timeout"],
        upstream_read_timeout_s=given["upstream_read_timeout"],
        upstream_timeout_s=given["upstream_timeout"],
        drain_delay_s=given["drain_delay"],
        shutdown_timeout_s=given["shutdown_timeout"],
    )
    checks.require_client_auth(settings)
    checks.require_use_of(_egress(ctx), settings)
    checks.forbid_contradictions(settings)
    if settings.traces == "otlp":
        checks.require_otlp(os.environ)
    if given["workers"] == 1:
        return _serve(settings, announce=lambda proxy: _announce(settings, proxy.base_url, proxy.admin_url))
    with log.logging_without_thread(settings.log_format):
        return Supervisor(settings, given["workers"], _Processes()).run(partial(_announce, settings))


def _serve(settings: Settings, **given: Any) -> int:
    with log.writing(settings.log_format) as sink, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run.serve(settings, write_log=sink.write, **given))
    return 0


class _Processes:
    """What the supervisor's children do."""

    def work(self, settings: Settings, bound: Listeners, *, parent: int, on_ready: Callable[[], None]) -> int:
        try:
            return _serve(settings, announce=lambda _: on_ready(), bound=bound, parent=parent)
        except ConfigError as error:
            click.echo(f"embedding-proxy: {error}", err=True)
            return REFUSED

    def administer(
        self, settings: Settings, base_url: str, admin: Sockets, *, workers: Path, parent: int,
        on_ready: Callable[[], None],
    ) -> int:  # fmt: skip
        serving = run.serve_admin(settings, base_url, admin, workers=workers, parent=parent, announce=on_ready)
        with log.writing(settings.log_format), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serving)
        return 0


def _upstreams(ctx: click.Context) -> tuple[UpstreamSetting, tuple[UpstreamSetting, ...]]:
    """The default upstream, and those that models are routed to. What a flag or a variable says is the default."""
    rows = provider_rows(ctx)
    tables = parse_upstreams(
        ctx.meta.get("upstream", []), rows, os.environ, ctx.meta.get(_FILE, ""), egress=_egress(ctx)
    )
    routed = tuple(setting for setting in tables if setting.models)
    default = next((setting for setting in tables if not setting.models), None)
    is_given = ctx.get_parameter_source("upstream") is not ParameterSource.DEFAULT
    if default is None or is_given:
        if tables and not is_given:
            raise ConfigError(
                f"{ctx.meta[_FILE]}: every [[upstream]] has models, so no upstream serves other models;"
                " add a table without models, or set --upstream"
            )
        default = _upstream_option(ctx, rows)
        if default.name in {setting.name for setting in routed}:
            default = replace(default, name=f"{default.name} (default)")
        _require_declared(ctx, default, routed)
        if (name := ctx.params["upstream_key_env"]) is not None:
            default = replace(default, key=read_secret(name, os.environ, "--upstream-key-env"))
    elif ctx.params["upstream_key_env"] is not None:
        raise _bad(ctx, "upstream_key_env", "it needs --upstream; for an [[upstream]] table, set its key_env")
    elif ctx.params["provider"] is not None:
        raise _bad(ctx, "provider", "it needs --upstream; for an [[upstream]] table, set its provider")
    return default, routed


def _egress(ctx: click.Context) -> Egress:
    """How upstreams are reached, where their tables do not say otherwise."""
    given = ctx.params
    if given["upstream_cert_key"] is not None and given["upstream_cert"] is None:
        raise _bad(ctx, "upstream_cert_key", "it needs --upstream-cert")
    return Egress(
        proxy=given["upstream_proxy"],
        ca=given["upstream_ca"],
        cert=given["upstream_cert"],
        cert_key=given["upstream_cert_key"],
    )


def _require_declared(ctx: click.Context, default: UpstreamSetting, routed: tuple[UpstreamSetting, ...]) -> None:
    names = {default.name, *(setting.name for setting in routed)}
    for setting in routed:
        for other in setting.same_model:
            if other.upstream not in names:
                raise ConfigError(
                    f"{ctx.meta[_FILE]}: upstream {setting.name!r} has same_model {other.upstream!r}, which"
                    " --upstream replaces; give that table models, or remove --upstream"
                )


def _upstream_option(ctx: click.Context, rows: Mapping[str, Provider]) -> UpstreamSetting:
    name = ctx.params["provider"]
    row = None if name is None else rows.get(name)
    if name is not None and row is None:
        raise _bad(ctx, "provider", f"{name!r} is not a provider; {suggestion(name, rows)}")
    try:
        setting = parse_upstream(ctx.params["upstream"], row=row, rows=rows)
    except ConfigError as error:
        raise _bad(ctx, "upstream", str(error)) from error
    if not setting.is_demo:
        setting = replace(setting, egress=_egress(ctx))
    if row is not None and setting.provider is not row and not _is_overridden(ctx):
        raise _bad(ctx, "provider", f"{name} needs a base URL, but the upstream is {setting.name}")
    return setting


def _is_overridden(ctx: click.Context) -> bool:
    """Whether the file says the provider, and something above it the upstream."""
    sources = [ctx.get_parameter_source(name) for name in ("provider", "upstream")]
    return sources[0] is ParameterSource.DEFAULT_MAP and sources[1] is not ParameterSource.DEFAULT_MAP


def provider_rows(ctx: click.Context) -> Mapping[str, Provider]:
    return parse_providers(ctx.meta.get("providers", {}), ctx.meta.get(_FILE, ""))


def _bad(ctx: click.Context, name: str, message: str) -> click.BadParameter:
    param = next(param for param in ctx.command.params if param.name == name)
    return click.BadParameter(message, ctx=ctx, param=param)


def _announce(settings: Settings, base_url: str, admin_url: str) -> None:
    if settings.log_format == "json":
        logging.getLogger(__name__).info(
            "serving %s, upstream %s, store %s, metrics %s/metrics",
            base_url,
            settings.upstream.base_url,
            settings.store,
            admin_url,
        )
        return
    click.echo(banner.text_of(settings, base_url, admin_url))
