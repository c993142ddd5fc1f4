"""The real path from a parsed body to its response, before an upstream with a rate limit, on a virtual clock."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp.web import Response
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.access.access import Access
from proxy.access.validations import Validations
from proxy.cache.cache import Cache
from proxy.cache.memory import Memory
from proxy.cache.store import NoStore, Store
from proxy.embeddings.fast_path import FastPath
from proxy.embeddings.patience import Patience
from proxy.embeddings.progress import Progress
from proxy.embeddings.responses import ResponseBuilder
from proxy.embeddings.route import EmbeddingsRoute
from proxy.errors import ProxyError
from proxy.fetch.batcher import Batcher
from proxy.fetch.fetcher import Fetcher
from proxy.fetch.lane import Lanes
from proxy.fetch.spending import Spending
from proxy.fetch.write_through import WriteThrough
from proxy.http.bodies import BodyReader
from proxy.pacing.pacer import Pacer
from proxy.protocol.error_body import error_status
from proxy.protocol.providers import GENERIC
from proxy.telemetry.metrics import Metrics
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.router import Origin, Router
from proxy.upstream.urls import Routes
from tests.support.content import content_of
from tests.support.fake_request import FakeRequest
from tests.support.limiters import Limiter, Verdict

WAIT_S = 60.0
_IDLE = "<Batcher 0 groups, 0 calls, 0 items, <HeldRequests 0 items, <HeldKeys 0 held, 0 followed>>>"
CALL_S, REFUSED_AFTER_S = 0.05, 0.005


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    took_s: float
    held_s: float


class LimitedUpstream:
    """Computes what its limiter accepts, and counts how often it computed each item."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        # For what is sent, or under which credentials.
        self.refuses: Callable[[list[str], str], Verdict | None] = lambda _texts, _authorization: None
        self.refused_after_s = REFUSED_AFTER_S
        self.computed: Counter[tuple[str, str]] = Counter()  # by credential and text
        self.calls: list[list[str]] = []  # also those that were refused
        self.verdicts: list[tuple[float, Verdict]] = []  # with when

    async def embed(
        self, _url: str, headers: Mapping[str, str], body: bytes, *, items: int, flow: object
    ) -> UpstreamResponse:
        loop = asyncio.get_running_loop()
        given = orjson.loads(body)["input"]
        texts = [given] if isinstance(given, str) else given
        self.calls.append(texts)
        verdict = self.refuses(texts, headers["Authorization"]) or self.limiter.arrives(items, loop.time())
        self.verdicts.append((loop.time(), verdict))
        await asyncio.sleep(CALL_S if verdict.is_accepted else self.refused_after_s)  # of the virtual clock
        content = verdict.body
        if verdict.is_accepted:
            self.limiter.leaves(loop.time())
            self.computed.update((headers["Authorization"], text) for text in texts)
            data = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(texts)]
            content = orjson.dumps({"data": data, "model": "m", "usage": {"prompt_tokens": items}})
        fields = CIMultiDictProxy(CIMultiDict(verdict.headers))
        return UpstreamResponse(status=verdict.status, reason="", headers=fields, body=content)


class Scripted(Limiter):
    """Says what ``verdict`` says to the n-th call, from 0."""

    def __init__(self, verdict: Callable[[int], Verdict]) -> None:
        super().__init__(calls_per_s=1.0, items_per_s=1.0)
        self._verdict = verdict
        self._calls = 0

    def arrives(self, items: int, now_s: float) -> Verdict:
        self._calls += 1
        return self._verdict(self._calls - 1)


class LimitedRoute:
    def __init__(
        self,
        limiter: Limiter,
        new_pacer: Callable[[], Pacer] = Pacer,
        *,
        lanes: int = 4096,
        concurrency: int = 64,
        revalidate_s: float = 1e9,
        shares_all: bool = False,
        store: Store | None = None,
        upstream: LimitedUpstream | None = None,
    ) -> None:
        self.upstream = upstream or LimitedUpstream(limiter)
        client: Any = self.upstream
        self.metrics = metrics = Metrics()
        cache = Cache(Memory(10_000_000), store or NoStore(), metrics, ttl_s=None, timeout_s=60)
        validations = Validations(ttl_s=revalidate_s, clock=asyncio.get_running_loop().time)
        self.batcher = Batcher(
            metrics,
            WriteThrough(cache, validations, clock=lambda: 0.0),
            window_s=0.01,
            concurrency=concurrency,
            timeout_s=1000,
            max_queued_items=10**5,
            max_queued_bytes=10**8,
            max_incoming_bytes=10**8,
            room=cache.room,
            lanes=Lanes(lambda _upstream, _model: new_pacer(), max_lanes=lanes),
        )
        access = Access(shares_all=shares_all, owns_key=False, client_keys=None, validations=validations)
        responses = ResponseBuilder(cache.memory, metrics, reports_full_usage=False)
        origin = Origin(name="o", provider=GENERIC, routes=Routes("http://upstream/v1"), client=client)
        self.fetcher = Fetcher(
            cache, self.batcher, validations, timeout_s=1000, spending=Spending(), shares_all=shares_all
        )
        self._route = EmbeddingsRoute(
            cache,
            self.fetcher,
            Router(origin),
            bodies=BodyReader(metrics, max_bytes=10**6, max_held_bytes=10**8),
            responses=responses,
            fast_path=FastPath(cache, responses, metrics=metrics, access=access),
            metrics=metrics,
            access=access,
            validations=validations,
            patience=Patience(WAIT_S, 4, asyncio.get_running_loop().time),
            canary=None,
            is_draining=lambda: False,
        )

    async def send(
        self, items: list[str], key: str = "k", *, fields: dict[str, str] | None = None, **more: Any
    ) -> Answer:
        """A response 200 must have the vector of each item."""
        began_s = asyncio.get_running_loop().time()
        fields = {"Authorization": f"Bearer {key}", **(fields or {})}
        request: Any = FakeRequest(items, fields, **more)
        progress = Progress("id")
        try:
            response = await self._route.handle(request, progress)
        except ProxyError as error:
            headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
            response = Response(status=error.status, body=error.body(), headers=headers)
        content = content_of(response)
        status = response.status if response.status != 200 else error_status(content)  # perhaps inside a 200
        if status == 200:
            data = orjson.loads(content)["data"]
            assert [datum["embedding"][0] for datum in data] == [len(item) for item in items]
        return Answer(
            status=status,
            headers=dict(response.headers),
            took_s=asyncio.get_running_loop().time() - began_s,
            held_s=progress.held_s,
        )

    async def assert_idle(self) -> None:
        """Nothing is left of any request."""
        await asyncio.sleep(1)
        assert repr(self.batcher) == _IDLE

    def start(self, items: list[str], key: str = "k", **more: Any) -> "asyncio.Task[Answer]":
        return asyncio.create_task(self.send(items, key, **more))
