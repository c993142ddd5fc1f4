"""A scripted upstream: a real HTTP server that computes vectors, records requests, and can misbehave."""

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pybase64
import xxhash
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from numpy.typing import NDArray

Reply = Callable[["Call"], Awaitable[web.StreamResponse] | web.StreamResponse]


def vector(model: str, item: object, dimensions: int) -> NDArray[np.float32]:
    """What a model makes of an item: arbitrary, and different for every model, item and length."""
    seed = xxhash.xxh3_64_intdigest(orjson.dumps([model, item, dimensions]))
    return np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)


def items_of(given: Any) -> list[Any]:
    if isinstance(given, list) and given and not isinstance(given[0], int):
        return given
    return [given]


@dataclass
class Call:
    """One request as it reached the upstream."""

    method: str
    target: str
    headers: CIMultiDictProxy[str]
    body: bytes
    request: web.BaseRequest

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = orjson.loads(self.body)
        return parsed

    @property
    def items(self) -> list[Any]:
        return items_of(self.json["input"])


@dataclass
class ScriptedUpstream:
    """``reply`` answers every call; `embed` is the well-behaved one, which tests change and put back."""

    base_url: str = ""
    dimensions: int = 16
    # How floats are written: shortest (float32 text), widened (float64 text of the float32), wide (true float64).
    floats: str = "shortest"
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of good answers
    calls: list[Call] = field(default_factory=list)
    reply: Reply | None = None

    @property
    def items(self) -> Counter[str]:
        """How often each item was sent on the embeddings route, by its JSON."""
        return Counter(orjson.dumps(item).decode() for call in self.calls for item in call.items)

    def answer_to(self, asked: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """A good answer to a request's body, with some fields changed."""
        items = items_of(asked["input"])
        dimensions = asked.get("dimensions") or self.dimensions
        data = [
            {"object": "embedding", "index": i, "embedding": self.embedding(asked, item, dimensions)}
            for i, item in enumerate(items)
        ]
        tokens = sum(len(str(item)) for item in items)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": asked["model"], "usage": usage} | self.extra | changes

    def embedding(self, asked: dict[str, Any], item: object, dimensions: int) -> str | list[float]:
        values = vector(asked["model"], item, dimensions)
        if asked.get("encoding_format") == "base64":
            return pybase64.b64encode(values.astype("<f4").tobytes()).decode()
        if self.floats == "shortest":
            return [float(str(value)) for value in values]
        widened: list[float] = values.astype(np.float64).tolist()
        return widened if self.floats == "widened" else [value * (1 + 1e-12) for value in widened]

    def embed(self, call: Call, **changes: Any) -> web.Response:
        return web.json_response(self.answer_to(call.json, **changes), headers={"x-ratelimit-remaining-requests": "7"})

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        call = Call(request.method, request.raw_path, request.headers, await request.read(), request)
        self.calls.append(call)
        replied = (self.reply or self.embed)(call)
        return replied if isinstance(replied, web.StreamResponse) else await replied

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["ScriptedUpstream"]:
        def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
            return web.BaseRequest(
                message, payload, protocol, writer, task, protocol._loop, client_max_size=256 * 1024**2
            )

        server = web.Server(self._handle, request_factory=make_request, access_log=None, auto_decompress=False)
        runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            self.base_url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}/v1"
            yield self
        finally:
            await runner.cleanup()


def error_reply(status: int, body: bytes | dict[str, Any], **headers: str) -> Reply:
    """Answer every call with an error."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    fields = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    fields.setdefault("Content-Type", "application/json")
    return lambda _: web.Response(status=status, body=content, headers=fields)
