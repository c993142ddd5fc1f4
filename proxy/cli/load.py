"""The command ``embedding-proxy cache load``."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import click
import orjson

from proxy.cli import load_text
from proxy.cli.options import types
from proxy.cli.options.requests import request_form, request_settings, with_request_options
from proxy.cli.options.store import StoreOptions
from proxy.cli.progress import Advance, progress
from proxy.config.settings import Settings
from proxy.embeddings.reader import BypassedRequest
from proxy.errors import ConfigError, ProxyError
from proxy.fetch.request import ClientRequest
from proxy.filling.array_file import read_array_file
from proxy.filling.batch_files import read_batch_files
from proxy.filling.loader import Loader, LoadPolicy
from proxy.filling.paid import Paid
from proxy.filling.paid_lines import read_paid_lines
from proxy.filling.parquet_file import is_parquet, read_parquet_file
from proxy.filling.results import Loaded
from proxy.maintenance.epochs import epochs_of_proxy
from proxy.maintenance.identity import RequestForm, RequestReader, open_request_reader
from proxy.protocol import request_body
from proxy.protocol.bypass import EXPLANATIONS, Bypass

_EXIT_REFUSED = 1


@click.command(name="load")
@click.argument("texts", type=types.FILE)
@click.option(
    "--model", type=types.MODEL, help="Name of the model, as clients send it. The requests of a batch have their own."
)
@click.option("--dimensions", type=types.COUNT, help="The field dimensions of the requests, if clients send it.")
@click.option("--vectors", type=types.FILE, help="A NumPy file (.npy) with a row for each text of TEXTS.")
@click.option("--output", type=types.FILE, help="The output file of the Batch API job whose input file is TEXTS.")
@click.option(
    "--response-model",
    default="",
    metavar="NAME",
    help="Name of the model in the upstream's responses, if clients are to see it. A batch has it.",
)
@click.option("--overwrite", is_flag=True, help="Replace vectors that are stored, also in running proxies.")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Check everything and write nothing.")
@click.option("--json", "is_json", is_flag=True, help="Print the result as JSON.")
@with_request_options
@click.pass_context
def load_command(ctx: click.Context, /, *, is_dry_run: bool, is_json: bool, **_: Any) -> int:
    """Store vectors that were paid for before. Requests then hit them as if the upstream had just sent them.

    TEXTS is JSON Lines of "text" (or "input") and "embedding" (or "vector": an array, or base64), a Parquet file with
    such columns, the input file of a Batch API job beside its --output, or a corpus beside its --vectors. A line whose
    vector is not exactly one that the upstream could have written is refused, and the others are stored. Exit status 1:
    lines were refused.

    Entries belong to the API key in --credential-env, unless the proxy shares them (--share all, --upstream-key-env).
    """
    settings, options = request_settings(ctx), StoreOptions.of(ctx)
    form, paid = _form(ctx), _begun(_paid(ctx), ctx.params["output"] or ctx.params["texts"])
    if not (settings.shares_all or settings.owns_key or form.credential or form.headers):
        click.echo(
            "embedding-proxy: loading for requests without an API key; if clients send one, name it (--credential-env)",
            err=True,
        )
    policy = LoadPolicy(
        overwrite=ctx.params["overwrite"],
        is_dry_run=is_dry_run,
        response_model=ctx.params["response_model"],
        ttl_s=options.ttl_s,
        record_key=options.record_key,
    )
    with progress("loading", None) as advance:
        loaded = asyncio.run(_load(settings, options, form, policy, paid=paid, advance=advance))
    if is_json:
        click.echo(orjson.dumps(load_text.loaded_json(loaded, is_dry_run=is_dry_run), option=orjson.OPT_INDENT_2))
    else:
        click.echo(load_text.loaded_text(loaded, is_dry_run=is_dry_run))
    return _EXIT_REFUSED if loaded.refused else 0


def _form(ctx: click.Context) -> RequestForm:
    """Raises `click.UsageError`."""
    model, dimensions, output = (ctx.params[name] for name in ("model", "dimensions", "output"))
    if output is None and model is None:
        raise click.UsageError("--model is missing: the model as clients name it; only a batch (--output) has its own")
    if output is not None and (model or dimensions or ctx.params["fields"]):
        raise click.UsageError("--output: the requests of a batch have their own --model, --dimensions and --field")
    form = request_form(ctx, model or "")
    return form if dimensions is None else replace(form, fields={**form.fields, "dimensions": dimensions})


def _paid(ctx: click.Context) -> Paid:
    """Raises `ConfigError` and `click.UsageError`, also during the iteration."""
    texts, vectors, output = (ctx.params[name] for name in ("texts", "vectors", "output"))
    if vectors is not None and output is not None:
        raise click.UsageError("--vectors and --output; accepted: one of them")
    if output is not None:
        return read_batch_files(texts, output)
    if vectors is not None:
        return read_array_file(texts, vectors)
    return read_parquet_file(texts) if is_parquet(texts) else read_paid_lines(texts)


def _begun(paid: Paid, path: Path) -> Paid:
    """``paid``, once its first line was read: an unreadable file creates no store. Raises `ConfigError`."""
    first = next(paid, None)
    if first is None:
        raise ConfigError(f"{path}: it is empty")
    return chain([first], paid)


async def _load(
    settings: Settings, options: StoreOptions, form: RequestForm, policy: LoadPolicy, *, paid: Paid, advance: Advance
) -> Loaded:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(options.opened(creates=not policy.is_dry_run))
        epoch_of = await epochs_of_proxy(settings, store, options.record_key)
        reader = await stack.enter_async_context(open_request_reader(settings, epoch_of=epoch_of))

        async def read_texts(texts: Sequence[str]) -> ClientRequest:
            return await reader.read_texts(texts, form)

        async def read_call(body: bytes, path: str) -> ClientRequest:
            return await _read_call(reader, form, body, path)

        loader = Loader(store, read_texts, read_call, policy, advance=advance)
        await loader.run(paid)
        return loader.loaded


async def _read_call(reader: RequestReader, form: RequestForm, body: bytes, path: str) -> ClientRequest:
    """The request with this ``body``, with the credential of ``form``. Raises `ConfigError` if it is not cached."""
    try:
        model = request_body.model_of(request_body.parse_object(body))
        headers = reader.headers_of(replace(form, model=model or "", path=path))
        read = await reader.read(body, headers, path)
    except ProxyError as error:
        raise ConfigError(f"the proxy would refuse the request: {error.message}") from error
    except Bypass as bypass:
        raise ConfigError(EXPLANATIONS[bypass.reason]) from bypass
    if isinstance(read, BypassedRequest):
        raise ConfigError(f"the proxy does not cache the request: {EXPLANATIONS[read.bypass.reason]}")
    return read
