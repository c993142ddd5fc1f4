"""An upstream whose model can change, in every way that a canary tells apart."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import orjson
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from numpy.typing import NDArray

from proxy.errors import ProxyError, UpstreamTimeout, UpstreamUnreachable
from proxy.protocol.providers import PROVIDERS
from proxy.upstream.client import UpstreamClient, UpstreamResponse
from proxy.upstream.router import Origin
from proxy.upstream.urls import Routes
from tests.support.scripted import Call, items_of, vector

URL = "https://api.example.com/v1/embeddings"


@dataclass
class DriftingModel:
    weights: str = "w1"
    dimensions: int = 64
    name: str | None = None  # in responses; None: the requested one
    last_bits: int = 0  # how many units in the last place each number is off
    noise: float = 0.0  # how much the composition of a batch moves a vector
    status: int = 200
    error: type[ProxyError] | None = None
    is_hung: bool = False
    calls: list[dict[str, Any]] = field(default_factory=list)
    headers: list[CIMultiDict[str]] = field(default_factory=list)

    def _embedding(self, item: object, batch: int) -> NDArray[np.float32]:
        values = vector(self.weights, item, self.dimensions)
        values = values + np.float32(self.noise * batch) * vector("noise", item, self.dimensions)
        for _ in range(self.last_bits):
            values = np.nextafter(values, np.float32(np.inf))
        return values.astype(np.float32)

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        items = items_of(asked["input"])
        data = [
            {"object": "embedding", "index": i, "embedding": self._embedding(item, len(items)).astype(float).tolist()}
            for i, item in enumerate(items)
        ]
        usage = {"prompt_tokens": 7 * len(items), "total_tokens": 7 * len(items)}
        return {"object": "list", "data": data, "model": self.name or asked.get("model", ""), "usage": usage}

    def reply(self, call: Call) -> web.Response:
        """For `tests.support.scripted.ScriptedUpstream`."""
        self.calls.append(call.json)
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        return web.json_response(self.answer(call.json))

    async def embed(self, url: str, headers: CIMultiDict[str], body: bytes, **_: object) -> UpstreamResponse:
        """As `UpstreamClient.embed`."""
        asked = orjson.loads(body)
        self.calls.append({"url": url, **asked})
        self.headers.append(headers)
        if self.is_hung:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error("no")
        content = orjson.dumps(self.answer(asked) if self.status == 200 else {"error": {"message": "no"}})
        fields = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json"}))
        return UpstreamResponse(status=self.status, reason="", headers=fields, body=content)

    def origin(self, provider: str = "generic", **changes: Any) -> Origin:
        row = PROVIDERS[provider]
        routes = Routes("https://api.example.com/v1", row, is_default=True)
        return Origin(name="up", provider=row, routes=routes, client=cast("UpstreamClient", self), **changes)


# How it changes, and the verdict's value.
CHANGES: dict[str, tuple[Callable[[DriftingModel], None], str]] = {
    "nothing": (lambda model: None, "same-bits"),
    "last bits": (lambda model: setattr(model, "last_bits", 1), "last-bits"),
    "weights": (lambda model: setattr(model, "weights", "w2"), "drifted"),
    "dimensions": (lambda model: setattr(model, "dimensions", 32), "dimensions"),
    "name": (lambda model: setattr(model, "name", "m-2"), "other-model"),
    "500": (lambda model: setattr(model, "status", 500), "failed"),
    "503": (lambda model: setattr(model, "status", 503), "failed"),
    "429": (lambda model: setattr(model, "status", 429), "failed"),
    "401": (lambda model: setattr(model, "status", 401), "failed"),
    "unreachable": (lambda model: setattr(model, "error", UpstreamUnreachable), "failed"),
    "timeout": (lambda model: setattr(model, "error", UpstreamTimeout), "failed"),
    "hangs": (lambda model: setattr(model, "is_hung", True), "failed"),
}
