"""A client that gets no hits is named, with the reason and what mends it: once."""

import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.config.settings import UpstreamSetting
from proxy.ledger.hitless import MANY_REQUESTS
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream

JWT = "Bearer eyJhbGciOiJub25lIn0.{payload}.c2ln"


@pytest.fixture
async def client(start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path) -> Client:
    """A client whose name is known to the proxy."""
    path = tmp_path / "clients"
    path.write_text(f"search sha256:{sha256(b'sk-test').hexdigest()} 2026-01-01\n")
    owned = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="held")
    return await start_proxy(upstream=owned, client_keys=path)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and "had no hit in" in record.getMessage()
    ]


async def ask(client: Client, number: int, *, target: str = "/v1/embeddings", **more: Any) -> None:
    headers = {"User_Agent": "OpenAI/Python 9.9"} | more.pop("headers", {})
    body = {"model": "m", "input": "the same"} | more
    assert (await client.post(body, target=target, **headers)).status in {200, 404}, number


async def test_an_unknown_field_that_differs(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2 * MANY_REQUESTS):
        await ask(client, number, my_tag=number)
    (warning,) = warnings_in(caplog)
    assert "client search (OpenAI/Python) had no hit in 100 requests: unknown-field my_tag" in warning
    assert '[providers.generic] neutral = ["my_tag"]' in warning
    labels = {"client": "search", "reason": "unknown-field", "field": "my_tag", "user_agent": "OpenAI/Python"}
    assert await client.metric("embedding_proxy_uncached_requests_total", **labels) == 2 * MANY_REQUESTS
    (shown,) = (await client.proxy.status_page.status()).uncached
    assert (shown.client, shown.reason, shown.field, shown.requests) == ("search", "unknown-field", "my_tag", 200)


async def test_a_header_that_never_repeats(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(MANY_REQUESTS + 1):
        await ask(client, number, headers={"X-Route": str(number)})
    (warning,) = warnings_in(caplog)
    assert "varying-header x-route; if it does not change the vector, set --neutral-headers x-route" in warning


async def test_a_client_with_a_wrong_path_is_reported(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(MANY_REQUESTS):
        await ask(client, number, target="/api/embed")
    (warning,) = warnings_in(caplog)
    assert "client search (OpenAI/Python)" in warning
    assert "wrong-path /api/embed; set the client's base URL to this proxy's /v1" in warning


async def test_tokens_that_expire(start_proxy: StartProxy, caplog: pytest.LogCaptureFixture) -> None:
    client = await start_proxy()
    for number in range(MANY_REQUESTS):
        body = {"model": "m", "input": f"text {number}"}
        await client.post(body, key=JWT.format(payload=f"bm8{number // 10}"), User_Agent="jobs/1")
    (warning,) = warnings_in(caplog)
    assert "client (jobs/1) had no hit in 100 requests: expiring-token; set --share all" in warning
    assert "eyJ" not in warning


async def test_new_texts_and_a_client_with_hits_are_no_reason(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(MANY_REQUESTS):
        await ask(client, number, input=f"new {number}")
    for number in range(3 * MANY_REQUESTS):
        await ask(client, number, my_tag=number)
        if number % 50 == 0:
            for _ in range(2):
                await ask(client, number)
    assert warnings_in(caplog) == []


async def test_the_log_line_has_the_reason(start_proxy: StartProxy) -> None:
    written: list[str] = []
    client = await start_proxy(write_log=written.append, log_format="json", client_labels_key=b"s" * 32)
    await ask(client, 0)
    await ask(client, 1, stream=True)
    await ask(client, 2)
    client.proxy.log.flush()
    miss, bypass, hit = (orjson.loads(line) for line in "".join(written).splitlines())
    assert (bypass["reason"], bypass["field"], bypass["user_agent"]) == ("stream", "stream", "OpenAI/Python")
    assert "reason" not in miss
    assert miss["user_agent"] == "OpenAI/Python"
    assert "user_agent" not in hit
    assert {line["client"] for line in (miss, bypass, hit)} == {miss["client"]}
    assert miss["client"].startswith("c-")


async def test_fields_and_programs_of_clients_are_bounded(start_proxy: StartProxy) -> None:
    client = await start_proxy()
    for number in range(230):
        more: dict[str, Any] = {f"field_{number}": 1}
        await ask(client, number, headers={"User_Agent": f"tool-{number}/1"}, **more)
    uncached = (await client.proxy.status_page.status()).uncached
    assert len(uncached) == 201
    assert uncached[0].field == uncached[0].user_agent == "other"
    assert uncached[0].requests == 30
