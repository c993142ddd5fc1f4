"""The store as the cache uses it: no failure raises, each is counted, and five in a row open the circuit of that
direction alone."""

import pytest

from proxy.cache.guarded import GuardedStore, Written
from proxy.cache.store import MAX_FAILURES, NoStore
from proxy.errors import StoreError
from proxy.telemetry.metrics import Metrics
from tests.support.dict_store import A, B, C, DictStore
from tests.support.leasing_store import LeasingStore
from tests.support.samples import samples


class Guarded:
    def __init__(self, *, ttl_s: float | None = None) -> None:
        self.dict_store, self.metrics = DictStore(), Metrics()
        self.store = GuardedStore(self.dict_store, self.metrics, ttl_s=ttl_s, timeout_s=0.5)

    async def put(
        self, values: dict[bytes, bytes], *, is_repeated: bool = False, overwrite: bool = False
    ) -> Written | None:
        attempt = self.store.attempt_write(len(values), is_repeated=is_repeated)
        if attempt is None:
            return None
        with attempt:
            return await self.store.put(values, attempt, overwrite=overwrite, is_repeated=is_repeated)

    def counted(self, name: str) -> dict[tuple[str, ...], float]:
        return samples(self.metrics, f"store_{name}_total")

    def observed(self, operation: str) -> float:
        return samples(self.metrics, "store_duration_seconds_count", operation=operation).get((), 0)


async def test_a_read_is_complete_if_the_store_replied() -> None:
    guarded = Guarded()
    guarded.dict_store.values = {A: b"a"}
    found = await guarded.store.get([A, B])
    assert (found.values, found.is_complete) == ({A: b"a"}, True)
    assert guarded.dict_store.timeouts_s == [0.5 + 2 * 0.00025]


async def test_a_failed_read_keeps_what_arrived_and_says_that_more_may_be_there() -> None:
    guarded = Guarded()
    guarded.dict_store.failure = StoreError("timeout", "slow", found={A: b"a"})
    found = await guarded.store.get([A, B])
    assert (found.values, found.is_complete) == ({A: b"a"}, False)
    assert guarded.counted("errors") == {("read", "timeout"): 1}
    assert guarded.store.has_failed_read


async def test_an_outage_is_logged_once_however_many_probes_fail(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.cache.guarded.COOLDOWN_S", 0.0)
    guarded = Guarded()
    guarded.dict_store.failure = StoreError("connection", "gone")
    for _ in range(4 * MAX_FAILURES):
        await guarded.store.get([A])
    assert caplog.messages == ["circuit open for store reads (connection: gone); probing every 0 s"]
    guarded.dict_store.failure = None
    await guarded.store.get([A])
    assert caplog.messages[1:] == ["circuit closed for store reads"]


async def test_five_failed_reads_open_the_circuit_of_reads_alone(caplog: pytest.LogCaptureFixture) -> None:
    guarded = Guarded()
    guarded.dict_store.failure = StoreError("connection", "gone")
    for _ in range(MAX_FAILURES):
        assert not guarded.store.is_down
        await guarded.store.get([A])
    assert guarded.store.is_down
    assert caplog.messages == ["circuit open for store reads (connection: gone); probing every 1 s"]
    guarded.dict_store.failure = None
    found = await guarded.store.get([A])
    assert (found.values, found.is_complete) == ({}, False)
    assert guarded.counted("errors") == {("read", "connection"): MAX_FAILURES, ("read", "open"): 1}
    assert await guarded.put({A: b"a"}) == Written({}, {A})


async def test_a_success_between_failures_keeps_the_circuit_closed() -> None:
    guarded = Guarded()
    for _ in range(MAX_FAILURES):
        guarded.dict_store.failure = StoreError("connection", "gone")
        await guarded.store.get([A])
        guarded.dict_store.failure = None
        await guarded.store.get([A])
        assert not guarded.store.has_failed_read
    assert not guarded.store.is_down


@pytest.mark.parametrize(
    "failure", [StoreError("busy", "no free connection"), StoreError("timeout", "", is_partial=True)]
)
async def test_a_store_that_is_up_opens_no_circuit(failure: StoreError) -> None:
    guarded = Guarded()
    guarded.dict_store.failure = failure
    for _ in range(2 * MAX_FAILURES):
        await guarded.store.get([A])
        await guarded.put({A: b"a"})
    assert not guarded.store.is_down
    assert guarded.counted("errors") == {
        ("read", failure.reason): 2 * MAX_FAILURES,
        ("write", failure.reason): 2 * MAX_FAILURES,
    }


async def test_a_write_says_what_was_there_and_what_is_new() -> None:
    guarded = Guarded()
    guarded.dict_store.values = {A: b"old"}
    assert await guarded.put({A: b"a", B: b"b"}) == Written({A: b"old"}, {B})
    assert await guarded.put({A: b"a"}, overwrite=True) == Written({}, {A})
    assert guarded.counted("unstored_items") == {}


async def test_a_failed_write_counts_what_is_in_doubt_once() -> None:
    guarded = Guarded()
    guarded.dict_store.write_failure = StoreError("full", "no memory", found={A: b"old"}, accepted=[B])
    assert await guarded.put({A: b"a", B: b"b", C: b"c"}) == Written({A: b"old"}, frozenset({B}))
    assert guarded.counted("unstored_items") == {("full",): 1}
    await guarded.put({A: b"a", B: b"b", C: b"c"}, is_repeated=True)
    assert guarded.counted("unstored_items") == {("full",): 1}
    assert guarded.counted("errors") == {("write", "full"): 2}


async def test_writes_that_an_open_circuit_refuses_are_counted() -> None:
    guarded = Guarded()
    guarded.dict_store.write_failure = StoreError("full", "no memory")
    for _ in range(MAX_FAILURES):
        await guarded.put({A: b"a"})
    assert await guarded.put({A: b"a", B: b"b"}) is None
    assert await guarded.put({A: b"a", B: b"b"}, is_repeated=True) is None
    assert guarded.counted("errors")["write", "open"] == 2
    assert guarded.counted("unstored_items") == {("full",): MAX_FAILURES, ("open",): 2}
    assert (await guarded.store.get([A])).is_complete


async def test_a_full_backlog_refuses_writes_and_keeps_no_probe() -> None:
    guarded = Guarded()
    backlog = guarded.store.backlog
    backlog.began(backlog._max_bytes + 1)
    backlog._is_stalled = True
    before = guarded.observed("write")
    assert await guarded.put({A: b"a"}) is None
    assert guarded.counted("errors") == {("write", "busy"): 1}
    assert guarded.counted("unstored_items") == {("busy",): 1}
    assert guarded.observed("write") == before + 1
    backlog.ended(1)
    assert await guarded.put({A: b"a"}) == Written({}, {A})


async def test_a_store_that_is_down_at_the_start_is_logged_and_again_when_it_is_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guarded = Guarded()
    guarded.dict_store.failure = StoreError("connection", "gone")
    await guarded.store.probe()
    await guarded.store.get([A])
    assert caplog.messages == [
        "store not available (connection: gone); continuing without it, retrying with each request"
    ]
    guarded.dict_store.failure = None
    await guarded.store.get([A])
    await guarded.store.get([A])
    assert caplog.messages[1:] == ["store available"]


async def test_a_store_that_works_at_the_start_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    guarded = Guarded()
    await guarded.store.probe()
    await guarded.store.get([A])
    assert caplog.messages == []


def test_what_the_store_can_do_is_asked_of_it() -> None:
    assert not Guarded().store.is_absent
    assert not Guarded().store.has_leases
    assert GuardedStore(LeasingStore(), Metrics(), ttl_s=None, timeout_s=1.0).has_leases
    assert GuardedStore(NoStore(), Metrics(), ttl_s=None, timeout_s=1.0).is_absent
