"""A response has the entries that count when it is made."""

import asyncio

import orjson

from proxy.cache.entry import Entry
from proxy.embeddings.progress import Progress
from proxy.fetch.request import FetchRequest
from proxy.fetch.result import FetchResult
from proxy.protocol.records import Record
from proxy.protocol.vectors import DType, Vector
from proxy.turns import FEW_KEYS
from tests.support.content import content_of
from tests.support.fake_request import FakeRequest
from tests.support.limited_route import LimitedRoute
from tests.support.limiters import Limiter


async def test_the_store_may_name_the_first_record_of_a_key_while_a_large_request_waits_for_its_turn() -> None:
    route = LimitedRoute(Limiter(calls_per_s=1e6, items_per_s=1e6))
    fetch = route.fetcher.fetch
    vector = Vector(DType.FLOAT32, b"\0\0\x80?" * 2)
    winner = Record(vector=vector, model="m", tokens=1, tokens_exact=True, stored_at_s=0)

    async def fetch_and_hear_late(request: FetchRequest) -> FetchResult:
        fetched = await fetch(request)
        entry = fetched.entries[request.keys[0]]
        asyncio.get_running_loop().call_soon(entry.set_successor, Entry.of(winner))
        return fetched

    route.fetcher.fetch = fetch_and_hear_late  # type: ignore[method-assign]
    items = ["x" * (n + 2) for n in range(FEW_KEYS + 1)]
    request = FakeRequest(items, {"Authorization": "Bearer k"})
    response = await route._route.handle(request, Progress("id"))  # type: ignore[arg-type]
    content = content_of(response)
    assert orjson.loads(content)["data"][0]["embedding"] == [1.0, 1.0]
