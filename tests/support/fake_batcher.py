"""A batcher without calls: it keeps the requests that it is given, and a test says their outcomes."""

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.errors import ProxyError
from proxy.fetch.client_wait import ClientWait
from proxy.fetch.outcomes import EmbedResult, Outcome
from proxy.fetch.request import FetchRequest
from proxy.fetch.write_through import WriteThrough
from proxy.protocol.vectors import DType, Vector
from tests.support.dict_store import opened

VECTOR = Vector(DType.FLOAT32, b"\0\0\x80?")


def embedded(request: FetchRequest, **changes: Any) -> EmbedResult:
    """A good response to a call for this request alone: each item has the same vector, and costs 1."""
    billed = len(request.keys)
    result = EmbedResult(
        vectors=[VECTOR for _ in request.keys],
        tokens=[1 for _ in request.keys],
        model="m",
        usage={"prompt_tokens": billed, "total_tokens": billed},
        extra_fields={},
        status=200,
        headers=CIMultiDictProxy(CIMultiDict()),
        relayed=CIMultiDict(),
        is_unmerged=True,
        is_own_body=request.is_whole,
        by_origin=True,
    )
    return replace(result, **changes)


class FakeBatcher:
    """``outcome`` is what a request gets, once it is recorded by ``write_through``; an error is raised. They wait for
    ``gate``, which is open at first."""

    write_through: WriteThrough

    def __init__(self, outcome: Callable[[FetchRequest], Outcome | ProxyError] = embedded) -> None:
        self.outcome = outcome
        self.requests: list[FetchRequest] = []
        self.max_items = 100  # of a call
        self.gate = opened()

    @property
    def calls(self) -> list[list[str]]:
        """The items of each request, in the order in which they were submitted."""
        return [request.items for request in self.requests]

    def split(self, request: FetchRequest) -> list[FetchRequest]:
        starts = range(0, len(request.keys), self.max_items)
        return [request.part(slice(start, start + self.max_items)) for start in starts]

    async def wait(self, wait: ClientWait) -> None:
        await wait.claim.wait()

    async def submit(self, request: FetchRequest, wait: ClientWait) -> Outcome:
        self.requests.append(request)
        asked = self.write_through.call_starts()
        await self.gate.wait()
        outcome = self.outcome(request)
        if isinstance(outcome, ProxyError):
            raise outcome
        self.write_through.note([request], [outcome], asked)
        if isinstance(outcome, EmbedResult):
            (outcome,) = await self.write_through.write([request], [outcome], asked)
        return outcome
