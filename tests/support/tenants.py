"""Two tenants of one proxy, and upstreams that repeat in every response all that they received."""

import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from http import HTTPStatus
from urllib.parse import unquote

import orjson
from aiohttp import WSMsgType, web

from tests.support.load_runner import ReferenceServer, asked_by
from tests.support.oracle import Request
from tests.support.reference import Asked, Reply
from tests.support.scenarios import Scenario, random_scenario
from tests.support.scripted import Call

TENANTS = ("ann", "bob")
_CANARY = re.compile(r"canary-[a-z.-]+")
_HEARD = "heard"  # the field of a body in which it is repeated
# Credentials that end so are what the reference knows by these names.
_SPECIAL = frozenset({"expired", "guest", "limited"})
_IN_QUERY = ("key", "k%65y", "api_key")
_STATUS = re.compile(r"/status/(\d{3})")
_SHARED_PAGE = "https://shared.example"


def client_key(tenant: str) -> str:
    """A tenant's key to a proxy that has a list of its clients."""
    return f"ep-canary-{tenant}-key"


def client_keys() -> str:
    """The file of these."""
    return "".join(f"{name} sha256:{sha256(client_key(name).encode()).hexdigest()} 2026-01-01\n" for name in TENANTS)


# --- what they ask


def two_tenants(rng: random.Random, scope: str, *, waves: int) -> Scenario:
    """A scenario in which each client has credentials of its own, and asks on other routes, too."""
    scenario = random_scenario(rng, waves=waves, clients=TENANTS)
    changed = []
    for wave in scenario.waves:
        requests = [_personal(rng, scope, request) for request in wave.requests]
        requests += [_visit(rng, scope, rng.choice(TENANTS)) for _ in range(rng.choice((0, 1, 2, 4)))]
        rng.shuffle(requests)
        changed.append(replace(wave, requests=tuple(requests)))
    return replace(scenario, waves=tuple(changed))


def one_beside_many(rng: random.Random, scope: str, *, waves: int) -> Scenario:
    """In each wave one request of Ann's, which stays to its end, and many of Bob's."""
    changed = []
    scenario = two_tenants(rng, scope, waves=waves)
    for wave in scenario.waves:
        bobs = [request for request in wave.requests if request.client == "bob"]
        anns = [request._replace(leaves_after=None) for request in wave.requests if _is_comparable(request)]
        requests = [*anns[:1], *bobs]
        rng.shuffle(requests)
        changed.append(replace(wave, requests=tuple(requests)))
    return replace(scenario, waves=tuple(changed))


def without(scenario: Scenario, tenant: str) -> Scenario:
    waves = (
        replace(wave, requests=tuple(request for request in wave.requests if request.client != tenant))
        for wave in scenario.waves
    )
    return replace(scenario, waves=tuple(waves))


def _is_comparable(request: Request) -> bool:
    """Whoever has no credentials is one and the same, and what a page may read is learned from responses to others of
    its origin."""
    has_key = "canary-ann-key" in f"{request.target} {request.headers}"
    return request.client == "ann" and is_judged(request) and has_key and request.headers.get("Origin") != _SHARED_PAGE


def is_judged(request: Request) -> bool:
    """Whether the reference says what is right."""
    return request.method == "POST" and "/embeddings" in request.target


def _personal(rng: random.Random, scope: str, request: Request) -> Request:
    """The same request with the client's own credentials, and its name in all the places that a header has."""
    headers, target, client = dict(request.headers), request.target, request.client
    for shown in [name for name in ("Authorization", "api-key") if name in headers]:
        scheme, _, kind = headers.pop(shown).rpartition(" ")
        credential = f"canary-{client}-key.{kind}"
        if scope == "owned" or rng.random() < 0.3:
            target = _with_field(target, f"{rng.choice(_IN_QUERY)}={credential}")
        else:
            headers[shown] = f"{scheme} {credential}".strip()
    if scope == "owned":
        headers |= {"Authorization": f"Bearer {client_key(client)}", "X-Auth-Token": f"canary-{client}-key"}
    for name, value in (
        ("User-Agent", f"agent canary-{client}"),
        ("Cookie", f"session=canary-{client}-key"),
        ("Origin", rng.choice((f"https://canary-{client}.example", _SHARED_PAGE))),
        ("Access-Control-Request-Headers", f"x-canary-{client}"),
        ("X-Note", f"canary-{client}"),
    ):
        if rng.random() < 0.1:
            headers[name] = value
    return request._replace(headers=headers, target=target)


def _visit(rng: random.Random, scope: str, client: str) -> Request:
    """Something on another route."""
    text = f"canary-{client}"
    key = client_key(client) if scope == "owned" else f"{text}-key.team"
    headers = {"Authorization": f"Bearer {key}", "X-Note": text, "Cookie": f"session={text}-key"}
    query = f"of={text}&{rng.choice(_IN_QUERY)}={text}-key"
    status = rng.choice((200, 307, 401, 403, 404, 429, 500))
    json = {"Content-Type": "application/json"}
    body = orjson.dumps({"model": "plain", "input": text, "messages": [text]})
    preflight = {
        "Origin": rng.choice((f"https://{text}.example", _SHARED_PAGE)),
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": f"authorization, x-{text}",
    }
    asked: Sequence[tuple[str, str, dict[str, str], bytes]] = (
        ("GET", f"/v1/files/{text}?{query}", headers, b""),
        ("GET", f"/v1/status/{status}?{query}", headers, b""),
        ("POST", f"/v1/chat/completions?{query}", headers | json, body),
        ("POST", f"/v1/status/{status}/embed?{query}", headers | json, body),
        ("OPTIONS", f"/v1/embeddings?{query}", preflight, b""),
        ("RAW", "", {}, f"POST /v1/embeddings?{query} HTTP/1.1\r\nX-{text}\0: {text}\r\n\r\n{text}".encode()),
        ("RAW", "", {}, f"{text} {text} HTTP/1.{text}\r\n\r\n".encode()),
        ("WEBSOCKET", f"/v1/realtime/status/101?{query}", headers, text.encode()),
        ("WEBSOCKET", f"/v1/realtime/status/{status}?{query}", headers, text.encode()),
    )
    method, target, fields, content = rng.choice(asked)
    return Request(client, target, fields, content, None, method)


def _with_field(target: str, field: str) -> str:
    return f"{target}{'&' if '?' in target else '?'}{field}"


# --- what answers


@dataclass(kw_only=True)
class LoudServer(ReferenceServer):
    """The reference for the embeddings route; on others, what it was told. ``secrets`` must not reach it."""

    secrets: re.Pattern[str] | None = None
    told_secrets: list[str] = field(default_factory=list)

    def reply_to(self, call: Call) -> Reply:
        reply = self.reference.reply(known(asked_by(call)), self.regime)
        if reply.cut is not None:
            return reply
        return replace(reply, headers={**reply.headers, **_head(call, reply.status)}, body=_loud(reply.body, call))

    async def __call__(self, call: Call) -> web.StreamResponse:
        told = f"{call.target} {dict(call.headers)}"
        if self.secrets is not None and self.secrets.search(told):
            self.told_secrets.append(told)
        if call.method == "POST" and "/embeddings" in call.target:
            response = await super().__call__(call)
            if not response.prepared:
                response.set_status(response.status, f"OK {_heard(call)}")
            return response
        status = int(match[1]) if (match := _STATUS.search(call.target)) else 200
        if call.headers.get("Upgrade") and status == HTTPStatus.SWITCHING_PROTOCOLS:
            return await _talk(call)
        body = orjson.dumps({"said": f"{told} {call.body.decode(errors='replace')}"})
        return web.Response(status=status, body=body, headers=_head(call, status), reason=f"OK {_heard(call)}")


def known(asked: Asked) -> Asked:
    """The same as the reference knows it, which reads no credentials in queries."""
    path, _, query = asked.target.partition("?")
    fields = query.split("&") if query else []
    found = [field for field in fields if field.partition("=")[0] in _IN_QUERY]
    rest = "&".join(field for field in fields if field not in found)
    headers = {name: value for name, value in asked.headers.items() if name not in {"authorization", "api-key"}}
    name = asked.tenant or "".join(unquote(field).partition("=")[2] for field in found[:1])
    if name:
        kind = name.rpartition(".")[2]
        headers["authorization"] = f"Bearer {kind if kind in _SPECIAL else name}"
    return replace(asked, target=f"{path}?{rest}" if rest else path, headers=headers)


def judged(request: Request) -> Request:
    """A request as `tests.support.oracle` knows it."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    asked = known(Asked(target=request.target, headers=headers, body=request.body))
    # The oracle looks for this one by its usual name.
    directives = {"Cache-Control": headers["cache-control"]} if "cache-control" in headers else {}
    return request._replace(target=asked.target, headers={**asked.headers, **directives})


def _heard(call: Call) -> str:
    """All canaries in what the upstream was told, in a text that a header can have."""
    told = f"{call.target} {dict(call.headers)} {call.body.decode(errors='replace')}"
    return " ".join(sorted(set(_CANARY.findall(told))))


def _head(call: Call, status: int) -> Mapping[str, str]:
    heard = _heard(call)
    head = {
        "Content-Type": "application/json",
        "X-Heard": heard,
        "ETag": f'"{heard}"',
        "Server-Timing": f'call;desc="{heard}"',
        "Set-Cookie": f"heard={heard}",
        "WWW-Authenticate": f'Bearer error="{heard}"',
        "Access-Control-Allow-Headers": heard,
        "Content-Location": f"/v1/heard?of={heard.replace(' ', '+')}",
    }
    if "Origin" in call.headers:
        head |= {"Access-Control-Allow-Origin": call.headers["Origin"], "Vary": "Origin"}
    if 300 <= status < 400:
        head["Location"] = head["Content-Location"]
    return head


def _loud(body: bytes, call: Call) -> bytes:
    fields = orjson.loads(body)
    for part in (fields, fields.get("error"), fields.get("usage")):
        if type(part) is dict:
            part[_HEARD] = _heard(call)
    return orjson.dumps(fields)


async def _talk(call: Call) -> web.StreamResponse:
    socket = web.WebSocketResponse(protocols=["realtime"])  # or aiohttp would log what else is offered
    socket.headers["X-Heard"] = _heard(call)
    await socket.prepare(call.request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(f"{message.data} {_heard(call)}")
    return socket


# --- what is seen by others


@contextmanager
def listening() -> Iterator[list[str]]:
    """What is logged meanwhile, by whomever and at any level."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(self.format(record))

    listener, root = Listener(), logging.getLogger()
    listener.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    level = root.level
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)
    try:
        yield said
    finally:
        root.removeHandler(listener)
        root.setLevel(level)
