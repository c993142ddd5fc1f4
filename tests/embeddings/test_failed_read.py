"""A store that hangs costs a request one wait, also if it is parsed after the fast path has read the store for it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from proxy.cache.sqlite.store import SQLiteStore
from proxy.config.settings import StoreSetting
from proxy.errors import StoreError
from tests.conftest import StartProxy
from tests.embeddings.test_fast_path import request, wire
from tests.embeddings.test_known_head import body, forget, known


async def test_a_read_that_failed_is_not_repeated_for_the_same_request(
    start_proxy: StartProxy, sqlite_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start_proxy(store=StoreSetting(path=sqlite_path))
    reads: list[Sequence[bytes]] = []

    async def failing(_: SQLiteStore, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        reads.append(keys)
        raise StoreError("timeout", f"nothing for {timeout_s} s")

    async with wire(client) as line:
        await known(line, client)
        await forget(client)
        monkeypatch.setattr(SQLiteStore, "get_many", failing)
        for asked, given in enumerate(["c", "d", ["new", "newer"]], 1):  # the circuit opens after more
            assert b"X-Cache: MISS" in await line.ask(request(body(given)))
            assert len(reads) == asked
