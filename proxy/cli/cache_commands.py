"""The commands ``embedding-proxy cache …``, which work on a store, with or without running proxies on it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import click
import orjson

from proxy.cache.store import Store
from proxy.cli import cache_text
from proxy.cli.options import types
from proxy.cli.options.store import StoreOptions, with_store_options
from proxy.cli.progress import progress
from proxy.config.settings import StoreSetting
from proxy.errors import ConfigError
from proxy.maintenance import survey, transfer
from proxy.maintenance.entry_writer import EntryWriter, WrittenEntries

_T = TypeVar("_T")
_FAILED = 1  # exit status: it worked, and what was checked is not as it should be

JSON = click.option("--json", "is_json", is_flag=True, help="Print JSON.")
DRY_RUN = click.option("--dry-run", "is_dry_run", is_flag=True, help="Change nothing; say what would be done.")
OVERWRITE = click.option("--overwrite", "overwrites", is_flag=True, help="Replace entries that are there already.")


@click.group(name="cache")
def cache_group() -> None:
    """Inspect, check, move and clear the entries of a store. Proxies may be running on it."""


def show(text: str, data: dict[str, Any], *, is_json: bool) -> None:
    """Print the result of a command."""
    click.echo(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode() if is_json else text)


@cache_group.command(name="info")
@click.option("--by-scope", "is_by_scope", is_flag=True, help="Count also by scope: by the credential, hashed.")
@JSON
@with_store_options
@click.pass_context
def info_command(ctx: click.Context, /, *, is_by_scope: bool, is_json: bool, **_: Any) -> None:
    """Count the entries by model, dimensions and age."""
    options = StoreOptions.of(ctx)

    async def run(store: Store) -> survey.Survey:
        with progress("counting", None) as advance:
            return await survey.survey(store, now_s=time.time(), advance=advance)

    found, name = on_store(options, run), str(options.setting)
    text = cache_text.survey_text(name, found, is_by_scope=is_by_scope)
    show(text, cache_text.survey_json(name, found), is_json=is_json)


@cache_group.command(name="verify")
@JSON
@with_store_options
@click.pass_context
def verify_command(ctx: click.Context, /, *, is_json: bool, **_: Any) -> int:
    """Check every record's checksum, and with --record-key-env its tag.

    The exit status is 1 if there are invalid records.
    """
    options = StoreOptions.of(ctx)

    async def run(store: Store) -> survey.Verified:
        with progress("checking", None) as advance:
            return await survey.verify(store, record_key=options.record_key, advance=advance)

    found, name = on_store(options, run), str(options.setting)
    show(cache_text.verified_text(name, found), cache_text.verified_json(name, found), is_json=is_json)
    return _FAILED if found.invalid else 0


@cache_group.command(name="export")
@click.argument("file", metavar="FILE", type=types.FILE)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["entries", "parquet"]),
    default="entries",
    show_default=True,
    help="entries can be imported again. parquet is for analysis: one row an entry; it needs the extra parquet.",
)
@JSON
@with_store_options
@click.pass_context
def export_command(ctx: click.Context, /, file: Path, *, file_format: str, is_json: bool, **_: Any) -> None:
    """Write all entries to a file, bit for bit.

    If it is interrupted, run the same command again to continue. FILE appears under its name when it is complete.
    """
    options = StoreOptions.of(ctx)
    name = str(options.setting)

    async def run(store: Store) -> transfer.Exported:
        with progress("exporting", None) as advance:
            if file_format == "parquet":
                exported: transfer.Exported = await _parquet().export_parquet(store, file, advance=advance)
                return exported
            return await transfer.export(store, file, origin=name, advance=advance)

    done = on_store(options, run)
    show(
        cache_text.exported_text(name, str(file), done),
        cache_text.exported_json(name, str(file), done),
        is_json=is_json,
    )


@cache_group.command(name="import")
@click.argument("file", metavar="FILE", type=types.FILE)
@OVERWRITE
@DRY_RUN
@JSON
@with_store_options
@click.pass_context
def import_command(
    ctx: click.Context, /, file: Path, *, overwrites: bool, is_dry_run: bool, is_json: bool, **_: Any
) -> int:
    """Put the entries of an exported file into the store, bit for bit.

    Existing entries stay. If it is interrupted, run the same command again to continue. If the file is damaged, its
    intact entries are imported, and the exit status is 1.
    """
    options = StoreOptions.of(ctx)
    size_bytes = file.stat().st_size if file.is_file() else None

    async def run(store: Store) -> transfer.Imported:
        writer = _writer(store, options, overwrites=overwrites, is_dry_run=is_dry_run)
        with progress("importing", size_bytes, is_bytes=True) as advance:
            return await transfer.import_(file, writer, advance=advance)

    done = on_store(options, run, creates=not is_dry_run, may_be_absent=is_dry_run)
    name = str(options.setting)
    text = cache_text.imported_text(name, str(file), done, is_dry_run=is_dry_run)
    show(text, cache_text.imported_json(name, str(file), done, is_dry_run=is_dry_run), is_json=is_json)
    return _FAILED if done.damaged or not done.is_complete else 0


@cache_group.command(name="copy")
@click.argument("source", metavar="SRC", type=types.STORE)
@click.argument("target", metavar="DST", type=types.STORE)
@OVERWRITE
@DRY_RUN
@JSON
@with_store_options
@click.pass_context
def copy_command(
    ctx: click.Context,
    /,
    source: StoreSetting,
    target: StoreSetting,
    *,
    overwrites: bool,
    is_dry_run: bool,
    is_json: bool,
    **_: Any,
) -> None:
    """Put the entries of the store SRC into the store DST, bit for bit. Write both as for --store.

    Existing entries of DST stay. If it is interrupted, run the same command again to continue.
    """
    options = StoreOptions.of(ctx)
    _require_two_files(source, target)

    async def run(first: Store) -> WrittenEntries:
        async with options.opened(setting=target, creates=not is_dry_run, may_be_absent=is_dry_run) as second:
            if await transfer.is_same_store(first, second):
                raise ConfigError(f"{source} and {target} are the same store")
            writer = _writer(second, options, overwrites=overwrites, is_dry_run=is_dry_run)
            with progress("copying", None) as advance:
                return await transfer.copy(first, writer, advance=advance)

    written, name = on_store(options, run, setting=source), str(target)
    text = cache_text.written_text(name, written, is_dry_run=is_dry_run)
    show(text, cache_text.written_json(name, written, is_dry_run=is_dry_run), is_json=is_json)


def _require_two_files(source: StoreSetting, target: StoreSetting) -> None:
    """Raises `ConfigError`."""
    is_same = source == target
    if source.path is not None and target.path is not None and target.path.exists():
        is_same = source.path.exists() and source.path.samefile(target.path)
    if is_same:
        raise ConfigError(f"{source} and {target} are the same store")


def _parquet() -> ModuleType:
    """Raises `ConfigError`."""
    try:
        from proxy.maintenance import parquet  # noqa: PLC0415 - what it needs is an extra
    except ImportError as error:
        raise ConfigError(
            f"--format parquet needs pyarrow ({error}): pip install 'embedding-cache-proxy[parquet]'"
        ) from error
    return parquet


def _writer(store: Store, options: StoreOptions, *, overwrites: bool, is_dry_run: bool) -> EntryWriter:
    return EntryWriter(store, now_s=time.time(), ttl_s=options.ttl_s, overwrites=overwrites, is_dry_run=is_dry_run)


def on_store(
    options: StoreOptions,
    run: Callable[[Store], Awaitable[_T]],
    *,
    creates: bool = False,
    may_be_absent: bool = False,
    setting: StoreSetting | None = None,
) -> _T:
    """The result of ``run`` with the store of ``options``, or that of ``setting``."""

    async def on_opened() -> _T:
        async with options.opened(creates=creates, may_be_absent=may_be_absent, setting=setting) as store:
            return await run(store)

    return asyncio.run(on_opened())
