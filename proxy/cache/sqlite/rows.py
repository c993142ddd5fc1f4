"""The rows of the store's values, in two tables: `slot` leads from a key to the id of its `value`.

The file may be damaged, and SQLite finds only some kinds of damage. So a slot may have no value, or one of another key.
Such a slot is a miss. A write replaces the slot and does not touch the other key's value. All functions raise
`DamagedFile` if the file contradicts itself.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from proxy.cache.sqlite import changes
from proxy.cache.sqlite.file import PAGE_BYTES, DamagedFile

_CHUNK = 256  # keys a statement: SQLite's default limit on parameters was once 999
# When room is needed, at least this fraction of the entries is evicted, because finding the oldest scans all keys.
EVICTED_FRACTION = 64
_SPARE_BYTES = 96 * PAGE_BYTES  # for SQLite's own pages, and the log of changes

# A value belongs to a slot if it has the slot's key, or no key as in files of earlier versions.
_OF_KEYS = (
    " FROM slot JOIN value ON value.id = slot.id AND (value.key = slot.key OR value.key IS NULL) WHERE slot.key IN ("
)
_SELECT = f"SELECT slot.key, slot.id, value{_OF_KEYS}"
_READ = f"SELECT slot.key, read_at, value{_OF_KEYS}"
_COUNT = f"SELECT count(*){_OF_KEYS}"
# A damaged time of last read must not keep its slot for ever.
_OLDEST = (
    "SELECT slot.key, value.id, coalesce(length(value), 0)"
    " FROM (SELECT key, id FROM slot ORDER BY min(read_at, ?), id LIMIT ?) AS slot"
    " LEFT JOIN value ON value.id = slot.id AND (value.key = slot.key OR value.key IS NULL)"
)


def read(
    connection: sqlite3.Connection, keys: Sequence[bytes], stale_s: float
) -> tuple[dict[bytes, bytes], set[bytes]]:
    """The values of the keys that have one, and the keys whose time of last read is before ``stale_s``."""
    found, stale = {}, set()
    for query, chunk in _statements(_READ, keys):
        for key, read_at, value in connection.execute(query, chunk):
            # A damaged field may have another type. An empty value fails the record's checks.
            found[key] = value if isinstance(value, bytes) else b""
            if not isinstance(read_at, int) or read_at < stale_s:
                stale.add(key)
    return found, stale


def _select(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
    """key → (id, value) of the keys that have a value."""
    found = {}
    for query, chunk in _statements(_SELECT, keys):
        for key, id_, value in connection.execute(query, chunk):
            found[key] = id_, value if isinstance(value, bytes) else b""
    return found


def put(
    connection: sqlite3.Connection,
    values: Mapping[bytes, bytes],
    *,
    overwrite: bool,
    invalid: Mapping[bytes, bytes],
    limit_bytes: int,
    now: int,
) -> dict[bytes, bytes]:
    """`Store.put_many` in one transaction, which the caller has begun. Evicts what exceeds ``limit_bytes``."""
    existing = _select(connection, list(values))
    replaced = {key: row for key, row in existing.items() if overwrite or invalid.get(key) == row[1]}
    connection.executemany("DELETE FROM slot WHERE key = ?", [(key,) for key in replaced])
    fresh = {key: value for key, value in values.items() if key not in existing or key in replaced}
    replaced_bytes = sum(len(value) for _, value in replaced.values())
    # New values reuse the ids of evicted ones, so that a full file does not fill with partly free pages. A value keeps
    # the id of the value that it replaces, so that a scan in the order of ids does not miss the key.
    excess = bytes_used(connection) + sum(map(len, fresh.values())) - replaced_bytes - limit_bytes
    owners = {id_: key for key, (id_, _) in replaced.items()}  # in a damaged file two keys may have one id
    freed = dict.fromkeys(id_ for id_ in _evict(connection, excess, now) if id_ not in owners)
    _insert(connection, fresh, {key: id_ for id_, key in owners.items()}, freed, now)
    if overwrite:
        changes.announce(connection, values)  # also of keys without a value: another process may have one in memory
    _keep_within(connection, limit_bytes, fresh, now)
    _require(connection, list(fresh))
    return {key: value for key, (_, value) in existing.items() if key not in replaced}


def delete(connection: sqlite3.Connection, keys: Collection[bytes]) -> int:
    """`Store.delete_many` in one transaction, which the caller has begun."""
    existing = _select(connection, list(keys))
    connection.executemany("DELETE FROM slot WHERE key = ?", [(key,) for key in keys])
    _delete_values(connection, [id_ for id_, _ in existing.values()])
    changes.announce(connection, keys)
    return len(existing)


def bytes_used(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    if free >= max(1, pages):
        raise DamagedFile("more pages are free than there are")
    return int(pages - free) * PAGE_BYTES


def _insert(
    connection: sqlite3.Connection,
    fresh: Mapping[bytes, bytes],
    own: Mapping[bytes, int],
    freed: dict[int, None],
    now: int,
) -> None:
    """Store values under their ``own`` ids, or else under the ``freed`` ones while there are any. Delete the values of
    the ids that are left over."""
    (last,) = connection.execute("SELECT max(id) FROM value").fetchone()
    if last is not None and connection.execute("SELECT 1 FROM value WHERE id > ?", (last,)).fetchone():
        raise DamagedFile("ids are out of order")  # new ids would be those of existing values
    for key, value in fresh.items():
        id_ = connection.execute(
            "INSERT OR REPLACE INTO value (id, key, value) VALUES (?, ?, ?)",
            (own[key] if key in own else freed.popitem()[0] if freed else None, key, value),
        ).lastrowid
        # REPLACE, because the key may have a slot whose value is missing or belongs to another key.
        connection.execute("INSERT OR REPLACE INTO slot (key, id, read_at) VALUES (?, ?, ?)", (key, id_, now))
    _delete_values(connection, freed)


def _require(connection: sqlite3.Connection, keys: Sequence[bytes]) -> None:
    """Raises `DamagedFile` if a row just written is not found: SQLite does not notice keys that are out of order."""
    for query, chunk in _statements(_COUNT, keys):
        (found,) = connection.execute(query, chunk).fetchone()
        if found != len(chunk):
            raise DamagedFile("what was written is not found")


def _statements(query: str, keys: Sequence[bytes]) -> Iterator[tuple[str, Sequence[bytes]]]:
    """``query`` completed for a chunk of ``keys`` at a time, each with its chunk."""
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        yield f"{query}{','.join('?' * len(chunk))})", chunk


def _evict(connection: sqlite3.Connection, excess_bytes: int, now: int) -> list[int]:
    """Delete the least recently read slots until ``excess_bytes`` are free. Returns the ids of their values."""
    freed: list[int] = []
    while excess_bytes > 0 and (oldest := _oldest(connection, now)):
        _delete_slots(connection, [key for key, _, _ in oldest])
        freed += [id_ for _, id_, _ in oldest if id_ is not None]
        excess_bytes -= sum(size for _, _, size in oldest)
    if excess_bytes > 0:  # values without a slot take the room
        connection.execute("DELETE FROM value WHERE id NOT IN (SELECT id FROM slot WHERE id IS NOT NULL)")
        freed.clear()
    return freed


def _keep_within(connection: sqlite3.Connection, limit_bytes: int, fresh: Mapping[bytes, bytes], now: int) -> None:
    """Evict until the file's pages fit. Deleting scattered small values frees few whole pages, so the bytes of the
    values may fit while their pages do not."""
    while (used := bytes_used(connection)) > limit_bytes:
        oldest = [(key, id_) for key, id_, _ in _oldest(connection, now) if key not in fresh]
        if not oldest:
            if used > limit_bytes + sum(len(value) + 2 * PAGE_BYTES for value in fresh.values()) + _SPARE_BYTES:
                raise DamagedFile("pages without content take the room")
            return
        _delete_slots(connection, [key for key, _ in oldest])
        _delete_values(connection, [id_ for _, id_ in oldest if id_ is not None])


def _delete_slots(connection: sqlite3.Connection, keys: Sequence[bytes]) -> None:
    """Raises `DamagedFile` if none is deleted, since `_oldest` would return the same keys for ever."""
    cursor = connection.executemany("DELETE FROM slot WHERE key = ?", [(key,) for key in keys])
    if not cursor.rowcount:
        raise DamagedFile("keys are out of order")


def _delete_values(connection: sqlite3.Connection, ids: Iterable[int]) -> None:
    connection.executemany("DELETE FROM value WHERE id = ?", [(id_,) for id_ in ids])


def _oldest(connection: sqlite3.Connection, now: int) -> list[tuple[bytes, int | None, int]]:
    """(key, id, size in bytes) of the least recently read entries; empty if there are none. The id of a slot without a
    value of its own is None."""
    (entries,) = connection.execute("SELECT count(*) FROM slot").fetchone()
    return connection.execute(_OLDEST, (now, max(1, entries // EVICTED_FRACTION))).fetchall()
