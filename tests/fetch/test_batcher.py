"""When requests travel together, and what is left of them when calls end."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from proxy import turns
from proxy.access.validations import Validations
from proxy.cache.store import NoStore, Store
from proxy.errors import Overloaded, ProxyError
from proxy.fetch.batcher import Batcher
from proxy.fetch.client_wait import ClientWait
from proxy.fetch.outcomes import EmbedResult, ErrorResponse, Outcome
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.singleflight import Flights
from proxy.fetch.write_through import WriteThrough
from proxy.protocol.provider import Limits
from proxy.telemetry.metrics import Metrics
from proxy.tenant import Tenant
from proxy.turns import KEYS_A_TURN
from tests.support.client_requests import client_request_for
from tests.support.dict_store import Clock, DictStore, make_cache
from tests.support.fake_client import FakeClient, always_room, origin_of, response
from tests.support.virtual_loop import virtually

WINDOW_S = 0.5
PLAIN, ALONE = Policy(0.0), Policy(0.0, may_merge=False)
IDLE = "<Batcher 0 groups, 0 calls, 0 items>"


class Batching:
    def __init__(
        self, *, concurrency: int = 4, max_items: int = 100, max_bytes: int = 10**6, store: Store | None = None
    ) -> None:
        self.client = FakeClient()
        self.origin = origin_of(self.client)
        validations = Validations(ttl_s=60, clock=lambda: 0.0)
        write_through = WriteThrough(make_cache(store or NoStore()), validations, clock=Clock())
        self.batcher = Batcher(
            Metrics(), write_through, window_s=WINDOW_S, concurrency=concurrency, timeout_s=60,
            max_queued_items=max_items, max_queued_bytes=max_bytes, max_incoming_bytes=10**8, room=always_room,
            lanes=None,
        )  # fmt: skip

    def request(self, *texts: str, policy: Policy = PLAIN, tenant: bytes = b"tenant", **more: Any) -> FetchRequest:
        keys = [text.encode().ljust(32) for text in texts]
        client_request = client_request_for(list(texts), keys, origin=self.origin, **more)
        client_request.reservation.tenant = Tenant(tenant)
        return FetchRequest(client_request, keys, policy)

    def submit(self, request: FetchRequest) -> "asyncio.Task[Outcome]":
        wait = ClientWait(request.client_request, Flights[Any]().claim(request.keys))
        return asyncio.create_task(self.batcher.submit(request, wait))

    def send(self, *texts: str, **more: Any) -> "asyncio.Task[Outcome]":
        return self.submit(self.request(*texts, **more))

    @property
    def calls(self) -> list[list[str]]:
        return [call.texts for call in self.client.calls]

    async def settle(self) -> None:
        """Until nothing happens any more at this moment of the virtual clock."""
        for _ in range(20):
            await asyncio.sleep(0)


async def outcomes(*tasks: "asyncio.Task[Outcome]") -> list[list[bytes]]:
    found = []
    for outcome in await asyncio.gather(*tasks):
        assert isinstance(outcome, EmbedResult)
        found.append([vector.payload for vector in outcome.vectors if vector])
    return found


@virtually
async def test_requests_of_one_turn_travel_together_and_each_gets_its_own() -> None:
    own = Batching()
    assert await outcomes(own.send("one"), own.send("three", "x")) == [[b"\x03\x01"], [b"\x05\x01", b"\x01\x01"]]
    assert own.calls == [["one", "three", "x"]]
    assert repr(own.batcher) == IDLE


class SlowWrites(DictStore):
    """Writes of new records hang, those that replace others hang apart from them."""

    def __init__(self) -> None:
        super().__init__()
        self.began: list[bool] = []
        self.inserts, self.replacements = asyncio.Event(), asyncio.Event()

    async def put_many(self, values: Mapping[bytes, bytes], *, overwrite: bool, **options: Any) -> dict[bytes, bytes]:
        self.began.append(overwrite)
        await (self.replacements if overwrite else self.inserts).wait()
        return await super().put_many(values, overwrite=overwrite, **options)


@virtually
async def test_each_request_of_a_call_waits_for_its_own_kind_of_write() -> None:
    store = SlowWrites()
    own = Batching(store=store)
    policies = PLAIN, PLAIN.refreshing(), PLAIN.private()
    tasks = [own.submit(own.request(text, policy=policy)) for text, policy in zip("abc", policies, strict=True)]
    await own.settle()
    assert own.calls == [["a", "b", "c"]]
    assert (sorted(store.began), [task.done() for task in tasks]) == ([False, True], [False, False, True])
    store.replacements.set()
    await own.settle()
    assert [task.done() for task in tasks] == [False, True, True]
    store.inserts.set()
    assert len(await outcomes(*tasks)) == 3
    assert sorted(store.values) == [text.ljust(32) for text in (b"a", b"b")]


@virtually
async def test_an_idle_group_sends_at_once_and_a_busy_one_after_the_window() -> None:
    own = Batching()
    own.client.gate.clear()
    tasks = [own.send("a")]
    await own.settle()
    assert own.calls == [["a"]]
    tasks += [own.send("b"), own.send("c")]
    await asyncio.sleep(WINDOW_S - 0.1)
    assert own.calls == [["a"]]
    assert repr(own.batcher) == "<Batcher 1 groups, 1 calls, 3 items>"
    await asyncio.sleep(0.2)
    assert own.calls == [["a"], ["b", "c"]]
    own.client.gate.set()
    assert len(await outcomes(*tasks)) == 3
    assert repr(own.batcher) == IDLE


@virtually
async def test_a_call_that_returns_takes_along_what_waits() -> None:
    own = Batching()
    own.client.gate.clear()
    first = own.send("a")
    await own.settle()
    others = [own.send("b"), own.send("c")]
    await own.settle()
    own.client.gate.set()
    await outcomes(first, *others)
    assert own.calls == [["a"], ["b", "c"]]
    assert asyncio.get_running_loop().time() < WINDOW_S


@virtually
async def test_a_full_call_does_not_wait_for_the_window() -> None:
    own = Batching()
    own.origin.merge_limits = Limits(items=2)
    own.client.gate.clear()
    tasks = [own.send("a")]
    await own.settle()
    tasks += [own.send("b"), own.send("c")]
    await own.settle()
    assert own.calls == [["a"], ["b", "c"]]
    own.client.gate.set()
    await outcomes(*tasks)


@virtually
async def test_no_more_calls_of_a_group_than_a_tenant_may_have() -> None:
    own = Batching(concurrency=2)  # of which one tenant has half
    own.client.gate.clear()
    tasks = [own.send("a")]
    await own.settle()
    tasks += [own.send("b"), own.send("c")]
    await asyncio.sleep(10 * WINDOW_S)
    assert own.calls == [["a"]]
    own.client.gate.set()
    await outcomes(*tasks)
    assert own.calls == [["a"], ["b", "c"]]


@virtually
async def test_a_tenant_whose_calls_hang_delays_no_other_of_the_same_key() -> None:
    """All of these may be merged. A call goes as its first request's tenant, of which each may have two."""
    own = Batching(concurrency=4)
    own.client.gate.clear()
    anns = [own.send(text, tenant=b"ann") for text in "ab"]
    for text in "cde":
        anns.append(own.send(text, tenant=b"ann"))
        await asyncio.sleep(WINDOW_S)
    assert own.calls == [["a", "b", "c"], ["d"]]
    others = [own.send("x" * 10, tenant=b"bob"), own.send("y", tenant=b"cat")]
    await asyncio.sleep(2 * WINDOW_S)
    assert own.calls[2:] == [["x" * 10, "y"]]
    others.append(own.send("z", tenant=b"bob"))
    await asyncio.sleep(2 * WINDOW_S)
    assert own.calls[3:] == [["z"]]
    others.append(own.send("w", tenant=b"cat"))
    await asyncio.sleep(2 * WINDOW_S)
    assert own.calls[4:] == []  # no upstream gets more calls
    own.client.gate.set()
    await outcomes(*anns, *others)
    assert own.calls[4:] == [["e", "w"]]
    assert repr(own.batcher) == IDLE


@virtually
async def test_requests_that_may_not_be_merged_travel_alone() -> None:
    own = Batching()
    await outcomes(own.send("a", policy=ALONE), own.send("b", policy=ALONE), own.send("c", credentials=b"x"))
    assert sorted(own.calls) == [["a"], ["b"], ["c"]]
    assert repr(own.batcher) == IDLE


@virtually
async def test_too_much_that_waits_is_refused_and_counted_no_longer() -> None:
    own = Batching(max_items=4)
    with pytest.raises(Overloaded, match="items that wait for the upstream"):
        await own.send("a", "b", "c", "d", "e")
    assert await outcomes(own.send("a", "b"))
    large = Batching(max_bytes=100)
    with pytest.raises(Overloaded, match="bytes that wait for the upstream"):
        await large.send("x" * 100)
    assert repr(large.batcher) == IDLE
    assert not large.calls


@virtually
async def test_a_request_is_cut_where_a_call_would_be_too_large() -> None:
    batcher, own = Batching().batcher, Batching()
    own.origin.limits = Limits(items=2)
    request = own.request("a", "b", "c")
    assert [part.items for part in batcher.split(request)] == [["a", "b"], ["c"]]
    assert batcher.split(small := own.request("a", "b")) == [small]
    assert batcher.split(whole := own.request("a", "b", "c", is_keyed_whole=True)) == [whole]
    assert batcher.split(FetchRequest(request.client_request, [], request.policy)) == []
    own.origin.limits = Limits(bytes=3)
    assert [part.items for part in batcher.split(own.request("aa", "bb"))] == [["aa"], ["bb"]]


@virtually
async def test_an_error_is_each_waiters_own() -> None:
    own = Batching()
    cause = ProxyError("broken")

    def fail(_: object) -> Any:
        raise cause

    own.client.reply = fail
    failed = await asyncio.gather(own.send("a"), own.send("b"), return_exceptions=True)
    assert [str(error) for error in failed] == ["broken", "broken"]
    assert failed[0] is not failed[1]
    assert cause not in failed
    own.client.reply = lambda _: response(401, b"no")
    assert isinstance(await own.send("a"), ErrorResponse)
    assert repr(own.batcher) == IDLE


@virtually
async def test_calls_that_are_abandoned_fail_their_waiters() -> None:
    own = Batching()
    own.client.gate.clear()
    begun = own.send("a")
    await own.settle()
    waits = own.send("b")
    await own.settle()
    own.batcher.abandon()
    with pytest.raises(ProxyError, match=r"The call was abandoned\."):
        await begun
    own.client.gate.set()
    assert await outcomes(waits)
    assert repr(own.batcher) == IDLE


@virtually
async def test_a_waiter_that_leaves_is_counted_no_longer() -> None:
    own = Batching()
    own.client.gate.clear()
    begun = own.send("a")
    await own.settle()
    begun.cancel()
    await own.settle()
    assert repr(own.batcher) == "<Batcher 1 groups, 1 calls, 0 items>"
    own.client.gate.set()
    await own.settle()
    assert repr(own.batcher) == IDLE


@virtually
async def test_retries_end_while_calls_fail() -> None:
    own = Batching()
    taken = 0
    while own.batcher.takes_retry(own.origin):
        taken += 1
        assert taken < 1000
    assert taken > 0
    other = origin_of(FakeClient(), "two")
    assert own.batcher.takes_retry(other)


@virtually
async def test_the_requests_of_a_large_call_go_on_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Batching(max_items=10**4)
    own.origin.limits = Limits(items=10**4)
    sent = [own.send(f"text {number}") for number in range(3 * KEYS_A_TURN)]
    resolved: list[int] = []
    turn = turns.turn

    async def counted() -> None:
        resolved.append(sum(task.done() for task in sent))
        await turn()

    monkeypatch.setattr(turns, "turn", counted)
    await asyncio.gather(*sent)
    assert len(own.calls) == 1
    assert max(resolved) >= KEYS_A_TURN  # some had gone on when others waited for their turn
