"""What works on a store beside its proxies derives keys in the epochs that these have begun."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from proxy.cache.sqlite.store import SQLiteStore
from proxy.canary.epochs import in_epoch
from proxy.config.settings import StoreSetting
from proxy.maintenance.epochs import epochs_of_proxy, largest_epoch
from proxy.maintenance.identity import RequestForm, open_request_reader
from tests.conftest import StartProxy
from tests.support import cli
from tests.support.client import Client
from tests.support.dict_store import written
from tests.support.scripted import ScriptedUpstream
from tests.support.settings import settings_for

ON: dict[str, Any] = {"canary_interval_s": 3600.0}
TEXTS = ["a", "b"]


def stored_keys(path: Path) -> set[bytes]:
    with closing(sqlite3.connect(path)) as connection:
        return {key for (key,) in connection.execute("SELECT key FROM slot")}


async def begin_epoch(client: Client) -> None:
    canary = client.proxy.canary
    assert canary is not None
    (subject,) = canary.in_use.current()
    await canary.epochs.advance(subject.digest, canary.epochs.current(subject.digest))


async def test_keys_are_those_of_the_epoch_that_a_proxy_is_in(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path
) -> None:
    client = await start_proxy(store=StoreSetting(path=sqlite_path), **ON)
    await client.embed("warm-up")
    await begin_epoch(client)
    await begin_epoch(client)
    await client.embed(TEXTS)
    await written(client.proxy.cache)
    store = SQLiteStore(sqlite_path, limit_bytes=1024**2)
    try:
        epoch_of = await epochs_of_proxy(settings_for(upstream, **ON), store, None)
        without = await epochs_of_proxy(settings_for(upstream), store, None)
        assert await largest_epoch(store, None) == 2
    finally:
        await store.aclose()
    form = RequestForm(model="m", credential="sk-test")
    async with open_request_reader(settings_for(upstream, **ON), epoch_of=epoch_of) as reader:
        keys = set(await reader.keys_of(TEXTS, form))
    assert keys < stored_keys(sqlite_path)
    async with open_request_reader(settings_for(upstream), epoch_of=without) as reader:
        assert not set(await reader.keys_of(TEXTS, form)) & stored_keys(sqlite_path)
    async with open_request_reader(settings_for(upstream), epoch_of=in_epoch(2)) as reader:
        assert set(await reader.keys_of(TEXTS, form)) == keys


async def test_a_purge_of_texts_removes_them_in_every_epoch(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    sqlite_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = await start_proxy(store=StoreSetting(path=sqlite_path), **ON)
    await client.embed("kept")
    before = stored_keys(sqlite_path)
    for _ in range(3):
        await client.embed(TEXTS)
        await written(client.proxy.cache)
        await begin_epoch(client)
    texts = sqlite_path.with_name("texts")
    texts.write_text("\n".join(TEXTS))
    added = stored_keys(sqlite_path) - before
    assert len(added) == 3 * len(TEXTS) + 1  # and the epochs
    monkeypatch.setenv("KEY", "sk-test")
    ended = await cli.run_beside(
        monkeypatch, capsys, "cache", "purge", "--upstream", upstream.base_url, "--store", f"sqlite:///{sqlite_path}",
        "--credential-env", "KEY", "--model", "m", "--text", str(texts),
    )  # fmt: skip
    assert ended.status == 0, ended
    assert len(stored_keys(sqlite_path) - before) == 1
