"""A proxy in front of the demo upstream, after ten minutes of load replayed in seconds."""

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from aiohttp import ClientSession

from proxy.admin.history import STEP_S
from proxy.app import Running, running
from proxy.config.settings import StoreSetting
from proxy.config.upstream_urls import parse_upstream
from tests.support.settings import DEFAULTS

MODELS = ("demo", "text-embedding-3-small", "multilingual-e5-large")
WORDS = ("vector", "index", "recall", "batch", "token", "query", "passage", "chunk", "cache", "latency", "corpus")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def loaded(folder: Path, *, steps: int = 60) -> AsyncIterator[Running]:
    clock = Clock()
    settings = replace(
        DEFAULTS,
        upstream=parse_upstream("demo"),
        store=StoreSetting(path=folder / "cache.sqlite3"),
        prices={"text-*": 20.0},
    )
    async with running(settings, monotonic=clock) as proxy, ClientSession() as session:
        await _replay(proxy, session, clock, steps)
        yield proxy


async def _replay(proxy: Running, session: ClientSession, clock: Clock, steps: int) -> None:
    """Much is new at first, and comes again later."""
    draw = random.Random(7)
    for step in range(steps):
        pool = 40 + step * 6
        for _ in range(6 + int(3 * math.sin(step / 8) + draw.random() * 3)):
            texts = [f"{WORDS[n % 11]} {WORDS[n % 7]} of document {n}" for n in _places(draw, pool)]
            model = draw.choices(MODELS, (6, 3, 1))[0]
            await ask(session, proxy, model, texts)
        if step % 9 == 4:
            await ask(session, proxy, "demo", [""])
        clock.now_s += STEP_S
        await proxy.status_page.sample()


def _places(draw: random.Random, pool: int) -> list[int]:
    return [min(int(draw.expovariate(6 / pool)), pool) for _ in range(draw.choice((1, 4, 16)))]


async def ask(session: ClientSession, proxy: Running, model: str, texts: list[str]) -> None:
    body = {"model": model, "input": texts, "dimensions": 64}
    fields = {"Authorization": "Bearer any"}
    async with session.post(f"{proxy.base_url}/embeddings", json=body, headers=fields) as response:
        await response.read()
