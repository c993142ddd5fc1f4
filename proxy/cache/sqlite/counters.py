"""Counters in a SQLite file that all its processes add to."""

import sqlite3

from proxy.cache.sqlite.file import DamagedFile, transaction

_ADD = (
    "INSERT INTO counter (name, amount, expires_at) VALUES (?, ?, ?)"
    " ON CONFLICT (name) DO UPDATE SET amount = amount + excluded.amount RETURNING amount"
)


def add(connection: sqlite3.Connection, name: str, amount: int, expires_at_s: int, now_s: int) -> int:
    """As `proxy.cache.store.CounterStore.add`. Reading alone writes nothing."""
    if not amount:
        row = connection.execute("SELECT amount FROM counter WHERE name = ?", (name,)).fetchone()
        return 0 if row is None else _number(row[0])
    with transaction(connection):
        connection.execute("DELETE FROM counter WHERE expires_at < ?", (now_s,))
        (total,) = connection.execute(_ADD, (name, amount, expires_at_s)).fetchall()[0]
        return _number(total)


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise DamagedFile("a counter is no number")
    return value
