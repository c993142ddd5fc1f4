"""The command ``embedding-proxy cache purge``."""

import asyncio
import time
from pathlib import Path
from typing import Any

import click

from proxy.cache.store import Store
from proxy.canary.epochs import in_epoch
from proxy.cli import cache_text
from proxy.cli.cache_commands import DRY_RUN, JSON, on_store, show
from proxy.cli.options import types
from proxy.cli.options.requests import request_form, request_settings, with_request_options
from proxy.cli.options.store import StoreOptions
from proxy.cli.progress import progress
from proxy.errors import ConfigError
from proxy.filling.corpus import read_texts
from proxy.maintenance.epochs import largest_epoch
from proxy.maintenance.identity import open_request_reader
from proxy.maintenance.purge import Purged, Selection, purge, purge_keys

_CONDITIONS = "--model, --older-than, --scope, --credential-env, --text or --all"


@click.command(name="purge")
@click.option(
    "--model",
    metavar="PATTERN",
    type=types.MODEL,
    help="Entries of models that match, as cache info names them: text-*.",
)
@click.option("--older-than", metavar="DURATION", type=types.POSITIVE_SECONDS, help="Older entries, such as 30d.")
@click.option(
    "--text",
    "texts_path",
    metavar="FILE",
    type=types.FILE,
    help="The entries that requests for these texts, one a line, would hit. --model is then the requests' model;"
    " upstream, credential and further fields are those that the requests have.",
)
@click.option(
    "--scope",
    metavar="FINGERPRINT",
    type=types.SCOPE,
    help="Entries of one scope, as cache info --by-scope names them. --credential-env without --text means the scope of"
    " the client that has this API key.",
)
@click.option("--all", "is_all", is_flag=True, help="All entries.")
@DRY_RUN
@JSON
@with_request_options
@click.pass_context
def purge_command(
    ctx: click.Context,
    /,
    *,
    model: str | None,
    older_than: float | None,
    texts_path: Path | None,
    scope: bytes | None,
    is_all: bool,
    is_dry_run: bool,
    is_json: bool,
    **_: Any,
) -> None:
    """Remove entries from the store and from running proxies. Within a second, they are gone from the memory of
    every proxy that uses the store.

    With several of --model, --older-than and --scope, it removes the entries that meet all of them.
    """
    _require_one_selection(ctx)
    options = StoreOptions.of(ctx)
    keys = None
    if texts_path is not None:
        epochs = 1 + on_store(options, lambda store: largest_epoch(store, options.record_key))
        keys = asyncio.run(_keys_of(ctx, _texts(texts_path), model or "", epochs))
    scopes = None if scope is None else {scope}
    if keys is None and ctx.params["credential_env"] is not None:
        scopes = asyncio.run(_scopes_of(ctx))
    selection = Selection(
        model=model, stored_before_s=None if older_than is None else time.time() - older_than, scopes=scopes
    )

    async def run(store: Store) -> Purged:
        with progress("purging", None if keys is None else len(keys)) as advance:
            if keys is not None:
                return await purge_keys(store, keys, is_dry_run=is_dry_run, advance=advance)
            return await purge(store, selection, is_dry_run=is_dry_run, advance=advance)

    done, name = on_store(options, run), str(options.setting)
    text = cache_text.purged_text(name, done, is_dry_run=is_dry_run)
    show(text, cache_text.purged_json(name, done, is_dry_run=is_dry_run), is_json=is_json)


def _require_one_selection(ctx: click.Context) -> None:
    """Raises `click.UsageError`."""
    names = ("model", "older_than", "texts_path", "scope", "credential_env")
    given = {name for name in names if ctx.params[name] is not None}
    if ctx.params["is_all"] and given:
        raise click.UsageError("--all can't be combined with other conditions")
    for name in sorted(given & {"older_than", "scope"}):
        if "texts_path" in given:
            raise click.UsageError(f"--text can't be combined with --{name.replace('_', '-')}")
    if "texts_path" in given and "model" not in given:
        raise click.UsageError("--text needs --model, the model that the requests name")
    if {"scope", "credential_env"} <= given:
        raise click.UsageError("--scope and --credential-env name two scopes; accepted: one of them")
    if not ctx.params["is_all"] and not given:
        raise click.UsageError(f"say which entries to remove: {_CONDITIONS}")


def _texts(path: Path) -> list[str]:
    """Raises `ConfigError`."""
    texts = [text.text for text in read_texts(path)]
    if not texts:
        raise ConfigError(f"--text {path}: it has no texts; accepted: one text a line")
    return texts


async def _keys_of(ctx: click.Context, texts: list[str], model: str, epochs: int) -> list[bytes]:
    """The keys of ``texts`` in the first ``epochs`` epochs: entries of past epochs are still in the store."""
    keys: list[bytes] = []
    for epoch in range(epochs):
        async with open_request_reader(request_settings(ctx), epoch_of=in_epoch(epoch)) as reader:
            keys += await reader.keys_of(texts, request_form(ctx, model))
    return keys


async def _scopes_of(ctx: click.Context) -> set[bytes]:
    """Raises `ConfigError` and `click.UsageError`."""
    async with open_request_reader(request_settings(ctx)) as reader:
        return reader.scopes_of(request_form(ctx, ""))
