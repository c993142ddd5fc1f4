"""All counters after scripted scenarios: each must have exactly the expected value, and no other may move."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError, web
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from proxy.access import client_keys
from proxy.cache.entry import Entry
from proxy.config.settings import SameModel, StoreSetting, UpstreamSetting
from proxy.protocol import embedding_request
from proxy.protocol.records import Record
from proxy.protocol.vectors import DType, Vector
from tests.conftest import StartProxy
from tests.support.client import KEY, Client, raw
from tests.support.gate import Gate
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted import Call, ScriptedUpstream, error_reply

# As written here.
LABELS = (
    "operation",
    "upstream",
    "outcome",
    "status",
    "kind",
    "result",
    "reason",
    "model",
    "field",
    "client",
    "user_agent",
)
PRICES = {"m": 1_000_000.0}  # so that money is as many as tokens
FAILED = error_reply(500, {"error": {"message": "failed"}})


async def counters(client: Client) -> Counter[str]:
    """Every counter that has counted anything, as ``name{values of its labels}``."""
    async with client.session.get(client.proxy.admin_url + "/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    return Counter(
        {
            f"{family.name.removeprefix('embedding_proxy_')}{{{_values(sample.labels)}}}": int(sample.value)
            for family in families
            if family.type == "counter"
            for sample in family.samples
            if sample.value and sample.name.endswith("_total")
        }
    )


def _values(labels: Mapping[str, str]) -> str:
    return ",".join(labels[name] for name in sorted(labels, key=LABELS.index))


def owned(upstream: ScriptedUpstream) -> UpstreamSetting:
    return UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-owned")


@pytest.fixture
def restarts(start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path) -> "Restarts":
    return Restarts(start_proxy, upstream, sqlite_path)


class Restarts:
    """Proxies of one file, each of which finds there what the ones before have stored."""

    def __init__(self, start_proxy: StartProxy, upstream: ScriptedUpstream, path: Path) -> None:
        self._start = start_proxy
        self._upstream = upstream
        self._store = StoreSetting(path=path)

    async def start(self, *stored: str, owns_key: bool = True, **changes: Any) -> Client:
        """A new proxy, which has counted nothing; ``stored`` are texts that one before it was asked for."""
        if owns_key:
            changes["upstream"] = owned(self._upstream)
        if stored:
            client = await self._start(store=self._store, **changes)
            assert (await client.embed(list(stored))).status == 200
        return await self._start(store=self._store, prices=PRICES, **changes)


# --- after a restart


async def test_first_hit_after_a_restart_counts_model_and_savings(restarts: Restarts) -> None:
    client = await restarts.start("a", "b")
    assert (await client.embed(["a", "b"])).cache == "HIT"
    expected = {"requests{hit,200,m}": 1, "items{store,m}": 2, "tokens{saved,m}": 2, "cost{saved,m}": 2}
    assert await counters(client) == expected
    status = await client.proxy.status_page.status()
    assert [(model.name, model.items, model.cost["saved"]) for model in status.models] == [("m", 2, 2.0)]
    # The same bytes again and again, until neither their JSON nor their HTTP is parsed.
    for _ in range(4):
        assert (await client.embed(["a", "b"])).cache == "HIT"
    assert await counters(client) - Counter(expected) == {
        "requests{hit,200,m}": 4, "items{memory,m}": 8, "tokens{saved,m}": 8, "cost{saved,m}": 8
    }  # fmt: skip


async def test_partial_after_a_restart_counts_its_model(restarts: Restarts) -> None:
    client = await restarts.start("a")
    assert (await client.embed(["a", "b", "b"])).cache == "PARTIAL"
    assert await counters(client) == {
        "requests{partial,200,m}": 1,
        "items{store,m}": 1,
        "items{upstream,m}": 1,
        "items{duplicate,m}": 1,
        "tokens{billed,m}": 1,
        "tokens{saved,m}": 2,
        "cost{billed,m}": 1,
        "cost{saved,m}": 2,
        "upstream_answers{scripted,200}": 1,
    }


async def test_failures_after_a_restart_count_the_stored_model(restarts: Restarts, upstream: ScriptedUpstream) -> None:
    client = await restarts.start("a")
    upstream.reply = FAILED
    assert (await client.embed(["a", "b"])).status == 500
    assert (await client.embed(["a", "b"], headers={"Cache_Control": "only-if-cached"})).status == 504
    assert await counters(client) == {
        "requests{error,500,m}": 1,
        "requests{error,504,m}": 1,
        "upstream_answers{scripted,500}": 2,  # to the missing item, and then to the client's own body
    }


async def test_first_hit_after_a_restart_validates_the_clients_own_key(
    restarts: Restarts,
) -> None:
    client = await restarts.start("a", "b", owns_key=False)
    assert (await client.embed(["a", "b"])).cache == "HIT"
    assert await counters(client) == {
        "requests{hit,200,m}": 1,
        "items{store,m}": 2,
        "tokens{billed,m}": 1,
        "tokens{saved,m}": 1,
        "cost{billed,m}": 1,
        "cost{saved,m}": 1,
        "validations{confirmed}": 1,
        "upstream_answers{scripted,200}": 1,
    }


async def test_hits_after_a_restart_during_an_outage_count_their_model(
    restarts: Restarts, upstream: ScriptedUpstream
) -> None:
    client = await restarts.start("a", owns_key=False)
    upstream.reply = FAILED
    assert (await client.embed("a")).cache == "HIT"
    assert await counters(client) == {
        "requests{hit,200,m}": 1,
        "items{store,m}": 1,
        "tokens{saved,m}": 1,
        "cost{saved,m}": 1,
        "validations{unknown}": 1,
        "upstream_answers{scripted,500}": 1,
    }


async def test_model_name_unknown_to_the_upstream_gets_no_label(restarts: Restarts, upstream: ScriptedUpstream) -> None:
    client = await restarts.start("a")
    upstream.reply = error_reply(404, {"error": {"message": "no such model"}})
    for number in range(3):
        assert (await client.embed("a", model=f"made up {number}")).status == 404
    assert await counters(client) == {"requests{error,404,other}": 3, "upstream_answers{scripted,404}": 3}


async def test_items_fetched_by_another_replica_count_their_model(
    start_proxy: StartProxy, upstream: ScriptedUpstream, redis_server: RedisServer
) -> None:
    async with Redis.from_url(redis_server.url) as admin:
        await admin.flushall()
    first, second = [
        await start_proxy(store=StoreSetting(url=redis_server.url), upstream=owned(upstream), prices=PRICES)
        for _ in range(2)
    ]
    gate = Gate(upstream)
    leading = asyncio.create_task(first.embed("a"))
    await gate.calls(1)
    following = asyncio.create_task(second.embed("a"))
    while await second.metric("embedding_proxy_store_duration_seconds_count", operation="read") < 2:
        await asyncio.sleep(0)  # until it looks for what the first one fetches
    gate.open()
    assert [(await task).cache for task in (leading, following)] == ["MISS", "MISS"]
    assert await counters(second) == {
        "requests{miss,200,m}": 1, "items{joined,m}": 1, "tokens{saved,m}": 1, "cost{saved,m}": 1
    }  # fmt: skip


async def test_azure_body_without_a_model_counts_its_deployment(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    upstream.reply = lambda call: web.json_response(upstream.answer_to({"model": "ada", **call.json}))
    client = await start_proxy(provider="azure", prices={"my-*": 1_000_000.0})
    target = "/openai/deployments/my-small/embeddings?api-version=2024-10-21"
    for _ in range(2):
        assert (await client.post({"input": "a"}, target=target, key=None, api_key="k")).status == 200
    assert await counters(client) == {
        "requests{miss,200,my-small}": 1,
        "requests{hit,200,my-small}": 1,
        "items{upstream,my-small}": 1,
        "items{memory,my-small}": 1,
        "tokens{billed,my-small}": 1,
        "tokens{saved,my-small}": 1,
        "cost{billed,my-small}": 1,
        "cost{saved,my-small}": 1,
        "upstream_answers{scripted,200}": 1,
    }


# --- questions about credentials


async def ask_together(client: Client, texts: Sequence[str], *, key: str = KEY) -> list[int]:
    return [answer.status for answer in await asyncio.gather(*(client.post(
        {"model": "m", "input": text}, key=key) for text in texts))]  # fmt: skip


async def looked_up(client: Client, requests: int) -> None:
    """Wait until so many have looked for their items."""
    while await client.metric("embedding_proxy_stage_duration_seconds_count", stage="lookup") < requests:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("reply", "status", "result"),
    [
        pytest.param(ScriptedUpstream().embed, 200, "confirmed", id="confirmed"),
        pytest.param(error_reply(401, b"{}"), 401, "refused", id="refused"),
        pytest.param(error_reply(500, b"{}"), 200, "unknown", id="no verdict"),
    ],
)
async def test_validation_shared_by_many_is_counted_once(
    restarts: Restarts, upstream: ScriptedUpstream, reply: Any, status: int, result: str
) -> None:
    texts = [f"text {number}" for number in range(10)]
    client = await restarts.start(*texts, owns_key=False)
    gate = Gate(upstream)
    upstream.calls.clear()
    asked = asyncio.create_task(ask_together(client, texts))
    await gate.calls(1)
    await looked_up(client, len(texts))
    gate.answer = reply
    gate.open()
    assert await asked == [status] * len(texts)
    assert len(upstream.calls) == 1
    counted = await counters(client)
    assert {name: n for name, n in counted.items() if name.startswith("validations")} == {f"validations{{{result}}}": 1}


async def test_validation_in_a_shared_scope_is_billed_once(restarts: Restarts, upstream: ScriptedUpstream) -> None:
    client = await restarts.start("a", owns_key=False, shares_all=True)
    gate = Gate(upstream)
    asked = asyncio.create_task(ask_together(client, ["a", "a", "a"], key="Bearer another"))
    await gate.calls(1)
    await looked_up(client, 3)
    gate.open()
    assert await asked == [200] * 3
    counted = await counters(client)
    # Who came later may have found it in memory.
    assert counted.pop("items{store,m}") + counted.pop("items{memory,m}", 0) == 3
    assert counted == {
        "requests{hit,200,m}": 3,
        "tokens{billed,m}": 1,
        "tokens{saved,m}": 2,
        "cost{billed,m}": 1,
        "cost{saved,m}": 2,
        "validations{confirmed}": 1,
        "upstream_answers{scripted,200}": 1,
    }


async def test_validation_without_waiters_is_counted_by_its_result(
    restarts: Restarts, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.embeddings.unvalidated._PROBE_TIMEOUT_S", 0.0)
    client = await restarts.start("a", owns_key=False)
    gate = Gate(upstream)
    assert (await client.embed("a")).status == 200
    await gate.calls(1)
    assert (await counters(client))["validations{unknown}"] == 0
    gate.open()
    await client.proxy.fetcher.drain()
    counted = await counters(client)
    assert (counted["validations{confirmed}"], counted["validations{unknown}"]) == (1, 0)


async def test_validation_that_was_not_sent_is_not_counted(restarts: Restarts, upstream: ScriptedUpstream) -> None:
    await (await restarts.start(owns_key=False)).embed("a")
    client = await restarts.start(owns_key=False, max_queued_items=0)  # nothing gets to the upstream
    assert (await client.embed("a")).cache == "HIT"
    assert len(upstream.calls) == 1
    assert await counters(client) == {
        "requests{hit,200,m}": 1, "items{store,m}": 1, "tokens{saved,m}": 1, "cost{saved,m}": 1
    }  # fmt: skip


# --- bypasses

STREAMED = {"model": "m", "input": ["a", "b"], "stream": True}


async def test_bypasses_are_counted_with_any_relayed_response(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed("first")
    before = await counters(client)
    assert (await client.post(STREAMED, User_Agent="app/1")).status == 200
    upstream.reply = FAILED
    assert (await client.post(STREAMED, User_Agent="app/1")).status == 500
    assert await counters(client) - before == {
        "requests{bypass,200,m}": 1,
        "requests{bypass,500,m}": 1,
        "bypasses{stream}": 2,
        "uncached_requests{stream,stream,,app/1}": 2,
        "items{bypass,m}": 4,
    }


async def test_failed_relay_counts_as_error_not_bypass(start_proxy: StartProxy) -> None:
    nowhere = UpstreamSetting(name="nowhere", base_url=f"http://127.0.0.1:{free_port()}/v1")
    client = await start_proxy(upstream=nowhere)
    assert (await client.post(STREAMED)).status == 502
    assert (await client.post(STREAMED, Cache_Control="only-if-cached")).status == 504
    assert await counters(client) == {"requests{error,502,other}": 1, "requests{error,504,other}": 1}


async def begin(call: Call, *, length: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(length)})
    await response.prepare(call.request)
    await response.write(b"{")
    return response


async def test_cut_off_relayed_response_counts_as_502_not_499(client: Client, upstream: ScriptedUpstream) -> None:
    async def break_off(call: Call) -> web.StreamResponse:
        response = await begin(call, length=100)
        assert call.request.transport is not None
        call.request.transport.close()
        return response

    upstream.reply = break_off
    with pytest.raises(ClientPayloadError):
        await client.post(STREAMED)
    assert await counters(client) == {"requests{error,502,other}": 1}


async def test_disconnect_during_a_relayed_response_counts_as_499(
    client: Client, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.http.liveness._HALF_CLOSED_TIMEOUT_S", 0.0)  # instead of half a minute
    gate = asyncio.Event()

    async def half(call: Call) -> web.StreamResponse:
        response = await begin(call, length=100)
        await gate.wait()
        return response

    upstream.reply = half
    async with client.session.post(client.origin + "/v1/embeddings", json=STREAMED) as response:
        assert await response.content.readany() == b"{"
        response.close()
    while await client.metric("embedding_proxy_requests_in_flight") > 0:
        await asyncio.sleep(0)
    gate.set()
    assert await counters(client) == {"requests{error,499,other}": 1}


# --- the upstream


@pytest.mark.relays_refusals
async def test_error_in_a_200_counts_as_its_own_status(client: Client, upstream: ScriptedUpstream) -> None:
    for code in (429, 502, 20015, "overloaded", None):
        upstream.reply = error_reply(200, {"error": {"code": code, "message": "try later"}})
        await client.embed("a")
    counted = await counters(client)
    assert {name: n for name, n in counted.items() if name.startswith("upstream")} == {
        "upstream_answers{scripted,429}": 1,
        "upstream_answers{scripted,502}": 1,
        "upstream_answers{scripted,500}": 1,
        "upstream_answers{scripted,400}": 2,
        "upstream_rejected{error-in-200}": 5,
    }
    (shown,) = (await client.proxy.status_page.status()).upstreams
    assert (shown.calls, shown.failed) == (5, 5)


@pytest.fixture
async def other() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream().serving() as other:
        yield other


async def test_failover_counts_two_calls_and_one_bill(
    start_proxy: StartProxy, upstream: ScriptedUpstream, other: ScriptedUpstream
) -> None:
    first = UpstreamSetting(
        name="one", base_url=upstream.base_url, models=("m",), same_model=(SameModel(upstream="two"),)
    )
    second = UpstreamSetting(name="two", base_url=other.base_url, models=("n",))
    client = await start_proxy(routed=(first, second), prices=PRICES)
    upstream.reply = FAILED
    assert (await client.embed(["a", "b"])).cache == "MISS"
    assert await counters(client) == {
        "requests{miss,200,m}": 1,
        "items{upstream,m}": 2,
        "tokens{billed,m}": 2,
        "cost{billed,m}": 2,
        "upstream_answers{one,500}": 1,
        "upstream_answers{two,200}": 1,
        "upstream_fallbacks{two}": 1,
    }
    # Both calls had the items in them, and they were one request's.
    assert await client.metric("embedding_proxy_upstream_batch_items_count") == 2
    assert await client.metric("embedding_proxy_upstream_merged_requests_count") == 1


async def test_failed_merged_call_counts_one_response_and_many_errors(
    client: Client, upstream: ScriptedUpstream
) -> None:
    gate = Gate(upstream)
    asked = asyncio.create_task(ask_together(client, ["a"] * 4))
    await gate.calls(1)
    await looked_up(client, 4)
    gate.answer = FAILED
    gate.open()
    assert await asked == [500] * 4
    assert await counters(client) == {"requests{error,500,other}": 4, "upstream_answers{scripted,500}": 1}


async def test_waiting_for_a_slot_is_a_stage_of_its_own(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(upstream_concurrency=1)

    async def waited() -> tuple[float, float]:
        name = "embedding_proxy_stage_duration_seconds_count"
        return await client.metric(name, stage="wait"), await client.metric(name, stage="slot")

    gate = Gate(upstream)
    asked = [asyncio.create_task(client.embed("a", model=model)) for model in ("m", "n")]
    await gate.calls(1)
    while (await waited())[0] < 2:
        await asyncio.sleep(0)
    assert await waited() == (2, 1)
    gate.open()
    assert [(await task).status for task in asked] == [200, 200]
    assert await waited() == (2, 2)


# --- the client


async def test_call_for_a_disconnected_client_is_billed(client: Client, upstream: ScriptedUpstream) -> None:
    gate = Gate(upstream)
    leaving = asyncio.create_task(client.embed("a"))
    await gate.calls(1)
    leaving.cancel()
    while await client.metric("embedding_proxy_requests_in_flight") > 0:
        await asyncio.sleep(0)
    gate.open()
    await client.proxy.fetcher.drain()
    left = {"requests{error,499,other}": 1, "tokens{billed,m}": 1, "upstream_answers{scripted,200}": 1}
    assert await counters(client) == left
    assert (await client.embed("a")).cache == "HIT"
    assert await counters(client) - Counter(left) == {
        "requests{hit,200,m}": 1, "items{memory,m}": 1, "tokens{saved,m}": 1
    }  # fmt: skip


@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
async def test_disconnect_during_the_request_body_counts_as_499(client: Client, framing: bytes) -> None:
    host, port = client.origin.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/embeddings HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n3e8\r\n{")
    while await client.metric("embedding_proxy_requests_in_flight") == 0:
        await asyncio.sleep(0)
    writer.close()
    await writer.wait_closed()
    while await client.metric("embedding_proxy_requests_in_flight") > 0:
        await asyncio.sleep(0)
    assert await counters(client) == {"requests{error,499,other}": 1}


async def test_no_store_and_no_cache_requests_are_counted_each_time(start_proxy: StartProxy, sqlite_path: Path) -> None:
    client = await start_proxy(store=StoreSetting(path=sqlite_path))
    for directive in ("no-store", "no-store", "no-cache", "max-age=0"):
        assert (await client.embed("a", headers={"Cache_Control": directive})).cache == "MISS"
    assert await counters(client) == {
        "requests{miss,200,m}": 4,
        "items{upstream,m}": 4,
        "tokens{billed,m}": 4,
        "upstream_answers{scripted,200}": 4,
    }
    assert await client.metric("embedding_proxy_store_duration_seconds_count", operation="write") == 2


async def test_only_if_cached_makes_no_call(client: Client, upstream: ScriptedUpstream) -> None:
    await client.embed("a")
    before = await counters(client)
    wanted = {"Cache_Control": "only-if-cached"}
    assert [(await client.embed(text, headers=wanted)).status for text in ("a", "b")] == [200, 504]
    assert len(upstream.calls) == 1
    assert await counters(client) - before == {
        "requests{hit,200,m}": 1, "items{memory,m}": 1, "tokens{saved,m}": 1, "requests{error,504,m}": 1
    }  # fmt: skip


async def test_refused_clients_count_as_failed_requests(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "clients"
    key = client_keys.add(path, "one")
    client = await start_proxy(upstream=owned(upstream), client_keys=path)
    assert (await client.post({"model": "m", "input": "a"}, key="Bearer unknown")).status == 401
    assert (await client.send("GET", "/v1/models", headers={"Authorization": "Bearer unknown"})).status == 401
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n".encode()
    assert b" 400 " in await raw(client, head + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")
    assert await counters(client) == {
        "requests{error,401,other}": 1,
        "requests{error,400,other}": 1,
        "client_requests{error,unknown key}": 1,
        "client_requests{error,one}": 1,
    }
    assert await client.metric("embedding_proxy_request_duration_seconds_count", outcome="error") == 2


async def test_internal_error_counts_as_500_not_499(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake in the proxy")

    monkeypatch.setattr(embedding_request, "parse_request", fail)
    assert (await client.embed("a")).status == 500
    assert await counters(client) == {"requests{error,500,other}": 1}


# --- the cache


async def test_memory_only_cache_counts_no_store_operations(client: Client) -> None:
    for text in ("a", "b", "a"):
        await client.embed(text)
    assert await client.metric("embedding_proxy_store_duration_seconds_count") == 0
    assert await client.metric("embedding_proxy_store_errors_total") == 0


async def test_item_cached_during_a_store_read_counts_as_memory(
    restarts: Restarts, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await restarts.start("a")
    cache = client.proxy.cache
    vector = Vector(DType.FLOAT32, b"\0\0\x80\x3f" * 16)
    entry = Entry.of(Record(vector=vector, model="m", tokens=1, tokens_exact=True, stored_at_s=2**31))
    read = cache.read

    async def read_late(keys: Sequence[bytes], **options: Any) -> dict[bytes, Entry]:
        found = await read(keys, **options)
        for key in set(keys) - found.keys():
            cache.memory.put(key, entry)
        return found

    monkeypatch.setattr(cache, "read", read_late)
    assert (await client.embed(["a", "b"])).cache == "HIT"
    counted = await counters(client)
    assert (counted["items{store,m}"], counted["items{memory,m}"]) == (1, 1)
