"""The command ``embedding-proxy warm``."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import click
import orjson
from click.core import ParameterSource

from proxy.cli import warm_text
from proxy.cli.options import types
from proxy.cli.options.config_file import config_file_of
from proxy.cli.options.config_flag import READS_CONFIG
from proxy.cli.options.requests import parse_field, parse_header
from proxy.cli.progress import Advance, progress
from proxy.cli.standstill import Standstill
from proxy.config.secrets import read_secret
from proxy.errors import ConfigError
from proxy.filling.batches import Batch, Distinct, batched
from proxy.filling.corpus import forbid_pipe, read_texts
from proxy.filling.embedding_call import EmbeddingCall
from proxy.filling.forecast import forecast
from proxy.filling.results import Forecast, Warmed
from proxy.filling.sender import connected
from proxy.filling.warmer import Warmer
from proxy.periodic import every

_EXIT_INCOMPLETE, _EXIT_INTERRUPTED = 1, 130
_MAX_BATCH_CHARS = 2 * 1024**2
# Requests that only ask what is cached do not go upstream, so they can be large.
_ASKED_ITEMS, _ASKED_CHARS = 2048, 8 * 1024**2
_REPORT_PERIOD_S = 1.0


@click.command(name="warm")
@click.argument("corpus", type=types.FILE)
@click.option("--model", required=True, type=types.MODEL, help="Name of the model, as clients send it.")
@click.option("--dimensions", type=types.COUNT, help="The field dimensions of the requests, if clients send it.")
@click.option(
    "--field",
    "fields",
    metavar="NAME=JSON",
    multiple=True,
    help="A further field of the requests' bodies, such as input_type=passage. May be given several times.",
)
@click.option(
    "--header",
    "headers",
    metavar="NAME:VALUE",
    multiple=True,
    help="A header field that all requests have. May be given several times.",
)
@click.option(
    "--base-url",
    default=lambda: f"http://127.0.0.1:{os.environ.get('EMBEDDING_PROXY_PORT', '8080')}/v1",
    show_default="http://127.0.0.1:8080/v1, or the port of EMBEDDING_PROXY_PORT",
    help="Base URL of the running proxy, as clients have it.",
)
@click.option(
    "--credential-env",
    metavar="NAME",
    default="OPENAI_API_KEY",
    show_default=True,
    help="Env var holding the API key to send. The entries belong to it, as with any client.",
)
@click.option(
    "--encoding-format",
    type=click.Choice(["base64", "float"]),
    default="base64",
    show_default=True,
    help="How the upstream is to write vectors. OpenAI's SDKs ask for base64.",
)
@click.option("--batch", type=types.COUNT, default=128, show_default=True, help="Texts in a request.")
@click.option("--concurrency", type=types.COUNT, default=4, show_default=True, help="Requests at the same time.")
@click.option(
    "--timeout",
    type=types.POSITIVE_SECONDS,
    default="10m",
    show_default=True,
    help="How long to wait for a response, including waits for the upstream's rate limit.",
)
@click.option("--limit", type=types.COUNT, help="Send only the first so many distinct texts.")
@click.option("--dry-run", is_flag=True, help="Only say what is cached, and what the rest would cost.")
@click.option("--json", "is_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--config",
    type=types.FILE,
    **READS_CONFIG,
    help="TOML file whose [prices] say what tokens cost.",
)
@click.pass_context
def warm_command(ctx: click.Context, /, corpus: Path, *, dry_run: bool, is_json: bool, **_: Any) -> int:
    """Send a corpus through a running proxy, to cache its texts.

    CORPUS has a text on each line, or is JSON Lines with the text under "text", "input" or "content"; it may be
    gzipped. The requests have the lowest priority (u=7) and wait for the upstream's rate limit. If the command is
    interrupted, run it again: you do not pay again for what is cached.
    """
    call = _call(ctx)
    forbid_pipe(corpus)
    texts = Distinct()
    # All lines are read once before anything is sent, so that a bad one costs nothing.
    distinct = sum(1 for _ in islice(texts.of(read_texts(corpus)), ctx.params["limit"]))
    if not distinct:
        raise ConfigError(f"{corpus}: no texts")
    about = {"lines": texts.lines, "model": call.model, "prices": config_file_of(ctx).prices_by_model()}
    if dry_run:
        _show(is_json, warm_text.forecast_json, warm_text.forecast_text, _forecast(ctx, call, distinct), **about)
        return 0
    done = _warm(ctx, call, distinct)
    _show(is_json, warm_text.warmed_json, warm_text.warmed_text, done, distinct=distinct, **about)
    if done.is_interrupted:
        return _EXIT_INTERRUPTED
    return _EXIT_INCOMPLETE if done.refused or done.stopped is not None else 0


def _show(is_json: bool, as_json: Any, as_text: Any, result: Warmed | Forecast, **about: Any) -> None:
    if is_json:
        click.echo(orjson.dumps(as_json(result, **about), option=orjson.OPT_INDENT_2))
    else:
        click.echo(as_text(result, **about))


def _call(ctx: click.Context) -> EmbeddingCall:
    """Raises `ConfigError`."""
    values = ctx.params
    headers = [parse_header(text) for text in values["headers"]]
    variable = values["credential_env"]
    is_default = ctx.get_parameter_source("credential_env") is ParameterSource.DEFAULT
    if not is_default or os.environ.get(variable):  # a proxy that has the key, or needs none, is sent none
        headers.append(("Authorization", f"Bearer {read_secret(variable, os.environ, '--credential-env')}"))
    return EmbeddingCall(
        url=values["base_url"].rstrip("/") + "/embeddings",
        model=values["model"],
        dimensions=values["dimensions"],
        encoding_format=values["encoding_format"],
        more=dict(map(parse_field, values["fields"])),
        headers=headers,
    )


def _batches(ctx: click.Context, max_items: int, max_chars: int) -> Iterator[Batch]:
    texts = islice(Distinct().of(read_texts(ctx.params["corpus"])), ctx.params["limit"])
    return batched(texts, max_items=max_items, max_chars=max_chars)


def _forecast(ctx: click.Context, call: EmbeddingCall, distinct: int) -> Forecast:
    """Raises `Stopped`."""

    async def run(advance: Advance, standstill: Standstill) -> Forecast:
        async with (
            connected(call, connections=1, timeout_s=ctx.params["timeout"], is_kept=False) as sender,
            _reported(standstill),
        ):
            batches = _batches(ctx, _ASKED_ITEMS, _ASKED_CHARS)
            return await forecast(sender, batches, advance=advance, on_wait=standstill.because_of)

    with _progress("asking", distinct) as (advance, standstill):
        return asyncio.run(run(advance, standstill))


def _warm(ctx: click.Context, call: EmbeddingCall, distinct: int) -> Warmed:
    concurrency = ctx.params["concurrency"]
    done = Warmed()

    async def run(advance: Advance, standstill: Standstill) -> None:
        async with (
            connected(call, connections=concurrency, timeout_s=ctx.params["timeout"]) as sender,
            _reported(standstill),
        ):
            warmer = Warmer(sender, done, concurrency=concurrency, advance=advance, on_wait=standstill.because_of)
            await warmer.run(_batches(ctx, ctx.params["batch"], _MAX_BATCH_CHARS))

    with _progress("warming", distinct) as (advance, standstill):
        try:
            asyncio.run(run(advance, standstill))
        except KeyboardInterrupt:
            done.is_interrupted = True
            done.stopped = "interrupted"
    return done


@contextmanager
def _progress(what: str, distinct: int) -> Iterator[tuple[Advance, Standstill]]:
    """A progress bar that shows what is waited for."""
    standstill = Standstill(time.time())
    with progress(what, distinct, note=lambda: standstill.text(time.time())) as advance:

        def advanced(done: int) -> None:
            standstill.end(time.time())
            advance(done)

        yield advanced, standstill


@asynccontextmanager
async def _reported(standstill: Standstill) -> AsyncIterator[None]:
    """Without a terminal there is no progress bar, and what is waited for is a line now and then."""

    def report(_: float) -> None:
        if text := standstill.report(time.time()):
            click.echo(text, err=True)

    if sys.stderr.isatty():
        yield
        return
    async with every(_REPORT_PERIOD_S, report):
        yield
