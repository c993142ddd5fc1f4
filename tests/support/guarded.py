"""An upstream that checks credentials, and proxies in front of it."""

from aiohttp import web

from tests.support.scripted import Call, ScriptedUpstream

REVALIDATE_S = 600.0
INVALID = b'{"error":{"message":"Incorrect API key"}}'


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Guarded:
    """An upstream that accepts some keys, and refuses connections while it is down."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self.keys = {"Bearer first", "Bearer second", "Bearer owned"}
        self.is_down = False

    def __call__(self, call: Call) -> web.StreamResponse:
        if self.is_down:
            transport = call.request.transport
            assert transport is not None
            transport.abort()
            return web.Response()
        if call.headers.get("Authorization") not in self.keys:
            return web.Response(status=401, body=INVALID, content_type="application/json")
        return self._upstream.embed(call)
