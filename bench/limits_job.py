"""One job of `bench.limits`: an upstream with a limiter, what is in front of it, and the load."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from openai import AsyncOpenAI, OpenAIError
from tqdm import tqdm

from bench.faults import proxy
from tests.support.limiters import CALLS_PER_S, Concurrency, Halving, Limiter, Window
from tests.support.redis_server import RedisServer
from tests.support.scripted import Call, ScriptedUpstream

ITEMS, CLIENTS = 40, 24
CALL_S, QUERY_EVERY_S, SETTLED_AFTER_S = 0.05, 0.25, 1.0
WAYS = ("direct", "proxy", "two replicas", "two replicas on one Redis")
_UNLIMITED_QUERIES = 20
# The limiter has counted none of these queries, so it must have forgotten them.
_PAUSE_S = 1.5
_STEP_S = 0.001


@dataclass(kw_only=True)
class Bounds:
    ideal_s: float  # the job, by the limit alone
    query_s: float
    max_ratio: float = 1.2  # of the job's time and the ideal one
    max_refused: float = 0.05  # of the calls


@dataclass(kw_only=True)
class Result:
    batches: int
    failed_batches: int = 0
    failed_queries: int = 0
    took_s: float = 0.0
    query_s: list[float] = field(default_factory=list)  # after the first second
    calls: int = 0
    late_refusals: int = 0

    @property
    def p95_s(self) -> float:
        return _p95(self.query_s)

    @property
    def succeeded(self) -> float:
        """Of 100 batches, and of 100 queries. A job that fails at once has few queries."""
        queries = max(1, len(self.query_s))
        return 100 * (1 - self.failed_batches / self.batches) + 100 * (1 - min(1.0, self.failed_queries / queries))


async def measured(folder: Path, make: Callable[[], Limiter], way: str, batches: int) -> tuple[Result, Bounds]:
    result = Result(batches=batches)
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream(dimensions=64).serving())
        base_urls = await opened(stack, folder, upstream, way)
        clients = [
            await stack.enter_async_context(AsyncOpenAI(api_key="sk-limits", base_url=url, timeout=120))
            for url in base_urls
        ]
        upstream.reply = unlimited(upstream)
        alone_s = [await timed_query(clients[0], f"unlimited {n}") for n in range(_UNLIMITED_QUERIES)]
        await asyncio.sleep(_PAUSE_S)
        upstream.reply = limiting(upstream, make(), result)
        await load(clients, batches, result)
    return result, Bounds(ideal_s=ideal_s(make(), batches), query_s=_p95(alone_s) + slot_s(make()))


def ideal_s(limiter: Limiter, batches: int) -> float:
    """How long the batches take if each is a call and leaves as soon as the limit takes it."""
    if isinstance(limiter, Concurrency):
        return math.ceil(batches / limiter.most) * CALL_S
    if isinstance(limiter, Window):
        return (math.ceil(batches / limiter.limit) - 1) * limiter.window_s + CALL_S
    now_s = 0.0
    for _ in range(batches):
        while not limiter.is_ready(ITEMS, now_s):
            now_s += _STEP_S
        assert limiter.arrives(ITEMS, now_s).is_accepted
    return now_s + CALL_S


def slot_s(limiter: Limiter) -> float:
    """The time in which the limit takes one call."""
    if isinstance(limiter, Concurrency):
        return CALL_S
    if isinstance(limiter, Window):
        return limiter.window_s
    return (2 if isinstance(limiter, Halving) else 1) / CALLS_PER_S


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


def unlimited(upstream: ScriptedUpstream) -> Callable[[Call], Awaitable[web.StreamResponse]]:
    async def reply(call: Call) -> web.StreamResponse:
        await asyncio.sleep(CALL_S)
        response = upstream.embed(call)
        response.headers.popall("x-ratelimit-remaining-requests")
        return response

    return reply


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
        response.headers.popall("x-ratelimit-remaining-requests")
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
                took_s = time.monotonic() - asked_s
                if asked_s - began_s > SETTLED_AFTER_S:
                    result.query_s.append(took_s)
                await asyncio.sleep(max(0.0, QUERY_EVERY_S - took_s))

        asking = asyncio.create_task(query())
        await asyncio.gather(*(work(clients[n % len(clients)]) for n in range(CLIENTS)))
        asking.cancel()
    result.took_s = time.monotonic() - began_s


async def timed_query(client: AsyncOpenAI, text: str) -> float:
    asked_s = time.monotonic()
    assert await embedded(client, [text])
    return time.monotonic() - asked_s


async def embedded(client: AsyncOpenAI, texts: list[str]) -> bool:
    try:
        response = await client.embeddings.create(model="m", input=texts)
    except (OpenAIError, ValueError):  # it raises that for an error inside a 200
        return False
    return len(response.data or ()) == len(texts)


def _p95(seconds: list[float]) -> float:
    ordered = sorted(seconds) or [0.0]
    return ordered[int(0.95 * len(ordered))]
