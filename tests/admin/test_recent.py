"""The last requests on the admin port: what is in them, and who can't read them."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from proxy.admin.aggregate import Workers
from proxy.admin.recent import add_recent_requests, why_forbidden
from proxy.telemetry.recent_request import RecentRequest, RequestDetail
from tests.conftest import StartProxy
from tests.support.client import Client


async def requests_of(client: Client, last: int = 20) -> list[dict[str, Any]]:
    async with client.session.get(f"{client.proxy.admin_url}/requests.json?last={last}") as response:
        assert response.status == 200
        assert response.headers["Cache-Control"] == "no-store"
        found: list[dict[str, Any]] = orjson.loads(await response.read())["requests"]
        return found


async def test_each_request_says_how_it_was_understood(client: Client) -> None:
    await client.embed(["the-text", "b"], headers={"X-Model": "the-value", "Cache-Control": "max-age=9"})
    await client.embed(["the-text", "b"], foo=1)
    await client.embed("x", stream=True)
    await client.send("POST", "/v1/other", body=b'{"model": "m", "input": "x"}')
    first, whole, relayed, passed = await requests_of(client)
    assert (first["outcome"], first["status"], first["items"], first["cached"]) == ("miss", 200, 2, 0)
    assert first["cache_status"] == "embedding-proxy; fwd=miss; fwd-status=200; stored"
    assert first["detail"] == {
        "upstream": "scripted",
        "provider": "generic",
        "keyed": "items",
        "reason": None,
        "field": None,
        "credential_headers": ["authorization"],
        "vector_headers": ["x-model"],
        "cache_control": "max-age=9",
    }
    assert (whole["detail"]["keyed"], whole["detail"]["reason"], whole["detail"]["field"]) == (
        "body",
        "unknown-field",
        "foo",
    )
    assert (relayed["outcome"], relayed["detail"]["keyed"]) == ("bypass", "nothing")
    assert relayed["cache_status"] == "embedding-proxy; fwd=bypass; detail=stream"
    assert (passed["outcome"], passed["detail"]) == ("pass", None)


async def test_no_text_and_no_secret_is_in_it(client: Client) -> None:
    await client.embed("the-text", **{"the text of a client": "the-text"}, headers={"X-Route": "the-value"})
    await client.embed("the-text", headers={"Cookie": "the-value"})
    for _ in range(4):
        await client.embed("the-text")
    async with client.session.get(f"{client.proxy.admin_url}/requests.json") as response:
        body = await response.text()
    assert len(orjson.loads(body)["requests"]) == 6
    assert not any(secret in body for secret in ("the-text", "the text", "the-value", "sk-test"))


@pytest.mark.parametrize("last", ["0", "257", "-1", "x", "1" * 30, f"{1:08}" + "1" * 5000, ""], ids=lambda of: of[:9])
async def test_the_number_is_checked(client: Client, last: str) -> None:
    async with client.session.get(f"{client.proxy.admin_url}/requests.json?last={last}") as response:
        assert (response.status, await response.text()) == (400, "last: accepted: a number from 1 to 256\n")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:9090"}, 200),
        ({"Host": "localhost:9090", "Origin": "http://localhost:9090"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "rebound.example:9090"}, 403),
        ({"Host": "127.0.0.1.example"}, 403),
        ({"Origin": "https://page.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:9090", "Origin": "http://localhost:3000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "[bad"}, 403),
    ],
)
async def test_web_pages_of_others_can_not_read_it(client: Client, headers: dict[str, str], status: int) -> None:
    async with client.session.get(f"{client.proxy.admin_url}/requests.json", headers=headers) as response:
        assert response.status == status


@pytest.mark.parametrize("host", ["rebound.example:9090", "localhost:9090", "127.0.0.1"])
@pytest.mark.parametrize(
    ("path", "is_for_any_name"),
    [
        ("/metrics", True), ("/healthz", True), ("/readyz", True), ("/", False), ("/status.json", False),
        ("/openapi.json", False), ("/requests.json", False),
    ],
)  # fmt: skip
async def test_a_page_whose_name_resolves_to_this_machine_reads_only_what_scrapers_do(
    client: Client, host: str, path: str, is_for_any_name: bool
) -> None:
    async with client.session.get(client.proxy.admin_url + path, headers={"Host": host}) as response:
        assert response.status == (200 if is_for_any_name or not host.startswith("rebound") else 403)


async def test_an_admin_port_for_other_machines_has_any_name(start_proxy: StartProxy) -> None:
    client = await start_proxy(admin_host="0.0.0.0")
    port = URL(client.proxy.admin_url).port
    headers = {"Host": "proxy.cluster:9090"}
    async with client.session.get(f"http://127.0.0.1:{port}/status.json", headers=headers) as response:
        assert response.status == 200


def test_on_a_port_for_other_machines_any_name_will_do() -> None:
    assert why_forbidden(CIMultiDict({"Host": "proxy.cluster:9090"}), is_loopback=False) is None
    assert why_forbidden(CIMultiDict({"Host": "a", "Origin": "http://b"}), is_loopback=False) is not None


def request(at_s: float) -> RecentRequest:
    return RecentRequest(
        ended_at_s=at_s, request_id=f"id-{at_s:g}", trace_id=None, outcome="hit", status=200, model=None, items=1,
        cached=1, duration_ms=1.0, rate_limit_wait_ms=0.0, cache_status="",
        detail=RequestDetail(
            upstream="u", provider="p", keyed="items", reason=None, field=None, credential_headers=("a",),
            vector_headers=(), cache_control="",
        ),
    )  # fmt: skip


async def test_those_of_workers_are_merged_by_time(tmp_path: Path) -> None:
    runners = []
    for number, times in enumerate([(1.0, 4.0), (2.0, 3.0), ()]):

        async def recent(count: int, times: tuple[float, ...] = times) -> list[RecentRequest]:
            return [request(at_s) for at_s in times][-count:]

        app = web.Application()
        add_recent_requests(app.router, recent, is_loopback=True)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / f"{number}.sock")).start()
        runners.append(runner)
    try:
        workers = Workers(tmp_path)
        assert await workers.recent_requests(10) == [request(at_s) for at_s in (1.0, 2.0, 3.0, 4.0)]
        assert [found.ended_at_s for found in await workers.recent_requests(3)] == [2.0, 3.0, 4.0]
        await runners[0].cleanup()
        assert [found.ended_at_s for found in await workers.recent_requests(3)] == [2.0, 3.0]
    finally:
        for runner in runners:
            await runner.cleanup()
