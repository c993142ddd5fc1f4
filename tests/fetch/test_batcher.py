"""When requests travel together, and what is left of them when calls end."""

import asyncio
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
from proxy.turns import KEYS_A_TURN
from tests.support.client_requests import client_request_for
from tests.support.dict_store import Clock, DictStore, make_cache
from tests.support.fake_client import FakeClient, always_room, origin_of, response
from tests.support.virtual_loop import virtually

WINDOW_S = 0.5
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
        )  # fmt: skip

    def request(self, *texts: str, may_merge: bool = True, **more: Any) -> FetchRequest:
        keys = [text.encode().ljust(32) for text in texts]
        client_request = client_request_for(list(texts), keys, origin=self.origin, **more)
        return FetchRequest(client_request, keys, Policy(0.0, may_merge=may_merge))

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


@virtually
async def test_what_is_not_stored_does_not_wait_for_the_store_with_others_of_its_call() -> None:
    store = DictStore()
    store.writes.clear()
    own = Batching(store=store)
    private = own.request("no-store")
    private.policy = private.policy.private()
    tasks = [own.send("a"), own.submit(private)]
    await own.settle()
    assert own.calls == [["a", "no-store"]]
    assert [task.done() for task in tasks] == [False, True]
    store.writes.set()
    assert len(await outcomes(*tasks)) == 2


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
async def test_requests_that_may_not_be_merged_travel_alone() -> None:
    own = Batching()
    await outcomes(own.send("a", may_merge=False), own.send("b", may_merge=False), own.send("c", credentials=b"x"))
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
