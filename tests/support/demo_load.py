"""A proxy in front of the demo upstream, after ten minutes of load of five clients replayed in seconds."""

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from proxy.admin.history import STEP_S
from proxy.app import Running, running
from proxy.config.settings import BudgetSettings, StoreSetting
from proxy.config.upstream_urls import parse_upstream
from proxy.ledger.spending import SpendingBudget
from tests.support.settings import DEFAULTS

MODELS = ("demo", "text-embedding-3-small", "multilingual-e5-large")
WORDS = ("vector", "index", "recall", "batch", "token", "query", "passage", "chunk", "cache", "latency", "corpus")

# The clients with hits, and how many of ten requests are theirs; the last gets none.
TEAMS = {"search": 5, "recommender": 3, "support-bot": 1, "nightly-import": 1}
LEGACY = "legacy-app"
BUDGETS = (
    SpendingBudget(name="daily", tokens=1700),
    SpendingBudget(name="import", clients=("nightly-*",), money=0.0015),
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def loaded(folder: Path, *, steps: int = 60) -> AsyncIterator[Running]:
    clock = Clock()
    keys = folder / "clients"
    keys.write_text(
        "".join(f"{name} sha256:{sha256(name.encode()).hexdigest()} 2026-01-01\n" for name in (*TEAMS, LEGACY))
    )
    settings = replace(
        DEFAULTS,
        upstream=replace(parse_upstream("demo"), key="any"),
        store=StoreSetting(path=folder / "cache.sqlite3"),
        prices={"text-*": 20.0},
        client_keys=keys,
        budgets=BudgetSettings(budgets=BUDGETS),
        canary_interval_s=6 * 3600.0,
    )
    async with running(settings, monotonic=clock) as proxy, ClientSession() as session:
        await _replay(proxy, session, clock, steps)
        if proxy.canary is not None:
            await proxy.canary.tick()
        yield proxy


async def _replay(proxy: Running, session: ClientSession, clock: Clock, steps: int) -> None:
    """Much is new at first, and comes again later."""
    draw = random.Random(7)
    for step in range(steps):
        pool = 40 + step * 6
        for _ in range(6 + int(3 * math.sin(step / 8) + draw.random() * 3)):
            texts = [f"{WORDS[n % 11]} {WORDS[n % 7]} of document {n}" for n in _places(draw, pool)]
            model = draw.choices(MODELS, (6, 3, 1))[0]
            (team,) = draw.choices(list(TEAMS), list(TEAMS.values()))
            await ask(session, proxy, team, {"model": model, "input": texts})
        if step % 9 == 4:
            await ask(session, proxy, "search", {"model": "demo", "input": [""]})
        if step % 2:
            await ask(session, proxy, LEGACY, {"model": "demo", "input": "a greeting", "request_tag": step})
            await ask(session, proxy, LEGACY, {"model": "demo", "input": "a greeting", "stream": True})
        clock.now_s += STEP_S
        await proxy.status_page.sample()


def _places(draw: random.Random, pool: int) -> list[int]:
    return [min(int(draw.expovariate(6 / pool)), pool) for _ in range(draw.choice((1, 4, 16)))]


async def ask(session: ClientSession, proxy: Running, key: str, body: dict[str, Any]) -> None:
    fields = {"Authorization": f"Bearer {key}", "User-Agent": "OpenAI/Python 2.8"}
    async with session.post(f"{proxy.base_url}/embeddings", json=body | {"dimensions": 64}, headers=fields) as response:
        await response.read()
