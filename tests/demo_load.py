"""A proxy in front of the demo upstream, with ten minutes of load behind it that were replayed in seconds."""

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientSession

from proxy import config
from proxy.config import MIB, Settings, StoreSetting
from proxy.server import Running, running
from proxy.status import STEP_S

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
    settings = Settings(
        host="127.0.0.1",
        port=0,
        admin_host="127.0.0.1",
        admin_port=0,
        upstream=config.parse_upstream("demo"),
        store=StoreSetting(path=folder / "cache.sqlite3"),
        store_limit_bytes=64 * MIB,
        memory_bytes=64 * MIB,
        ttl_s=None,
        max_body_bytes=MIB,
        reports_full_usage=False,
        log_format="console",
        batch_window_s=0.0,
        max_batch_items=None,
        max_queued_items=1000,
        max_held_bytes=64 * MIB,
        upstream_concurrency=8,
        upstream_connect_timeout_s=10.0,
        upstream_read_timeout_s=60.0,
        upstream_timeout_s=60.0,
        drain_delay_s=0.0,
        shutdown_timeout_s=10.0,
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
