"""Leases, and how often a miss reads the store with and without them."""

import asyncio

import pytest

from proxy.errors import StoreError
from tests.conftest import StartProxy
from tests.support.dict_store import A, B, DictStore, make_cache
from tests.support.leasing_store import LeasingStore
from tests.support.scripted import ScriptedUpstream


@pytest.mark.parametrize(("store", "reads"), [(DictStore(), 1), (LeasingStore(), 2)], ids=["without", "with"])
async def test_a_miss_reads_a_store_without_leases_once_and_one_with_leases_again_under_the_lease(
    start_proxy: StartProxy, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, store: DictStore, reads: int
) -> None:
    monkeypatch.setattr("proxy.app.storage.open_store", lambda *_: store)
    client = await start_proxy()
    store.timeouts_s.clear()
    assert (await client.embed("x")).cache == "MISS"
    assert len(store.timeouts_s) == reads
    assert len(upstream.calls) == 1


async def test_without_leases_every_key_may_be_fetched_and_the_store_is_not_asked() -> None:
    store = LeasingStore()
    store.has_leases = False
    store.of_others = {A}
    async with make_cache(store).leasing() as lease:
        assert await lease.acquire([A, B]) == [A, B]
        assert not lease.is_real
    assert not store.extended


async def test_leases_are_renewed_and_then_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.cache.lease._LEASE_S", 0.03)
    store = LeasingStore()
    store.of_others = {A}
    async with make_cache(store).leasing() as lease:
        assert await lease.acquire([A, B]) == [B]
        assert lease.is_real
        while len(store.extended) < 2:
            await asyncio.sleep(0)
    assert {ttl_s for _, ttl_s in store.extended[:-1]} == {0.03}
    assert store.extended[-1] == ({B}, 0)
    assert all(keys == {B} for keys, _ in store.extended)


async def test_a_failing_store_grants_every_key_and_has_nothing_to_release() -> None:
    store = LeasingStore()
    store.lease_failure = StoreError("timeout", "hangs")
    async with make_cache(store).leasing() as lease:
        assert await lease.acquire([A, B]) == [A, B]
        assert not lease.is_real
    assert not store.extended
