"""Web pages as clients of a proxy, and upstreams that let them read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from proxy.access import client_keys
from proxy.config.settings import UpstreamSetting
from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.scripted import Call, ScriptedUpstream

PAGE, OTHER, UNKNOWN = "https://app.example.com", "http://localhost:3000", "https://unknown.example"
OWN_EXPOSED = "X-Cache, Cache-Status, X-Cache-Saved-Tokens"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}
ALLOW_ORIGIN = "Access-Control-Allow-Origin"
Fields = dict[str, str]
Policy = Callable[[str | None], Fields]


def reflects(origin: str | None) -> Fields:
    """As Gemini does."""
    return (
        {} if origin is None else {ALLOW_ORIGIN: origin, "Access-Control-Allow-Credentials": "true", "Vary": "Origin"}
    )


def everyone(_: str | None) -> Fields:
    """As OpenAI does."""
    return {ALLOW_ORIGIN: "*", "Access-Control-Expose-Headers": "X-Request-ID"}


def everyone_who_asks(origin: str | None) -> Fields:
    """As Starlette does, and so vLLM."""
    return {} if origin is None else {ALLOW_ORIGIN: "*"}


def listed(origin: str | None) -> Fields:
    """As a server with a list does."""
    allowed = {ALLOW_ORIGIN: origin} if origin in {PAGE, OTHER} else {}
    return {"Vary": "Accept-Encoding, origin", **allowed}


def nobody(_: str | None) -> Fields:
    return {}


POLICIES = [reflects, everyone, everyone_who_asks, listed, nobody]


class Browsable:
    """An upstream with a CORS policy, which answers preflights."""

    def __init__(self, upstream: ScriptedUpstream, policy: Policy) -> None:
        self.upstream = upstream
        self.policy = policy
        upstream.reply = self

    def __call__(self, call: Call) -> web.StreamResponse:
        return self.answer(call, self.upstream.embed(call) if call.method == "POST" else web.Response(status=204))

    def answer(self, call: Call, response: web.Response) -> web.Response:
        response.headers.extend(self.policy(call.headers.get("Origin")))
        if call.method == "OPTIONS":
            response.headers["Access-Control-Allow-Methods"] = "POST"
            response.headers["Access-Control-Allow-Headers"] = "authorization, content-type"
        return response

    def unavailable(self, call: Call) -> web.Response:
        return self.answer(call, web.json_response({"error": {"message": "down"}}, status=503))

    def failing(self, call: Call) -> web.Response:
        return self.answer(call, web.json_response({"error": {"message": "no"}}, status=400))


def cors(answer: UpstreamResponse) -> dict[str, list[str]]:
    """A response's CORS fields, Vary among them."""
    return {
        name.lower(): answer.headers.getall(name)
        for name in answer.headers
        if name.lower().startswith("access-control-") or name.lower() == "vary"
    }


async def ask(client: Client, given: Any, origin: str | None, **fields: str) -> UpstreamResponse:
    return await client.post({"model": "m", "input": given}, **({"Origin": origin} if origin else {}), **fields)


async def preflight(client: Client, target: str = "/v1/embeddings", **changes: str | None) -> UpstreamResponse:
    fields = {**PREFLIGHT, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return await client.send("OPTIONS", target, headers={name: value for name, value in fields.items() if value})


def abort(call: Call) -> web.Response:
    assert call.request.transport is not None
    call.request.transport.abort()
    return web.Response()


async def owning(
    start_proxy: StartProxy, upstream: ScriptedUpstream, folder: Path, **changes: Any
) -> tuple[Client, str]:
    """A proxy that holds the upstream's key, and a key of a client's."""
    key = client_keys.add(folder / "clients", "app")
    own = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-owned")
    return await start_proxy(upstream=own, client_keys=folder / "clients", **changes), f"Bearer {key}"
