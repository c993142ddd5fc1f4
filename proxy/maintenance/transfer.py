"""Entries from a store into a file, from a file into a store, and from one store into another."""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proxy.cache.store import Store
from proxy.errors import StoreError
from proxy.maintenance.archive import open_archive, parts_of
from proxy.maintenance.archive_format import Damage, End, Entry
from proxy.maintenance.entry_writer import EntryWriter, WrittenEntries
from proxy.protocol.keys import KEY_BYTES

Advance = Callable[[int], object]

_BATCH, _BATCH_BYTES = 256, 4 * 1024**2
_LEASE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    entries: int
    bytes: int  # of the file
    is_resumed: bool  # an interrupted export was continued


@dataclass(slots=True, kw_only=True)
class Imported:
    written: WrittenEntries
    damaged: list[tuple[int, int]] = field(default_factory=list)  # parts of the file, from offset to offset
    is_complete: bool = False  # the file has its end


async def pages(store: Store, cursor: bytes | None = b"") -> AsyncIterator[tuple[Mapping[bytes, bytes], bytes | None]]:
    """All values from ``cursor`` on, a page at a time, each with the cursor of the next. Raises `StoreError`."""
    while cursor is not None:
        page = await store.scan(cursor)
        cursor = page.cursor
        yield page.values, cursor


async def export(store: Store, path: Path, *, origin: str, advance: Advance) -> Exported:
    """Write all entries of a store to a new file. Raises `StoreError` and `ConfigError`.

    ``origin`` names the store. ``advance`` is called with numbers of entries, also those of an export that is resumed.
    """
    with open_archive(path, origin) as archive:
        advance(archive.entries)
        async for values, cursor in pages(store, archive.cursor):
            archive.write(values, cursor)
            advance(len(values))
        return Exported(entries=archive.entries, bytes=archive.finish(), is_resumed=archive.is_resumed)


async def import_(path: Path, writer: EntryWriter, *, advance: Advance) -> Imported:
    """Put the whole entries of a file into a store. Raises `StoreError` and `ConfigError`.

    ``advance`` is called with numbers of bytes of the file.
    """
    imported = Imported(written=writer.written)
    batch, size_bytes, at = dict[bytes, bytes](), 0, 0
    try:
        for part in parts_of(path):
            match part:
                case Entry(key, value, end):
                    batch.setdefault(key, value)
                    size_bytes += len(value)
                    if len(batch) >= _BATCH or size_bytes >= _BATCH_BYTES:
                        await writer.put(batch)
                        advance(end - at)
                        batch, size_bytes, at = {}, 0, end
                case Damage(start, end):
                    imported.damaged.append((start, end))
                case End():
                    imported.is_complete = True
        await writer.put(batch)
        await writer.finish()
    finally:
        await writer.abandon()
    return imported


async def is_same_store(first: Store, second: Store) -> bool:
    """Whether both are one store with two names. It leases a key in the first: if they are one, the second can't lease
    the key. Always False for SQLite, which has no leases."""
    if not (first.has_leases and second.has_leases):
        return False
    key = [secrets.token_bytes(KEY_BYTES)]
    try:
        await first.lease_many(key, ttl_s=_LEASE_S)
        leased = await second.lease_many(key, ttl_s=_LEASE_S)
        await first.extend_many(key, ttl_s=0)
    except StoreError:  # one of them may be for reading only
        return False
    return not leased


async def copy(source: Store, writer: EntryWriter, *, advance: Advance) -> WrittenEntries:
    """Put all entries of one store into another. Raises `StoreError`. ``advance`` is called with numbers of entries."""
    try:
        async for values, _ in pages(source):
            await writer.put(values)
            advance(len(values))
        return await writer.finish()
    finally:
        await writer.abandon()
