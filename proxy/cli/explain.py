"""The command ``embedding-proxy explain``."""

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import orjson
from click.core import ParameterSource
from multidict import CIMultiDict

from proxy.canary.epochs import FIRST_EPOCH
from proxy.cli import explain_text, stats_client
from proxy.cli.options import types
from proxy.cli.options.admin import admin_url_of, admin_url_parameter
from proxy.cli.options.requests import parse_header, request_settings, settings_parameters
from proxy.cli.options.store import StoreOptions
from proxy.config.settings import Settings
from proxy.embeddings.reader import BypassedRequest
from proxy.errors import ConfigError, ProxyError
from proxy.explain.curl import is_curl, parse_curl
from proxy.explain.explanation import explain
from proxy.explain.har import parse_har
from proxy.explain.http_request import HTTPRequest, UnreadableRequest
from proxy.explain.recent_report import report_recent
from proxy.explain.report import Explanation
from proxy.maintenance.epochs import epochs_of_proxy
from proxy.maintenance.identity import RequestReader, open_request_reader
from proxy.protocol import records
from proxy.protocol.records import InvalidRecord, Record, RecordKey
from proxy.telemetry.recent_request import MAX_REQUESTS
from proxy.upstream.urls import Routes

_READ_TIMEOUT_S = 10.0
_MAX_FILE_BYTES = 256 * 1024**2
_PARAMETERS: list[click.Parameter] = [
    click.Argument(["request"], required=False),
    click.Option(
        ["--body"], type=types.FILE, metavar="FILE", help="File with the body of the request; - is standard input."
    ),
    click.Option(
        ["--header", "headers"],
        metavar="NAME:VALUE",
        multiple=True,
        help="With --body: a header field of the request. May be given several times.",
    ),
    click.Option(["--path"], default="/v1/embeddings", show_default=True, help="With --body: the request's path."),
    click.Option(
        ["--last"],
        type=click.IntRange(1, MAX_REQUESTS),
        metavar="N",
        help=f"Explain the last N requests of a running proxy in place of a REQUEST; it remembers {MAX_REQUESTS}.",
    ),
    admin_url_parameter("With --last: "),
    click.Option(["--json", "is_json"], is_flag=True, help="Print the explanation as JSON."),
    *settings_parameters(),
]


@click.command(name="explain", params=_PARAMETERS)
@click.pass_context
def explain_command(ctx: click.Context, /, *, is_json: bool, **_: Any) -> None:
    """Explain how a proxy with these settings handles a request. It says what is in the request's key, and why the
    request hits, misses or is relayed.

    REQUEST is a curl command line, the name of a file that has one or that is an HTTP Archive (HAR), or - for standard
    input. Nothing is sent. --store names a store to look in; the other options are those of serve. With --last, it
    explains requests that a running proxy has had.
    """
    if ctx.params["last"] is not None:
        _explain_last(ctx, is_json=is_json)
        return
    settings = request_settings(ctx)
    requests = _requests(ctx)
    store = None
    if ctx.get_parameter_source("store") is not ParameterSource.DEFAULT:
        store = StoreOptions.of(ctx)
    explanations = asyncio.run(_explain_all(requests, settings, store))
    if is_json:
        click.echo(orjson.dumps(explanations, option=orjson.OPT_INDENT_2))
    else:
        click.echo("\n\n".join(map(explain_text.render, explanations)))


def _explain_last(ctx: click.Context, *, is_json: bool) -> None:
    """Raises `click.UsageError` and `Unreachable`."""
    if ctx.params["request"] is not None or ctx.params["body"] is not None:
        raise click.UsageError("--last is about requests that a proxy has had; leave out the REQUEST and --body")
    requests = asyncio.run(stats_client.recent_requests(admin_url_of(ctx), ctx.params["last"]))
    if is_json:
        reports = map(report_recent, requests)
        shown = [{"request": request, **report._asdict()} for request, report in zip(requests, reports, strict=True)]
        click.echo(msgspec.json.format(msgspec.json.encode(shown)))
    else:
        click.echo(explain_text.render_recent(requests))


def _requests(ctx: click.Context) -> list[HTTPRequest]:
    """Raises `ConfigError` and `click.UsageError`."""
    given, body = ctx.params["request"], ctx.params["body"]
    if body is not None:
        if given is not None:
            raise click.UsageError("a REQUEST and --body; accepted: one of them")
        headers = [("Content-Type", "application/json"), *map(parse_header, ctx.params["headers"])]
        fields = CIMultiDict(headers[1:])
        if "Content-Type" not in fields:
            fields = CIMultiDict(headers)
        return [HTTPRequest(target=ctx.params["path"], headers=fields, body=_content(body))]
    if ctx.params["headers"]:
        raise click.UsageError("--header is for --body; a curl command or an archive has its own header fields")
    if given is None and sys.stdin.isatty():
        raise click.UsageError("no request; accepted: a curl command, a file, - for standard input, or --body FILE")
    if given is not None and is_curl(given):
        return _parse(given.encode(), "the command")
    path = Path(given or "-")
    return _parse(_content(path), str(path))


def _parse(content: bytes, where: str) -> list[HTTPRequest]:
    text = content.decode(errors="surrogateescape")
    try:
        return [parse_curl(text, lambda name: _content(Path(name)))] if is_curl(text) else parse_har(content)
    except UnreadableRequest as error:
        hint = "" if is_curl(text) else "; a curl command begins with curl, and a body alone is for --body"
        raise ConfigError(f"{where}: {error}{hint}") from error


def _content(path: Path) -> bytes:
    """Raises `ConfigError`."""
    if str(path) == "-":
        return sys.stdin.buffer.read(_MAX_FILE_BYTES)
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}".replace("\0", "?")) from error


async def _explain_all(
    requests: Sequence[HTTPRequest], settings: Settings, store: StoreOptions | None
) -> list[Explanation]:
    epoch_of = FIRST_EPOCH
    if store is not None:
        async with store.opened() as opened:
            epoch_of = await epochs_of_proxy(settings, opened, store.record_key)
    async with open_request_reader(settings, epoch_of=epoch_of) as reader:
        return [await _explain(request, reader, settings, store) for request in requests]


async def _explain(
    request: HTTPRequest, reader: RequestReader, settings: Settings, store: StoreOptions | None
) -> Explanation:
    if not _is_cached_route(request, settings):
        raise ConfigError(
            f"{request.method} {request.target.partition('?')[0]} is passed through: it is not the cached route;"
            f" accepted: POST {'/v1' + settings.upstream.provider.path}"
        )
    try:
        read = await reader.read(request.body, request.headers, request.target)
    except ProxyError as error:
        raise ConfigError(f"the proxy refuses the request with {error.status}: {error.message}") from error
    stored = None
    if store is not None and not isinstance(read, BypassedRequest):
        stored = await _stored(read.spec.keys, store)
    return explain(request, read, settings, stored=stored, now_s=time.time())


def _is_cached_route(request: HTTPRequest, settings: Settings) -> bool:
    routes = (Routes(own.base_url, own.provider, is_default=own is settings.upstream) for own in settings.upstreams)
    return request.method == "POST" and any(own.is_embeddings(request.target) for own in routes)


async def _stored(keys: Sequence[bytes], options: StoreOptions) -> dict[bytes, Record]:
    """The records that can be served. Raises `ConfigError` and `StoreError`."""
    async with options.opened() as store:
        values = await store.get_many(list(dict.fromkeys(keys)), timeout_s=_READ_TIMEOUT_S)
    return dict(_decoded(values, options.record_key))


def _decoded(values: Mapping[bytes, bytes], record_key: RecordKey | None) -> list[tuple[bytes, Record]]:
    found = []
    for key, value in values.items():
        try:
            found.append((key, records.decode(key, value, record_key)))
        except InvalidRecord:  # the proxy would not serve it either
            continue
    return found
