"""A plain HTTP client of a proxy, for tests that look at bytes and headers."""

import asyncio
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pybase64
from aiohttp import ClientSession
from multidict import CIMultiDictProxy
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from yarl import URL

from proxy.app import Running

KEY = "Bearer sk-test"


@dataclass
class UpstreamResponse:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = orjson.loads(self.body)
        return parsed

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def cache(self) -> str:
        return self.headers["X-Cache"]

    @property
    def embeddings(self) -> list[Any]:
        return [datum["embedding"] for datum in self.json["data"]]

    @property
    def vectors(self) -> list[list[float]]:
        """The embeddings as numbers, whatever their encoding."""
        return [
            np.frombuffer(pybase64.b64decode(embedding), "<f4").tolist() if isinstance(embedding, str) else embedding
            for embedding in self.embeddings
        ]


class HttpClient:
    """A client of any proxy, of which only the addresses are known."""

    def __init__(self, session: ClientSession, base_url: str, admin_url: str) -> None:
        self.session = session
        self.origin = base_url.removesuffix("/v1")
        self.admin_url = admin_url

    async def send(
        self, method: str, target: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> UpstreamResponse:
        async with self.session.request(
            method,
            URL(self.origin + target, encoded=True),  # as it is given
            data=io.BytesIO(body) if body else None,
            headers=headers,
            allow_redirects=False,
        ) as response:
            return UpstreamResponse(response.status, response.headers, await response.read())

    async def post(
        self, body: bytes | dict[str, Any], *, target: str = "/v1/embeddings", key: str | None = KEY, **headers: str
    ) -> UpstreamResponse:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        fields = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        if key is not None:
            fields["Authorization"] = key
        return await self.send("POST", target, body=content, headers=fields)

    async def embed(
        self, given: Any, *, model: str = "m", headers: dict[str, str] | None = None, **fields: Any
    ) -> UpstreamResponse:
        return await self.post({"model": model, "input": given, **fields}, **(headers or {}))

    async def samples(self) -> list[Sample]:
        async with self.session.get(self.admin_url + "/metrics") as response:
            families = text_string_to_metric_families(await response.text())
        return [sample for family in families for sample in family.samples]

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels, whatever others they have."""
        return sum(
            sample.value
            for sample in await self.samples()
            if sample.name == name and labels.items() <= sample.labels.items()
        )


class Client(HttpClient):
    """A client of a proxy in this process."""

    def __init__(self, session: ClientSession, proxy: Running) -> None:
        super().__init__(session, proxy.base_url, proxy.admin_url)
        self.proxy = proxy


async def raw(client: Client, request: bytes, *, end: bytes = b"") -> bytes:
    """Send bytes, and read until the proxy closes or, if given, until ``end``."""
    host, port = client.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await (reader.readuntil(end) if end else reader.read())
    writer.close()
    await writer.wait_closed()
    return answer
