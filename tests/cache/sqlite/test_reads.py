"""Long reads are taken in turns, and nothing is read that nobody waits for."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from threading import Event

import pytest

from proxy.cache.sqlite import rows
from proxy.cache.sqlite.store import SQLiteStore
from proxy.errors import StoreError

_KEYS_PER_READ = 256


def keys(*numbers: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in numbers]


class Reading:
    """A store that has a value for each even key. Its thread waits for ``go``, and fails after ``max_successes``."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = SQLiteStore(path, limit_bytes=64 * 1024**2)
        self.asked: list[list[bytes]] = []
        self.began = Event()
        self.go = Event()
        self.go.set()
        self.max_successes = 100
        monkeypatch.setattr(rows, "read", self._read)

    def _read(self, _: sqlite3.Connection, its: Sequence[bytes], __: float) -> tuple[dict[bytes, bytes], set[bytes]]:
        self.asked.append(list(its))
        self.began.set()
        self.go.wait()
        if len(self.asked) > self.max_successes:
            raise sqlite3.OperationalError("disk I/O error")
        return {key: b"value" for key in its if not key[-1] % 2}, set()

    async def get(self, *numbers: int, timeout_s: float = 60.0) -> list[bytes]:
        return list(await self.store.get_many(keys(*numbers), timeout_s=timeout_s))

    async def begun(self, *numbers: int) -> "asyncio.Task[list[bytes]]":
        """A read that the thread has begun and does not end."""
        self.go.clear()
        task = asyncio.create_task(self.get(*numbers))
        await asyncio.to_thread(self.began.wait)
        return task


@pytest.fixture
async def reading(sqlite_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reading]:
    reading = Reading(sqlite_path, monkeypatch)
    yield reading
    reading.go.set()
    await reading.store.aclose()


async def test_a_long_read_is_taken_in_parts(reading: Reading) -> None:
    assert await reading.get(*range(600)) == keys(*range(0, 600, 2))
    assert [len(its) for its in reading.asked] == [_KEYS_PER_READ, _KEYS_PER_READ, 600 - 2 * _KEYS_PER_READ]


async def test_others_have_their_turn_between_the_parts_of_a_long_read(reading: Reading) -> None:
    first = await reading.begun(2)
    others = [asyncio.create_task(reading.get(*its)) for its in (range(1000, 1300), (4,))]
    await asyncio.sleep(0)
    reading.go.set()
    await asyncio.gather(first, *others)
    assert [len(its) for its in reading.asked] == [1, _KEYS_PER_READ, 1, 300 - _KEYS_PER_READ]


async def test_what_nobody_waits_for_any_more_is_not_read(reading: Reading) -> None:
    first = await reading.begun(2)
    with pytest.raises(StoreError) as failure:
        await reading.get(4, timeout_s=0.0)
    assert failure.value.reason == "timeout"
    cancelled = asyncio.create_task(reading.get(8))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    reading.go.set()
    assert await first == keys(2)
    assert await reading.get(6) == keys(6)
    assert reading.asked == [keys(2), keys(6)]


async def test_a_read_that_fails_late_has_what_was_read_before(reading: Reading) -> None:
    reading.max_successes = 1
    with pytest.raises(StoreError, match="disk I/O error") as failure:
        await reading.get(*range(300))
    assert list(failure.value.found) == keys(*range(0, _KEYS_PER_READ, 2))
    reading.max_successes = 100
    assert await reading.get(2) == keys(2)
