"""An upstream's HTTP client without HTTP: it keeps the calls that it is given, and responds as a test says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.protocol.provider import Provider
from proxy.protocol.providers import GENERIC
from proxy.upstream.client import UpstreamResponse
from proxy.upstream.flow_control import ResponseFlow
from proxy.upstream.router import Origin
from proxy.upstream.urls import Routes
from tests.support.dict_store import opened


@dataclass(frozen=True, kw_only=True)
class SentCall:
    url: str
    headers: CIMultiDict[str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def texts(self) -> list[str]:
        given = self.json["input"]
        return [given] if isinstance(given, str) else given


def response(status: int, body: Any, **headers: str) -> UpstreamResponse:
    """One with ``body`` as JSON, unless it is bytes."""
    fields = CIMultiDictProxy(CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}))
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return UpstreamResponse(status=status, reason="", headers=fields, body=content)


def embeddings(call: SentCall, **changes: Any) -> dict[str, Any]:
    """The body of a valid response: the vector of a text is its length and 1, and each of its characters costs 1."""
    texts = call.texts
    data = [{"index": i, "embedding": [len(text), 1]} for i, text in enumerate(texts)]
    tokens = sum(map(len, texts))
    return {"data": data, "model": "m", "usage": {"prompt_tokens": tokens, "total_tokens": tokens}} | changes


def good(call: SentCall) -> UpstreamResponse:
    return response(200, embeddings(call))


class FakeClient:
    """``reply`` responds to each call, or raises. Calls arrive, and wait for ``gate``, which is open at first."""

    def __init__(self, reply: Callable[[SentCall], UpstreamResponse] = good) -> None:
        self.reply = reply
        self.calls: list[SentCall] = []
        self.gate = opened()

    async def embed(
        self, url: str, headers: CIMultiDict[str], body: bytes, *, items: int, flow: ResponseFlow
    ) -> UpstreamResponse:
        call = SentCall(url=url, headers=headers.copy(), body=body)
        assert len(call.texts) == items
        self.calls.append(call)
        await self.gate.wait()
        replied = self.reply(call)
        await flow.received(len(replied.body))
        return replied


def origin_of(client: FakeClient, name: str = "one", *, provider: Provider = GENERIC, key: str | None = None) -> Origin:
    """An upstream that ``client`` calls, at a host of its name."""
    as_client: Any = client
    return Origin(name=name, provider=provider, routes=Routes(f"http://{name}/v1", provider), client=as_client, key=key)


async def always_room() -> None:
    """`Slots` waits for this before each call."""
