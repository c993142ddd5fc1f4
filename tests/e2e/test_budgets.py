"""A client whose budget is used up: what it gets, and what the others get."""

import asyncio
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from proxy.config.settings import BudgetSettings, StoreSetting, UpstreamSetting
from proxy.ledger.spending import SpendingBudget
from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.gate import Gate
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted import ScriptedUpstream

NOW_S = 1_800_000_000.0
LIMIT = 100
Start = Callable[..., Any]


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path) -> Start:
    """Starts proxies for the clients a and b, with one budget for each client."""
    path = tmp_path / "clients"
    path.write_text("".join(f"{name} sha256:{sha256(name.encode()).hexdigest()} 2026-01-01\n" for name in "ab"))
    owned = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="held")

    async def started(*, fails_open: bool = True, budget: Any = None, **changes: Any) -> Client:
        fields: dict[str, Any] = {"name": "daily", "tokens": LIMIT} | (budget or {})
        one = SpendingBudget(**fields)
        budgets = BudgetSettings(budgets=(one,), fails_open=fails_open)
        return await start_proxy(upstream=owned, client_keys=path, budgets=budgets, clock=lambda: NOW_S, **changes)

    return started


async def ask(client: Client, name: str, given: Any, **more: Any) -> UpstreamResponse:
    return await client.post({"model": "m", "input": given} | more, key=f"Bearer {name}")


def assert_refused(response: UpstreamResponse) -> None:
    assert response.status == 429
    assert response.json["error"]["code"] == response.json["error"]["type"] == "insufficient_quota"
    assert response.headers["X-Budget-Remaining-Tokens"] == "0"
    assert 0 < int(response.headers["Retry-After"]) <= 86_400
    assert (NOW_S + int(response.headers["Retry-After"])) % 86_400 <= 1


async def test_misses_are_refused_and_hits_are_served(start: Start, upstream: ScriptedUpstream) -> None:
    client = await start()
    first = await ask(client, "a", "x" * 60)
    assert first.headers["X-Budget-Remaining-Tokens"] == "40"
    last = await ask(client, "a", ["y" * 30, "z" * 30])
    assert (last.status, last.headers["X-Budget-Remaining-Tokens"]) == (200, "0")
    calls = len(upstream.calls)
    assert_refused(await ask(client, "a", "new"))
    assert_refused(await ask(client, "a", ["x" * 60, "new"]))  # partly cached: all of it
    assert_refused(await ask(client, "a", "new", stream=True))  # relayed unread
    assert len(upstream.calls) == calls
    for _ in range(5):  # parsed at first, then known by its bytes
        hit = await ask(client, "a", "x" * 60)
        assert (hit.status, hit.cache) == (200, "HIT")
    assert (await ask(client, "b", "new")).status == 200
    assert (await ask(client, "a", "new")).cache == "HIT"  # b has paid for it
    assert await client.metric("embedding_proxy_budget_refusals_total", budget="daily", client="a") == 3
    assert await client.metric("embedding_proxy_budget_spent", client="a", unit="tokens") == 120
    assert await client.metric("embedding_proxy_budget_limit", client="b", unit="tokens") == LIMIT
    (shown, *_) = (await client.proxy.status_page.status()).budgets
    assert (shown.name, shown.client, shown.spent, shown.limit, shown.refused) == ("daily", "a", 120, LIMIT, 3)


async def test_other_models_and_clients_are_not_covered(start: Start) -> None:
    client = await start(budget={"clients": ("a",), "models": ("m",)})
    await ask(client, "a", "x" * 200)
    assert_refused(await ask(client, "a", "new"))
    other = await ask(client, "a", "new", model="n")
    assert (other.status, other.headers.get("X-Budget-Remaining-Tokens")) == (200, None)
    assert (await ask(client, "b", "new")).status == 200


async def test_a_budget_of_money_is_spent_by_price(start: Start) -> None:
    client = await start(budget={"tokens": None, "money": 0.0002}, prices={"m": 2.0})
    response = await ask(client, "a", "x" * 60)
    assert response.headers["X-Budget-Remaining-Tokens"] == "40"
    await ask(client, "a", "y" * 40)
    assert_refused(await ask(client, "a", "new"))
    assert await client.metric("embedding_proxy_budget_spent", unit="money") == pytest.approx(0.0002)


async def test_who_joins_a_refused_fetch_asks_by_itself(start: Start) -> None:
    client = await start()
    await ask(client, "a", "x" * 200)
    responses = await asyncio.gather(*(ask(client, name, f"text {n}") for n in range(20) for name in "ab"))
    for a, b in zip(responses[::2], responses[1::2], strict=True):
        assert b.status == 200
        assert a.status in {200, 429}  # 200 where b was quicker


async def test_calls_in_flight_hold_what_they_may_cost(start: Start, upstream: ScriptedUpstream) -> None:
    client = await start()
    gate = Gate(upstream)
    tasks = [asyncio.create_task(ask(client, "a", f"{n}" * 150)) for n in range(8)]
    await gate.calls(1)
    for _ in range(50):
        await asyncio.sleep(0)
    gate.open()
    statuses = [response.status for response in await asyncio.gather(*tasks)]
    billed = await client.metric("embedding_proxy_client_tokens_total", client="a", kind="billed")
    assert statuses.count(200) * 150 == billed
    assert LIMIT <= billed <= LIMIT + 2 * 150  # an estimate is a third of the text's bytes
    assert statuses.count(429) == 8 - statuses.count(200)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_budgets_add_up_over_processes_and_survive_them(
    start: Start, redis_server: RedisServer, sqlite_path: Path, kind: str
) -> None:
    redis_server.command("FLUSHALL")
    store = StoreSetting(path=sqlite_path) if kind == "sqlite" else StoreSetting(url=redis_server.url)
    at_once, size, limit = 12, 10, 1000
    proxies = [await start(store=store, budget={"tokens": limit}) for _ in range(2)]
    numbers = iter(range(10_000))

    async def work(client: Client) -> int:
        for number in numbers:
            if (await ask(client, "a", f"{number:0{size}}")).status == 429:
                break
        return number

    await asyncio.gather(*(work(proxies[n % 2]) for n in range(at_once)))
    billed = sum([
        await client.metric("embedding_proxy_client_tokens_total", client="a", kind="billed") for client in proxies
    ])  # fmt: skip
    assert limit <= billed < limit + at_once * size
    restarted = await start(store=store, budget={"tokens": limit})
    assert_refused(await ask(restarted, "a", "after a restart"))
    assert (await ask(restarted, "b", "another client")).status == 200
    assert (await ask(restarted, "a", f"{0:0{size}}")).cache == "HIT"


@pytest.mark.parametrize("fails_open", [True, False])
async def test_the_store_is_down(start: Start, fails_open: bool) -> None:
    store = StoreSetting(url=f"redis://127.0.0.1:{free_port()}")
    client = await start(store=store, fails_open=fails_open)
    response = await ask(client, "a", "x" * 200)
    if fails_open:
        assert response.status == 200
        assert_refused(await ask(client, "a", "new"))  # it counts by itself
    else:
        assert (response.status, response.json["error"]["code"]) == (503, "budget_unknown")
        assert response.headers["Retry-After"] == "1"


async def test_a_hit_whose_credential_has_to_be_validated_is_served(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """The validation is billed, and not refused."""
    now = [1000.0]
    budgets = BudgetSettings(budgets=(SpendingBudget(name="b", tokens=10),))
    client = await start_proxy(
        client_labels_key=b"s" * 32, budgets=budgets, clock=lambda: NOW_S, monotonic=lambda: now[0], revalidate_s=60.0
    )
    assert (await client.embed("x" * 20)).status == 200
    assert_refused(await client.embed("new"))
    now[0] += 61
    hit = await client.embed("x" * 20)
    assert (hit.status, hit.cache) == (200, "HIT")
    assert len(upstream.calls) == 2
