"""The ledger compared with what each client was told and what the upstream was asked, over a random load.

Seven clients of two proxies with one store ask for texts that they have in common and for texts of their own; calls are
shared, merged, refused, invalid, and abandoned; the proxies are restarted twice. Every figure must be exact.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, web

from proxy.access.pseudonyms import Pseudonyms
from proxy.app import Running, running
from proxy.config.settings import Settings, StoreSetting, UpstreamSetting
from tests.support.client import Client, UpstreamResponse
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.redis_server import RedisServer
from tests.support.scripted import Call, ScriptedUpstream
from tests.support.settings import settings_for

CLIENTS = tuple(f"team-{letter}" for letter in "abcdefg")
LIVES = 3  # of the proxies
REQUESTS = (12_000 if IS_SLOW_PROFILE else 1_500) // LIVES
AT_ONCE = 24
LEAVING = 5  # requests in each life whose client leaves
# Texts of "shared" are asked for by every client. Those of "own" name the client that asks, because no response tells
# what an invalid or abandoned call was billed.
SHARED, OWN = "shared", "own"
SECRET = b"s" * 32


def key_of(client: str) -> str:
    return f"ep-{client}"


@dataclass
class Truth:
    """By client and kind."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    items: Counter[str] = field(default_factory=Counter)
    bypasses: Counter[tuple[str, str]] = field(default_factory=Counter)
    billed: Counter[str] = field(default_factory=Counter)
    saved: Counter[str] = field(default_factory=Counter)
    upstream_billed: int = 0


class Scene:
    """What the upstream does, and what it and the clients see."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.upstream = upstream
        self.truth = Truth()
        self.rng = random.Random(18)
        self.is_open = asyncio.Event()
        self.held = 0
        self.merged_clients = 0
        self.calls = 0
        upstream.reply = self.reply

    async def reply(self, call: Call) -> web.StreamResponse:
        asked = call.json
        if "stream" in asked:
            return self.upstream.embed(call)
        self.calls += 1
        texts: list[str] = call.items
        if any(text.startswith("leaving") for text in texts):
            self.held += len(texts)
            await self.is_open.wait()
        await asyncio.sleep(0)
        if any("poison" in text for text in texts):
            return web.json_response({"error": {"message": "it fails", "type": "server_error"}}, status=500)
        billed = sum(map(len, texts))
        self.truth.upstream_billed += billed
        if asked["model"] == OWN:
            owners = Counter({text.split()[1]: 0 for text in texts})
            for text in texts:
                owners[text.split()[1]] += len(text)
            self.truth.billed.update(owners)
            self.merged_clients += len(owners) > 1
        if any("invalid" in text for text in texts):
            usage = {"prompt_tokens": billed, "total_tokens": billed}
            return web.json_response({"object": "list", "data": [], "model": asked["model"], "usage": usage})
        return self.upstream.embed(call)

    def body(self, client: str) -> dict[str, Any]:
        rng = self.rng
        count = rng.choice((1, 1, 1, 2, 5, 12))
        if rng.random() < 0.7:
            texts = [f"text {'x' * (number % 17)} {number}" for number in self._numbers(count)]
            model = SHARED
        else:
            kind = rng.choices(("fine", "invalid", "poison"), (8, 1, 1))[0]
            texts = [f"{kind} {client} {number}" for number in self._numbers(count)]
            model = OWN
        body: dict[str, Any] = {"model": model, "input": texts if count > 1 else texts[0]}
        if rng.random() < 0.03:
            body["stream"] = True
        if rng.random() < 0.1:
            body["encoding_format"] = "base64"
        return body

    def _numbers(self, count: int) -> Iterable[int]:
        return (int(self.rng.expovariate(1 / 60)) for _ in range(count))

    def note(self, client: str, body: dict[str, Any], response: UpstreamResponse) -> None:
        outcome = response.headers.get("X-Cache", "error").lower()
        if response.status != 200 and outcome != "bypass":
            outcome = "error"
        self.truth.requests[client, outcome] += 1
        self.truth.saved[client] += int(response.headers.get("X-Cache-Saved-Tokens", 0))
        count = len(body["input"]) if isinstance(body["input"], list) else 1
        if outcome != "error":
            self.truth.items[client] += count
        if outcome == "bypass":
            self.truth.bypasses[client, "stream"] += 1
        elif response.status == 200 and body["model"] == SHARED:
            self.truth.billed[client] += response.json["usage"]["prompt_tokens"]

    async def live(self, clients: list[Client]) -> None:
        """The load of one life of the proxies.

        Each client begins with a request that the upstream accepts: a pseudonym has a label from then on.
        """
        for proxy in clients:
            for client in CLIENTS:
                body = {"model": SHARED, "input": f"the first of {client}"}
                self.note(client, body, await proxy.post(body, key=f"Bearer {key_of(client)}"))
        pending = iter([self.rng.choice(CLIENTS) for _ in range(REQUESTS)])

        async def work(own: random.Random) -> None:
            for client in pending:
                body = self.body(client)
                response = await own.choice(clients).post(body, key=f"Bearer {key_of(client)}")
                self.note(client, body, response)

        await asyncio.gather(*(work(random.Random(number)) for number in range(AT_ONCE)))
        await self._leave(clients)

    async def _leave(self, clients: list[Client]) -> None:
        """Requests whose clients leave before the upstream responds; it is paid all the same."""
        self.is_open.clear()
        self.held, leaving = 0, []
        for number in range(LEAVING):
            client, proxy = CLIENTS[number], clients[number % len(clients)]
            body = {"model": OWN, "input": f"leaving {client} {self.calls} {number}"}
            leaving.append(asyncio.create_task(proxy.post(body, key=f"Bearer {key_of(client)}")))
            self.truth.requests[client, "error"] += 1
        while self.held < LEAVING:
            await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        while sum([await client.metric("embedding_proxy_requests_in_flight") for client in clients]):
            await asyncio.sleep(0)
        self.is_open.set()


def counted(lives: Iterable[Running], name: str) -> Counter[tuple[str, ...]]:
    """A counter by all its labels, added up over processes that have ended."""
    return Counter({key: value for key, value in _added(lives, f"embedding_proxy_{name}_total").items() if value})


def _added(lives: Iterable[Running], name: str) -> dict[tuple[str, ...], float]:
    sums: dict[tuple[str, ...], float] = {}
    for proxy in lives:
        for family in proxy.metrics.families():
            for sample in family.samples:
                if sample.name == name:
                    labels = tuple(sample.labels.values())
                    sums[labels] = sums.get(labels, 0) + sample.value
    return sums


def settings_of(scene: Scene, mode: str, store: StoreSetting, folder: Path) -> Settings:
    if mode == "pseudonyms":
        return settings_for(scene.upstream, store=store, client_labels_key=SECRET, prices={"*": 2.0}, shares_all=True)
    keys = folder / "clients"
    keys.write_text(
        "".join(f"{name} sha256:{sha256(key_of(name).encode()).hexdigest()} 2026-01-01\n" for name in CLIENTS)
    )
    upstream = UpstreamSetting(name="scripted", base_url=scene.upstream.base_url, key="held")
    return settings_for(scene.upstream, store=store, upstream=upstream, client_keys=keys, prices={"*": 2.0})


@asynccontextmanager
async def two_workers(settings: Settings, lives: list[Running]) -> Any:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(ClientSession(connector=TCPConnector(limit=0), auto_decompress=False))
        proxies = [await stack.enter_async_context(running(settings)) for _ in range(2)]
        lives.extend(proxies)
        yield [Client(session, proxy) for proxy in proxies]


@pytest.mark.timeout(1200 if IS_SLOW_PROFILE else 120)
@pytest.mark.parametrize("mode", ["names", "pseudonyms"])
async def test_the_ledger_is_exact(
    upstream: ScriptedUpstream, redis_server: RedisServer, tmp_path: Path, mode: str
) -> None:
    redis_server.command("FLUSHALL")
    scene, lives = Scene(upstream), list[Running]()
    settings = settings_of(scene, mode, StoreSetting(url=redis_server.url), tmp_path)
    for _ in range(LIVES):
        async with two_workers(settings, lives) as clients:
            await scene.live(clients)
    truth = scene.truth
    label = {name: name for name in CLIENTS}
    if mode == "pseudonyms":
        pseudonyms = Pseudonyms(SECRET)
        label = {name: pseudonyms.of([("authorization", f"Bearer {key_of(name)}")]) for name in CLIENTS}
    tokens, requests = counted(lives, "client_tokens"), counted(lives, "client_requests")
    items = Counter[str]()
    for (client, _), count in counted(lives, "client_items").items():
        items[client] += int(count)

    assert {(client, outcome): count for (client, outcome), count in requests.items()} == {
        (label[client], outcome): count for (client, outcome), count in truth.requests.items()
    }
    assert items == {label[client]: count for client, count in truth.items.items()}
    assert counted(lives, "client_bypasses") == {
        (label[client], reason): count for (client, reason), count in truth.bypasses.items()
    }
    for client in CLIENTS:
        assert tokens[label[client], "billed"] == truth.billed[client], client
        assert tokens[label[client], "saved"] == truth.saved[client], client
    # Charged once each: in all exactly what the upstream was paid, and what the proxy says it saved.
    for kind, total in (("billed", truth.upstream_billed), ("saved", sum(truth.saved.values()))):
        assert sum(count for (_, its), count in tokens.items() if its == kind) == total
        assert sum(count for (its, _), count in counted(lives, "tokens").items() if its == kind) == total
        cost = sum(value for (_, its), value in counted(lives, "client_cost").items() if its == kind)
        assert cost == pytest.approx(sum(v for (its, _), v in counted(lives, "cost").items() if its == kind))
    # All of it happened.
    assert sum(count for (result, _), count in counted(lives, "items").items() if result == "joined") > 20
    assert {outcome for _, outcome in truth.requests} == {"hit", "partial", "miss", "bypass", "error"}
    assert mode == "pseudonyms" or scene.merged_clients > 10
