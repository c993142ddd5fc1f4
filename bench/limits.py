"""Jobs under rate limits: direct, through a proxy, and through two replicas.

    python -m bench.limits [--quick] [--only "Retry-After alone"]

100 batches of 40 texts, 24 at a time, and four queries a second, by the openai client with its default retries, against
upstreams over HTTP that limit calls and items in every way. Refusals of the first second are not counted.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from openai import AsyncOpenAI, OpenAIError
from tqdm import tqdm

from bench.faults import proxy
from bench.limits_cost import measured_us
from tests.support.limiters import LIMITERS, Limiter
from tests.support.redis_server import RedisServer
from tests.support.scripted import Call, ScriptedUpstream

BATCHES, ITEMS, CLIENTS = 100, 40, 24
CALL_S, QUERY_EVERY_S, SETTLED_AFTER_S = 0.05, 0.25, 1.0
WAYS = ("direct", "proxy", "two replicas", "two replicas, one Redis")


@dataclass(kw_only=True)
class Result:
    failed_batches: int = 0
    failed_queries: int = 0
    took_s: float = 0.0
    query_s: list[float] = field(default_factory=list)
    calls: int = 0
    late_refusals: int = 0

    def __str__(self) -> str:
        queries = sorted(self.query_s) or [0.0]
        return (
            f"{self.failed_batches:7} {self.failed_queries:7} {self.took_s:8.1f}"
            f" {queries[int(0.95 * len(queries))]:9.2f}"
            f" {self.calls:6} {self.late_refusals / max(1, self.calls):8.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the batches, as a smoke test")
    parser.add_argument("--only", help="one limiter, by its name")
    given = parser.parse_args()
    asyncio.run(run([given.only] if given.only else list(LIMITERS), BATCHES // 5 if given.quick else BATCHES))


async def run(names: list[str], batches: int) -> None:
    print(
        f"a miss under no limit pays {await asyncio.to_thread(measured_us):.1f} µs of CPU for the pacer\n", flush=True
    )
    print(f"{'limiter':26} {'way':24} {'batches':>7} {'queries':>7} {'':8} {'query':>9} {'':6} {'refused':>8}")
    print(f"{'':26} {'':24} {'failed':>7} {'failed':>7} {'seconds':>8} {'p95, s':>9} {'calls':>6} {'':>8}")
    for name in names:
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                result = await measured(Path(folder), LIMITERS[name](), way, batches)
            print(f"{name:26} {way:24} {result}", flush=True)


async def measured(folder: Path, limiter: Limiter, way: str, batches: int) -> Result:
    result = Result()
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream(dimensions=64).serving())
        base_urls = await opened(stack, folder, upstream, way)
        upstream.reply = limiting(upstream, limiter, result)
        clients = [
            await stack.enter_async_context(AsyncOpenAI(api_key="sk-limits", base_url=url, timeout=120))
            for url in base_urls
        ]
        await load(clients, batches, result)
    return result


async def opened(stack: AsyncExitStack, folder: Path, upstream: ScriptedUpstream, way: str) -> list[str]:
    """The base URLs that clients use."""
    if way == "direct":
        return [upstream.base_url]
    store = "memory:"
    if "Redis" in way:
        redis = await asyncio.to_thread(RedisServer, folder)
        stack.push_async_callback(asyncio.to_thread, redis.kill)
        store = redis.url
    urls = []
    for number in range(1 if way == "proxy" else 2):
        place = folder / str(number)
        place.mkdir()
        arguments = ("--store", store, "--log-requests", "no", "--rate-limit-wait", "60s")
        process = await stack.enter_async_context(proxy(place, upstream, *arguments))
        urls.append(process.base_url)
    return urls


def limiting(
    upstream: ScriptedUpstream, limiter: Limiter, result: Result
) -> Callable[[Call], Awaitable[web.StreamResponse]]:
    began_s = time.monotonic()

    async def reply(call: Call) -> web.StreamResponse:
        now_s = time.monotonic() - began_s
        verdict = limiter.arrives(len(call.items), now_s)
        result.calls += 1
        if not verdict.is_accepted:
            result.late_refusals += now_s > SETTLED_AFTER_S
            return web.Response(
                status=verdict.status, body=verdict.body, headers=verdict.headers, content_type="application/json"
            )
        await asyncio.sleep(CALL_S)
        limiter.leaves(time.monotonic() - began_s)
        response = upstream.embed(call)
        response.headers.update(verdict.headers)
        return response

    return reply


async def load(clients: list[AsyncOpenAI], batches: int, result: Result) -> None:
    numbers = iter(range(batches))
    began_s = time.monotonic()
    with tqdm(total=batches, leave=False, unit="batch") as bar:

        async def work(client: AsyncOpenAI) -> None:
            for number in numbers:
                texts = [f"batch {number:04}, text {n:04}, of about ten tokens" for n in range(ITEMS)]
                is_good = await embedded(client, texts)
                result.failed_batches += not is_good
                bar.update()

        async def query() -> None:
            for number in range(10**6):
                asked_s = time.monotonic()
                is_good = await embedded(clients[0], [f"query {number:04}, of about ten tokens"])
                result.failed_queries += not is_good
                result.query_s.append(time.monotonic() - asked_s)
                await asyncio.sleep(max(0.0, QUERY_EVERY_S - result.query_s[-1]))

        asking = asyncio.create_task(query())
        await asyncio.gather(*(work(clients[n % len(clients)]) for n in range(CLIENTS)))
        asking.cancel()
    result.took_s = time.monotonic() - began_s


async def embedded(client: AsyncOpenAI, texts: list[str]) -> bool:
    try:
        response = await client.embeddings.create(model="m", input=texts)
    except (OpenAIError, ValueError):  # it raises that for an error inside a 200
        return False
    return len(response.data or ()) == len(texts)


if __name__ == "__main__":
    main()
