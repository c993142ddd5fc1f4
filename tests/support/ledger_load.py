"""A random load of seven clients, and what it must have cost each of them.

They ask for texts that they have in common and for texts of their own; calls are shared, merged, refused, invalid, and
abandoned. What is true is what each client was told and what the upstream was asked.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support.client import HttpClient, UpstreamResponse
from tests.support.scripted import Call, ScriptedUpstream

CLIENTS = tuple(f"team-{letter}" for letter in "abcdefg")
AT_ONCE = 24
LEAVING = 5  # requests of each load whose client leaves
# Texts of "shared" are asked for by every client. Those of "own" name the client that asks, because no response tells
# what an invalid or abandoned call was billed.
SHARED, OWN = "shared", "own"


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


class LedgerLoad:
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

    async def greet(self, proxy: HttpClient, client: str) -> str:
        """A request that the upstream accepts: from then on a pseudonym has a label. Returns the name of the process
        that answered, with which its requests' IDs start."""
        body = {"model": SHARED, "input": f"the first of {client}"}
        response = await proxy.post(body, key=f"Bearer {key_of(client)}")
        self.note(client, body, response)
        return response.headers["X-Request-Id"].partition("-")[0]

    async def play(self, proxies: Sequence[HttpClient], requests: int) -> None:
        """``requests`` of all clients, spread over the proxies, and then some whose clients leave."""
        pending = iter([self.rng.choice(CLIENTS) for _ in range(requests)])

        async def work(own: random.Random) -> None:
            for client in pending:
                body = self.body(client)
                response = await own.choice(proxies).post(body, key=f"Bearer {key_of(client)}")
                self.note(client, body, response)

        await asyncio.gather(*(work(random.Random(number)) for number in range(AT_ONCE)))
        await self._leave(proxies)

    async def _leave(self, proxies: Sequence[HttpClient]) -> None:
        """Requests whose clients leave before the upstream responds; it is paid all the same."""
        self.is_open.clear()
        self.held, leaving = 0, []
        for number in range(LEAVING):
            client, proxy = CLIENTS[number], proxies[number % len(proxies)]
            body = {"model": OWN, "input": f"leaving {client} {self.calls} {number}"}
            leaving.append(asyncio.create_task(proxy.post(body, key=f"Bearer {key_of(client)}")))
            self.truth.requests[client, "error"] += 1
        while self.held < LEAVING:
            await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        while sum([await proxy.metric("embedding_proxy_requests_in_flight") for proxy in proxies]):
            await asyncio.sleep(0)
        self.is_open.set()
