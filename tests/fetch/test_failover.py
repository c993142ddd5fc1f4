"""One call: to the origin, and where that fails in a way that may be an outage, to the fallbacks in their order."""

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from multidict import CIMultiDict

from proxy.errors import Overloaded, ProxyError, UpstreamBroke, UpstreamUnreachable
from proxy.fetch.failover import Failover
from proxy.fetch.request import ClientRequest
from proxy.fetch.slots import Slots
from proxy.protocol.providers import PROVIDERS
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.tracing import NO_CALLS
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.flow_control import FlowControl
from proxy.upstream.router import Fallback, Origin
from tests.support.client_requests import client_request_for
from tests.support.fake_client import FakeClient, SentCall, always_room, good, origin_of, response
from tests.support.virtual_loop import virtually

A, B = b"a" * 32, b"b" * 32


class Upstreams:
    """An origin and its fallbacks, and a failover between them."""

    def __init__(self, fallbacks: int = 1, *, concurrency: int = 8) -> None:
        self.clients = [FakeClient() for _ in range(1 + fallbacks)]
        names = ["one", "two", "three"]
        self.origins = [origin_of(client, name) for client, name in zip(self.clients, names, strict=False)]
        self.origin, *others = self.origins
        self.origin.set_fallbacks([Fallback(other) for other in others])
        self.metrics = Metrics()
        self.slots = Slots(concurrency, timeout_s=5, waited_s=lambda _: None, room=always_room)
        self.failover = Failover(self.slots, self.metrics)

    def reply(self, *replies: Callable[[SentCall], UpstreamResponse]) -> None:
        for client, reply in zip(self.clients, replies, strict=True):
            client.reply = reply

    async def embed(self, client_request: ClientRequest, body: bytes | None = None) -> tuple[UpstreamResponse, Origin]:
        body = client_request.parsed.body if body is None else body
        with FlowControl(10**6).response() as flow:
            return await self.failover.embed(client_request, body, 1, NO_CALLS, flow=flow)

    @property
    def calls(self) -> list[int]:
        return [len(client.calls) for client in self.clients]

    def request(self, **more: Any) -> ClientRequest:
        return client_request_for(["text"], [A], origin=self.origin, **more)


def replying(status: int, body: Any = b"{}", **headers: str) -> Callable[[SentCall], UpstreamResponse]:
    return lambda _: response(status, body, **headers)


def raising(error: ProxyError) -> Callable[[SentCall], UpstreamResponse]:
    def reply(_: SentCall) -> UpstreamResponse:
        raise error

    return reply


OUTAGES = {
    "500": replying(500),
    "503": replying(503),
    "429": replying(429),
    "500 in a 200": replying(200, {"error": {"code": 500}}),
    "429 in a 200": replying(200, {"error": {"code": 429}}),
    "unreachable": raising(UpstreamUnreachable("down")),
    "broke": raising(UpstreamBroke("broke")),
    "overloaded": raising(Overloaded("too many")),
}
VERDICTS = {
    "400": replying(400),
    "401": replying(401),
    "404": replying(404),
    "304": replying(304),
    "400 in a 200": replying(200, {"error": {"code": 400}}),
}


# --- which response counts


async def test_while_the_origin_responds_no_other_is_asked() -> None:
    upstreams = Upstreams()
    responded, by = await upstreams.embed(upstreams.request())
    assert (responded.status, by, upstreams.calls) == (200, upstreams.origin, [1, 0])


@pytest.mark.parametrize("failing", OUTAGES.values(), ids=OUTAGES)
async def test_after_what_may_be_an_outage_the_fallback_is_asked(
    failing: Callable[[SentCall], UpstreamResponse],
) -> None:
    upstreams = Upstreams()
    upstreams.reply(failing, good)
    responded, by = await upstreams.embed(upstreams.request())
    assert (responded.status, by, upstreams.calls) == (200, upstreams.origins[1], [1, 1])
    assert upstreams.metrics.upstream_fallbacks.labels("two").value == 1


@pytest.mark.parametrize("refusing", VERDICTS.values(), ids=VERDICTS)
async def test_what_the_origin_says_of_the_call_is_final(refusing: Callable[[SentCall], UpstreamResponse]) -> None:
    upstreams = Upstreams()
    upstreams.reply(refusing, good)
    _, by = await upstreams.embed(upstreams.request())
    assert (by, upstreams.calls) == (upstreams.origin, [1, 0])


@pytest.mark.parametrize("second", [*OUTAGES.values(), *VERDICTS.values()], ids=[*OUTAGES, *VERDICTS])
async def test_if_all_fail_the_first_failure_counts(second: Callable[[SentCall], UpstreamResponse]) -> None:
    """A fallback's 401 says nothing of the origin's key."""
    upstreams = Upstreams()
    upstreams.reply(replying(503, b"of one"), second)
    responded, by = await upstreams.embed(upstreams.request())
    assert (responded.body, by, upstreams.calls) == (b"of one", upstreams.origin, [1, 1])


@pytest.mark.parametrize("second", [replying(503), raising(UpstreamBroke("of two"))])
async def test_an_error_counts_as_well(second: Callable[[SentCall], UpstreamResponse]) -> None:
    upstreams = Upstreams()
    upstreams.reply(raising(UpstreamUnreachable("of one")), second)
    with pytest.raises(UpstreamUnreachable, match="of one"):
        await upstreams.embed(upstreams.request())
    assert upstreams.calls == [1, 1]


async def test_fallbacks_are_asked_in_their_order_until_one_succeeds() -> None:
    upstreams = Upstreams(fallbacks=2)
    upstreams.reply(replying(500), replying(400), good)
    _, by = await upstreams.embed(upstreams.request())
    assert (by, upstreams.calls) == (upstreams.origins[2], [1, 1, 1])
    upstreams.reply(replying(500), good, good)
    _, by = await upstreams.embed(upstreams.request())
    assert (by, upstreams.calls) == (upstreams.origins[1], [2, 2, 1])


# --- what a fallback is sent


async def test_a_fallback_that_would_read_the_request_differently_is_left_out() -> None:
    upstreams = Upstreams(fallbacks=2)
    upstreams.origins[1].provider = PROVIDERS["openai"]  # documents no such field
    upstreams.reply(replying(500), good, good)
    _, by = await upstreams.embed(upstreams.request(task="retrieval.query"))
    assert (by, upstreams.calls) == (upstreams.origins[2], [1, 0, 1])


async def test_a_fallback_gets_its_own_name_of_the_model() -> None:
    upstreams = Upstreams()
    upstreams.origin.set_fallbacks([Fallback(upstreams.origins[1], "vendor/m")])
    upstreams.reply(replying(500), good)
    await upstreams.embed(upstreams.request())
    assert [client.calls[0].json["model"] for client in upstreams.clients] == ["m", "vendor/m"]


async def test_each_upstream_gets_its_own_key_and_no_fallback_a_credential_in_the_query() -> None:
    upstreams = Upstreams(fallbacks=2)
    upstreams.origins[1].key = "sk-two"
    upstreams.reply(replying(500), replying(500), good)
    target = "/v1/embeddings?key=AIza&alt=json"
    await upstreams.embed(upstreams.request(headers={"Authorization": "Bearer client"}, target=target))
    one, two, three = (client.calls[0] for client in upstreams.clients)
    keys = [call.headers["Authorization"] for call in (one, two, three)]
    assert keys == ["Bearer client", "Bearer sk-two", "Bearer client"]
    assert (one.url, two.url, three.url) == (
        "http://one/v1/embeddings?key=AIza&alt=json",
        "http://two/v1/embeddings?alt=json",
        "http://three/v1/embeddings?alt=json",
    )


NAMING_ONE_CALL = {"Idempotency-Key": "1", "X-Idempotency-Key": "2", "X-Request-Id": "3"}


async def test_fields_that_name_one_call_go_with_the_clients_own_body_alone() -> None:
    upstreams = Upstreams(fallbacks=0)
    client_request = client_request_for(
        ["text", "more"], [A, B], origin=upstreams.origin, headers={**NAMING_ONE_CALL, "X-Other": "4"}
    )
    upstreams.clients[0].reply = replying(200)
    await upstreams.embed(client_request, b'{"model": "m", "input": ["more"]}')
    assert {name: value for name, value in upstreams.clients[0].calls[0].headers.items() if name[0] in "IX"} == {
        "X-Other": "4"
    }
    assert NAMING_ONE_CALL.items() <= dict(client_request.headers).items()  # for its next call
    own = upstreams.request(headers=NAMING_ONE_CALL)
    await upstreams.embed(own)
    assert dict(upstreams.clients[0].calls[1].headers.items()) == NAMING_ONE_CALL == dict(own.headers)


async def test_a_fallback_with_another_model_name_gets_no_field_that_names_the_call() -> None:
    upstreams = Upstreams()
    upstreams.origin.set_fallbacks([Fallback(upstreams.origins[1], "vendor/m")])
    upstreams.reply(replying(500), good)
    await upstreams.embed(upstreams.request(headers=NAMING_ONE_CALL))
    assert not upstreams.clients[1].calls[0].headers.keys() & NAMING_ONE_CALL.keys()


# --- what is learned


async def test_the_origins_pages_learn_from_whoever_responds() -> None:
    upstreams = Upstreams()
    page = "https://app.example.com"
    upstreams.reply(replying(500), replying(200, Access_Control_Allow_Origin=page))
    await upstreams.embed(upstreams.request(headers={"Origin": page}))
    from_cache = CIMultiDict({"X-Cache": "HIT"})
    upstreams.origin.cors.finish(page, from_cache)
    assert from_cache["Access-Control-Allow-Origin"] == page


async def test_a_fallback_is_logged_at_most_once_a_minute_for_each_pair(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [1000.0]
    monkeypatch.setattr("proxy.fetch.failover.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    upstreams = Upstreams(fallbacks=2)
    upstreams.reply(raising(UpstreamUnreachable("no route")), replying(502), good)
    with caplog.at_level(logging.WARNING):
        await upstreams.embed(upstreams.request())
        both = [
            "upstream one failed (no route); using fallback two",
            "upstream one failed (no route); using fallback three",
        ]
        assert [record.getMessage() for record in caplog.records if record.name != "asyncio"] == both
        now_s[0] += 59.9
        await upstreams.embed(upstreams.request())
        assert len(caplog.records) == 2
        now_s[0] += 0.1
        upstreams.reply(replying(502), good, good)
        await upstreams.embed(upstreams.request())
    assert caplog.records[2].getMessage() == "upstream one failed (status 502); using fallback two"


# --- slots, and clients that leave


@virtually
async def test_a_call_has_a_slot_of_each_upstream_while_it_is_there() -> None:
    """So calls that hang at the origin don't take the fallback's slots."""
    upstreams = Upstreams(concurrency=1)
    upstreams.reply(replying(500), good)
    upstreams.clients[1].gate.clear()
    waiting = asyncio.create_task(upstreams.embed(upstreams.request()))
    while upstreams.calls != [1, 1]:
        await asyncio.sleep(0)
    async with upstreams.slots.slot(upstreams.origin, b"other"):
        with pytest.raises(Overloaded):
            async with upstreams.slots.slot(upstreams.origins[1], b"other"):
                pass
    upstreams.clients[1].gate.set()
    assert (await waiting)[1] is upstreams.origins[1]


@virtually
async def test_an_origin_without_a_free_slot_has_failed() -> None:
    upstreams = Upstreams(concurrency=1)
    async with upstreams.slots.slot(upstreams.origin, b"other"):
        _, by = await upstreams.embed(upstreams.request())
    assert (by, upstreams.calls) == (upstreams.origins[1], [0, 1])


@virtually
async def test_a_call_that_is_cancelled_asks_no_fallback_and_keeps_no_slot() -> None:
    upstreams = Upstreams(concurrency=1)
    upstreams.clients[0].gate.clear()
    call = asyncio.create_task(upstreams.embed(upstreams.request()))
    while not upstreams.calls[0]:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert upstreams.calls == [1, 0]
    async with upstreams.slots.slot(upstreams.origin, b"other"):
        pass
