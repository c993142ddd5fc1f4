"""Which requests are served: a matrix of keys, hits and scopes, with the upstream up and down."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSServerHandshakeError, web

from proxy.access import client_keys
from proxy.access.validations import CredentialId, CredentialScope, Validations
from proxy.config.settings import SameModel, UpstreamSetting
from proxy.protocol.identities import Identity
from proxy.protocol.providers import GENERIC, PROVIDERS
from proxy.upstream.router import Origin
from proxy.upstream.urls import Routes
from tests.conftest import StartProxy
from tests.e2e.test_stampede import waiting
from tests.support.client import Client, UpstreamResponse, raw
from tests.support.gate import Gate
from tests.support.scripted import Call, ScriptedUpstream, error_reply

REVALIDATE_S = 600.0
INVALID = b'{"error":{"message":"Incorrect API key"}}'
CREDENTIAL_ID = CredentialId(b"tenant", b"name")
KINDS = ("valid", "invalid", "revoked", "other tenant", "none", "expired validation")
HITS = ("miss", "partial", "all-hit")
SHARINGS = ("credential", "all", "owned")
STATES = ("up", "down")


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


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guarded(upstream: ScriptedUpstream) -> Guarded:
    upstream.reply = Guarded(upstream)
    return upstream.reply


def expected(kind: str, hit: str, sharing: str, state: str) -> int:  # noqa: PLR0911 - it is the table
    """The status that the rules require."""
    if sharing == "owned":
        if kind in {"invalid", "revoked", "none"}:
            return 401  # the proxy's own list says so, whatever the upstream does
        return 200 if state == "up" or hit == "all-hit" else 502
    if state == "up":
        return 401 if kind in {"invalid", "revoked", "none"} else 200
    if hit != "all-hit":
        return 502
    if kind == "valid" or (kind == "revoked" and sharing == "credential"):
        return 200  # what it stored needed a 2xx, and nobody says otherwise
    if kind == "revoked":
        return 200  # validated a short time ago
    if kind == "expired validation":
        return 200 if sharing == "credential" else 502
    return 502  # nothing in a scope of its own, or in a shared one never validated


CELLS = list(itertools.product(KINDS, HITS, SHARINGS, STATES))


@pytest.mark.parametrize(("kind", "hit", "sharing", "state"), CELLS, ids=["-".join(cell) for cell in CELLS])
async def test_the_key_matrix(
    start_proxy: StartProxy, upstream: ScriptedUpstream, guarded: Guarded, clock: Clock, tmp_path: Path,
    kind: str, hit: str, sharing: str, state: str,
) -> None:  # fmt: skip
    setup = await Setup.make(start_proxy, upstream, clock, tmp_path, sharing)
    first, second = setup.keys
    # Somebody has asked for these before, and in these words so often that the request itself is known.
    for items in (["a", "b"], ["b", "a"], ["b", "a"], ["b", "a"]):
        assert (await setup.ask(first, items)).status == 200
    key = {"invalid": "never-heard-of", "none": None, "other tenant": second}.get(kind, first)
    if kind == "revoked":
        setup.revoke(first, guarded)
    if kind == "expired validation" or (kind == "revoked" and state == "up"):
        clock.now += REVALIDATE_S  # until then the upstream's last word counts
    guarded.is_down = state == "down"
    items = {"miss": ["c", "d"], "partial": ["a", "c"], "all-hit": ["b", "a"]}[hit]
    if kind == "other tenant" and sharing == "credential" and state == "down":
        assert (await setup.ask(key, items)).status == 502
        return
    upstream.calls.clear()
    answer = await setup.ask(key, items)
    status = expected(kind, hit, sharing, state)
    assert answer.status == status, answer.body
    if status == 200:
        assert len(answer.vectors) == len(items)
    elif status == 401 and sharing != "owned":
        assert answer.body == INVALID
    if sharing == "owned":
        assert {call.headers["Authorization"] for call in upstream.calls} <= {"Bearer owned"}
        assert status != 401 or not upstream.calls


class Setup:
    """A proxy in one of the three ways to share, and two clients' keys for it."""

    def __init__(self, client: Client, keys: tuple[str, str], path: Path | None) -> None:
        self._client = client
        self.keys = keys
        self._path = path

    @classmethod
    async def make(
        cls, start_proxy: StartProxy, upstream: ScriptedUpstream, clock: Clock, folder: Path, sharing: str
    ) -> "Setup":
        if sharing != "owned":
            client = await start_proxy(monotonic=clock, shares_all=sharing == "all", revalidate_s=REVALIDATE_S)
            return cls(client, ("first", "second"), None)
        path = folder / "clients"
        keys = client_keys.add(path, "first"), client_keys.add(path, "second")
        setting = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="owned")
        client = await start_proxy(monotonic=clock, upstream=setting, client_keys=path, revalidate_s=REVALIDATE_S)
        return cls(client, keys, path)

    def revoke(self, key: str, guarded: Guarded) -> None:
        if self._path is None:
            guarded.keys.discard(f"Bearer {key}")
            return
        client_keys.revoke(self._path, "first")
        assert self._client.proxy.client_keys is not None
        self._client.proxy.client_keys.reload()

    async def ask(self, key: str | None, items: list[str]) -> UpstreamResponse:
        return await self._client.post({"model": "m", "input": items}, key=None if key is None else f"Bearer {key}")


# --- probes before stored items are served


def sent(upstream: ScriptedUpstream) -> list[list[str]]:
    return [call.items for call in upstream.calls]


async def test_an_unconfirmed_credential_is_probed_with_the_smallest_item(
    start_proxy: StartProxy, upstream: ScriptedUpstream, clock: Clock
) -> None:
    client = await start_proxy(monotonic=clock, revalidate_s=REVALIDATE_S)
    miss = await client.embed(["long text", "abc", "longer text"])
    clock.now += REVALIDATE_S
    hit = await client.embed(["long text", "abc", "longer text"])
    assert (hit.cache, hit.embeddings) == ("HIT", miss.embeddings)
    assert sent(upstream)[1:] == [["abc"]]
    assert hit.json["usage"] == {"prompt_tokens": 3, "total_tokens": 3}  # that much was billed
    assert hit.headers["Cache-Status"] == "embedding-proxy; hit; detail=validated"
    again = await client.embed(["abc"])
    assert (again.headers["Cache-Status"], len(upstream.calls)) == ("embedding-proxy; hit", 2)


async def test_concurrent_requests_share_one_probe(
    start_proxy: StartProxy, upstream: ScriptedUpstream, clock: Clock
) -> None:
    client = await start_proxy(monotonic=clock, revalidate_s=REVALIDATE_S)
    await client.embed(["a", "b"])
    clock.now += REVALIDATE_S
    answers = await asyncio.gather(*(client.embed(["a", "b"]) for _ in range(50)))
    assert {answer.cache for answer in answers} == {"HIT"}
    assert len(upstream.calls) == 2
    assert sorted(answer.json["usage"]["total_tokens"] for answer in answers) == [0] * 49 + [1]


async def test_in_a_shared_scope_the_probe_result_is_used(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(shares_all=True)
    answers = await asyncio.gather(*(client.embed(["long", "a", "longer"]) for _ in range(20)))
    assert len({str(answer.embeddings) for answer in answers}) == 1
    assert sorted(item for call in upstream.calls for item in call.items) == ["a", "long", "longer"]


async def test_in_a_shared_scope_another_clients_validation_does_not_count(
    start_proxy: StartProxy, upstream: ScriptedUpstream, guarded: Guarded
) -> None:
    client = await start_proxy(shares_all=True)
    body = {"model": "m", "input": ["a", "b"]}
    assert (await client.post(body, key="Bearer first")).cache == "MISS"
    assert (await client.post(body, key="Bearer second")).cache == "HIT"
    assert (await client.post(body, key="Bearer third")).status == 401
    assert (await client.post(body | {"model": "n"}, key="Bearer second")).cache == "MISS"


@pytest.mark.parametrize(("status", "purges"), [(401, True), (403, True), (404, True), (429, False), (500, False)])
@pytest.mark.relays_refusals
async def test_which_statuses_end_a_validation(
    start_proxy: StartProxy, upstream: ScriptedUpstream, status: int, purges: bool
) -> None:
    client = await start_proxy()
    await client.embed("a")
    refusal = error_reply(status, b'{"error":"no"}')
    upstream.reply = refusal
    assert (await client.embed("b")).status == status
    asked = len(upstream.calls)
    answer = await client.embed("a")
    assert len(upstream.calls) - asked == purges
    assert answer.status == (status if purges else 200)


async def test_a_refused_model_does_not_affect_others(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy()
    for model in ("m", "n"):
        await client.embed("a", model=model)
    upstream.reply = error_reply(404, b"{}")
    assert (await client.embed("b", model="n")).status == 404
    assert (await client.embed("a", model="m")).cache == "HIT"
    assert (await client.embed("a", model="n")).status == 404


async def test_an_upstream_that_hangs_delays_stored_items_once(
    start_proxy: StartProxy, upstream: ScriptedUpstream, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.embeddings.resolver._PROBE_TIMEOUT_S", 0.05)
    client = await start_proxy(monotonic=clock, revalidate_s=REVALIDATE_S)
    await client.embed("a")
    clock.now += REVALIDATE_S
    gate = asyncio.Event()

    async def held(call: Call) -> web.Response:
        await gate.wait()
        return upstream.embed(call)

    upstream.reply = held
    for _ in range(3):
        answer = await client.embed("a")
        assert answer.headers["Cache-Status"] == "embedding-proxy; hit; detail=unvalidated"
    assert len(upstream.calls) == 2
    gate.set()
    while (await client.embed("a")).headers["Cache-Status"] != "embedding-proxy; hit":
        pass
    assert len(upstream.calls) == 2


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("then", [429, 500, 503, "hangs", "down"])
@pytest.mark.relays_refusals
async def test_a_refused_key_stays_refused_until_the_upstream_accepts_it_again(
    start_proxy: StartProxy, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, status: int, then: object
) -> None:
    if then == "hangs":
        monkeypatch.setattr("proxy.embeddings.resolver._PROBE_TIMEOUT_S", 0.05)
    client = await start_proxy()
    await client.embed("a")
    upstream.reply = error_reply(status, b"{}")
    assert (await client.embed("a", headers={"Cache_Control": "no-cache"})).status == status
    gate = asyncio.Event()

    async def hung(call: Call) -> web.Response:
        await gate.wait()
        return web.Response(status=status)

    def cut(call: Call) -> web.Response:
        assert call.request.transport is not None
        call.request.transport.abort()
        return web.Response()

    upstream.reply = hung if then == "hangs" else cut if then == "down" else error_reply(int(str(then)), b"{}")
    answers = [await client.embed("a") for _ in range(2)]
    assert {answer.status for answer in answers} == {{"hangs": 401, "down": 502}.get(str(then), then)}
    gate.set()
    upstream.reply = None
    while (answer := await client.embed("a")).status != 200:  # the question that hung may be answered only now
        pass
    assert answer.cache == "HIT"


async def test_requests_with_a_refused_item_are_not_serialized(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(shares_all=True)
    gate = Gate(upstream)
    gate.answer = error_reply(400, b"{}")
    requests = [asyncio.create_task(client.embed([f"text {i}", "x"])) for i in range(20)]
    await gate.calls(1)
    await waiting(client, 20)
    gate.open()
    await asyncio.gather(*requests)
    assert {(await request).status for request in requests} == {400}
    # The smallest item once for all of them, then the body of each.
    assert [call.items for call in upstream.calls[:1]] == [["x"]]
    assert sorted(call.items for call in upstream.calls[1:]) == sorted([f"text {i}", "x"] for i in range(20))


async def test_the_probe_detects_a_changed_model(
    start_proxy: StartProxy, upstream: ScriptedUpstream, clock: Clock
) -> None:
    client = await start_proxy(monotonic=clock, revalidate_s=REVALIDATE_S)
    await client.embed(["a", "bb"])
    clock.now += REVALIDATE_S
    upstream.reply = lambda call: upstream.embed(call, model="m-2")
    answer = await client.embed(["a", "bb"])
    assert (answer.cache, answer.json["model"]) == ("MISS", "m-2")
    assert sent(upstream)[1:] == [["a"], ["a", "bb"]]


async def test_only_if_cached_makes_no_upstream_call(
    start_proxy: StartProxy, upstream: ScriptedUpstream, clock: Clock
) -> None:
    client = await start_proxy(monotonic=clock, revalidate_s=REVALIDATE_S)
    await client.embed("a")
    asked = {"Cache_Control": "only-if-cached"}
    assert (await client.embed("a", headers=asked)).cache == "HIT"
    clock.now += REVALIDATE_S
    assert (await client.embed("a", headers=asked)).status == 504
    assert len(upstream.calls) == 1


# --- the proxy has the upstream's key


async def owning(
    start_proxy: StartProxy, upstream: ScriptedUpstream, folder: Path, provider: str = "generic"
) -> tuple[Client, str]:
    key = client_keys.add(folder / "clients", "app")
    own = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-owned", provider=PROVIDERS[provider])
    return await start_proxy(upstream=own, client_keys=folder / "clients"), key


@pytest.mark.parametrize(
    ("provider", "name", "value"), [("openai", "Authorization", "Bearer sk-owned"), ("azure", "api-key", "sk-owned")]
)
async def test_the_upstream_sees_the_proxys_key_and_nothing_of_the_clients(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, provider: str, name: str, value: str
) -> None:
    client, key = await owning(start_proxy, upstream, tmp_path, provider)
    sent_along = {"Cookie": "session=1", "X-Auth-Token": "t", "x_api_key": key, "X-Trace": "kept"}
    sent_along |= {"OpenAI-Organization": "another", "Helicone-Target-Url": "https://evil.example"}
    assert (await client.post({"model": "m", "input": "a"}, key=f"Bearer {key}", **sent_along)).cache == "MISS"
    assert (await client.post({"model": "m", "input": "a", "stream": True}, key=f"Bearer {key}")).cache == "BYPASS"
    upstream.reply = error_reply(200, {"data": []})
    assert (await client.send("GET", "/v1/models", headers={"x-api-key": key})).status == 200
    for call in upstream.calls:
        assert call.headers[name] == value
        everything = " ".join(f"{field}: {said}" for field, said in call.headers.items())
        assert key not in everything
        assert "session=1" not in everything
        assert not {"X-Auth-Token", "OpenAI-Organization", "Helicone-Target-Url"} & set(call.headers)
    assert upstream.calls[0].headers["X-Trace"] == "kept"


@pytest.mark.parametrize("target", ["/v1/embeddings", "/v1/models", "/v1/realtime"])
async def test_requests_without_a_listed_key_are_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, target: str
) -> None:
    client, key = await owning(start_proxy, upstream, tmp_path)
    websocket = {"Upgrade": "websocket", "Connection": "Upgrade"}
    for fields in ({}, {"Authorization": "Bearer x"}, {"Authorization": key}, {"api-key": key + "x"}, websocket):
        answer = await client.send("GET" if fields is websocket else "POST", target, body=b"{}", headers=fields)
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
    assert not upstream.calls


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", ["embeddings", "bypass", "other"])
async def test_the_upstreams_refusal_of_the_proxys_key_is_not_relayed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, status: int, kind: str
) -> None:
    client, key = await owning(start_proxy, upstream, tmp_path)
    upstream.reply = error_reply(status, b'{"error":"Incorrect API key: sk-owned"}')
    body = {"model": "m", "input": "a"} | ({"stream": True} if kind == "bypass" else {})
    target = "/v1/other" if kind == "other" else "/v1/embeddings"
    answer = await client.post(body, target=target, key=f"Bearer {key}")
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_key_refused")
    assert b"sk-owned" not in answer.body


async def test_clients_of_one_proxy_share_entries(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    client, key = await owning(start_proxy, upstream, tmp_path)
    other = client_keys.add(tmp_path / "clients", "other")
    assert client.proxy.client_keys is not None
    client.proxy.client_keys.reload()
    body = {"model": "m", "input": "a"}
    assert [(await client.post(body, key=f"Bearer {one}")).cache for one in (key, other)] == ["MISS", "HIT"]


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_the_upstreams_cookies_go_only_to_the_holder_of_the_key(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, status: int
) -> None:
    """They may be a session that replaces the key."""
    owner, key = await owning(start_proxy, upstream, tmp_path)

    def reply(call: Call) -> web.Response:
        content = upstream.answer_to(call.json) if status == 200 and call.body else {}
        return web.json_response(content, status=status, headers={"Set-Cookie": "session=1"})

    upstream.reply = reply
    for client, bearer in ((owner, f"Bearer {key}"), (await start_proxy(), "Bearer own")):
        answers = [
            await client.post({"model": "m", "input": "x"}, key=bearer),
            await client.post({"model": "m", "input": ["y", "y"]}, key=bearer),
            await client.post({"model": "m", "input": "x", "stream": True}, key=bearer),
            await client.send("GET", "/v1/models", headers={"Authorization": bearer}),
        ]
        assert {answer.status for answer in answers} == {status}
        assert {"Set-Cookie" in answer.headers for answer in answers} == {client is not owner}
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.session.ws_connect(client.origin + "/v1/x", headers={"Authorization": bearer})
        assert ("Set-Cookie" in (refused.value.headers or {})) == (client is not owner)


# --- memory of credentials


def test_validations_are_bounded_and_contain_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.access.validations._MAX_ACCEPTED_BYTES", 50_000)
    monkeypatch.setattr("proxy.access.validations._MAX_REFUSED_BYTES", 50_000)
    validations = Validations(ttl_s=10, clock=lambda: 0.0)
    one = CredentialId(b"one", b"name")
    for n in range(100):
        validations.confirm(CredentialId(bytes([n]), b"name"), CredentialScope("u", "m"), asked_at_s=0.0)
        validations.confirm(one, CredentialScope("u", f"{n}"), asked_at_s=0.0)
        validations.note(CredentialId(b"refused", f"{n}".encode()), CredentialScope("u", "m"), 401)
    validations.confirm(one, CredentialScope("u" * 5000, "m"), asked_at_s=0.0)
    assert len(validations._accepted) < 70
    assert len(validations._refused) <= 10
    assert validations.is_confirmed(one, CredentialScope("u", "99"))
    assert not validations.is_confirmed(one, CredentialScope("u", "1"))
    assert not validations.is_confirmed(one, CredentialScope("u" * 5000, "m"))
    client: Any = None
    origin = Origin(name="o", provider=GENERIC, routes=Routes("http://h"), client=client)
    identity = Identity([("authorization", "Bearer secret")], [], is_signed=False)
    tenant = validations.tenant(identity.credentials)
    credential_id = validations.credential_id(tenant, origin, identity)
    assert credential_id == validations.credential_id(validations.tenant(identity.credentials), origin, identity)
    other = Validations(ttl_s=10, clock=lambda: 0.0)
    assert tenant != other.tenant(identity.credentials)
    assert credential_id.credentials_mac != other.credential_id(tenant, origin, identity).credentials_mac
    assert b"secret" not in credential_id.tenant + credential_id.credentials_mac


def test_a_response_to_a_call_sent_before_a_refusal_confirms_nothing() -> None:
    clock = Clock()
    validations = Validations(ttl_s=100, clock=clock)
    asked_at_s = validations.now()
    clock.now += 1
    validations.note(CREDENTIAL_ID, CredentialScope("u", "m"), 401)
    clock.now += 1
    validations.confirm(CREDENTIAL_ID, CredentialScope("u", "m"), asked_at_s=asked_at_s)
    assert not validations.is_confirmed(CREDENTIAL_ID, CredentialScope("u", "m"))
    validations.confirm(CREDENTIAL_ID, CredentialScope("u", "m"), asked_at_s=validations.now())
    assert validations.is_confirmed(CREDENTIAL_ID, CredentialScope("u", "m"))
    clock.now += 100
    assert not validations.is_confirmed(CREDENTIAL_ID, CredentialScope("u", "m"))


# --- the scope of a validation


async def test_a_deployment_is_validated_separately(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(shares_all=True, provider="azure")
    targets = {name: f"/openai/deployments/{name}/embeddings?api-version=1" for name in ("a", "b")}

    def guard(call: Call) -> web.Response:
        if "/b/" in call.target and call.headers["api-key"] == "second":
            return web.Response(status=401, body=INVALID)
        return upstream.embed(Call("POST", "", call.headers, b'{"model":"m","input":["x"]}', call.request))

    upstream.reply = guard
    body = {"input": ["x"]}
    for target in targets.values():
        assert (await client.post(body, target=target, key=None, api_key="first")).status == 200
    assert (await client.post(body, target=targets["a"], key=None, api_key="second")).cache == "HIT"
    assert (await client.post(body, target=targets["b"], key=None, api_key="second")).status == 401


async def test_a_credential_in_the_query_is_validated_separately(
    start_proxy: StartProxy, upstream: ScriptedUpstream, clock: Clock
) -> None:
    client = await start_proxy(monotonic=clock, revalidate_s=REVALIDATE_S)
    body = {"model": "m", "input": "x"}
    for key in "12":
        assert (await client.post(body, target=f"/v1/embeddings?key={key}", key=None)).status == 200
    clock.now += REVALIDATE_S
    upstream.reply = lambda call: upstream.embed(call) if call.target.endswith("1") else web.Response(status=401)
    assert (await client.post(body, target="/v1/embeddings?key=1", key=None)).status == 200
    assert (await client.post(body, target="/v1/embeddings?key=2", key=None)).status == 401


async def test_a_fallback_validates_no_credential(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    async with ScriptedUpstream().serving() as other:
        first = UpstreamSetting(
            name="one", base_url=upstream.base_url, models=("m",), same_model=(SameModel(upstream="two"),)
        )
        second = UpstreamSetting(name="two", base_url=other.base_url, models=("n",))
        client = await start_proxy(shares_all=True, routed=(first, second))
        body = {"model": "m", "input": "x"}
        assert (await client.post(body, key="Bearer first")).status == 200
        upstream.reply = error_reply(503, {})
        assert (await client.post(body, key="Bearer second")).status == 200
        upstream.reply = error_reply(401, INVALID)
        assert (await client.post(body, key="Bearer second")).status == 401


async def test_an_error_in_a_200_validates_no_credential(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(shares_all=True)
    body = {"model": "m", "input": "x"}
    assert (await client.post(body, key="Bearer first")).status == 200
    upstream.reply = error_reply(200, {"error": {"code": 401}})
    for _ in range(2):
        assert (await client.post(body, key="Bearer bad")).json == {"error": {"code": 401}}


@pytest.mark.parametrize("status", [302, 400, 402, 407, 410])
async def test_any_status_but_2xx_is_a_refusal(
    start_proxy: StartProxy, upstream: ScriptedUpstream, clock: Clock, status: int
) -> None:
    """Gemini responds 400 to an unknown key."""
    client = await start_proxy(monotonic=clock, revalidate_s=REVALIDATE_S)
    await client.embed(["a", "b"])
    clock.now += REVALIDATE_S
    upstream.reply = error_reply(status, INVALID)
    for _ in range(2):
        answer = await client.embed(["a", "b"])
        assert (answer.status, answer.body) == (status, INVALID)


async def test_a_refusal_of_a_relayed_request_counts(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy()
    await client.embed("a")
    upstream.reply = error_reply(401, INVALID)
    assert (await client.embed("a", stream=True)).cache == "BYPASS"
    assert (await client.embed("a")).status == 401


async def test_a_single_item_detects_a_changed_model(
    start_proxy: StartProxy, upstream: ScriptedUpstream, clock: Clock
) -> None:
    client = await start_proxy(monotonic=clock, revalidate_s=REVALIDATE_S)
    await client.embed("a")
    clock.now += REVALIDATE_S
    upstream.reply = lambda call: upstream.embed(call, model="m-2")
    answer = await client.embed("a")
    assert answer.json["model"] == "m-2"
    assert answer.json["usage"]["total_tokens"] == 2  # it was asked twice


async def test_no_cache_is_obeyed_for_every_client(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(shares_all=True)
    body = {"model": "m", "input": ["a", "bb", "ccc"]}
    await client.post(body, key="Bearer first")
    answer = await client.post(body, key="Bearer second", Cache_Control="no-cache")
    assert answer.cache == "MISS"
    assert sent(upstream)[-1] == ["a", "bb", "ccc"]


async def test_a_field_listed_in_connection_is_no_credential(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    client = await start_proxy(shares_all=True)
    head = (
        b"POST /v1/embeddings HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nAuthorization: Bearer k\r\n"
        b"Connection: keep-alive\r\nConnection: close, azureml-model-deployment\r\nazureml-model-deployment: blue\r\n"
        b'Content-Length: 25\r\n\r\n{"model":"m","input":"x"}'
    )
    assert b"X-Cache: MISS" in await raw(client, head)
    blue = await client.post({"model": "m", "input": "x"}, key="Bearer k", azureml_model_deployment="blue")
    assert blue.cache == "MISS"


@pytest.mark.parametrize(
    "fields",
    [
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_a_proxy_with_a_key_and_no_client_keys_refuses_web_pages(
    start_proxy: StartProxy, upstream: ScriptedUpstream, fields: dict[str, str]
) -> None:
    own = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-owned")
    client = await start_proxy(upstream=own)
    assert (await client.embed("x")).status == 200
    for method in ("POST", "OPTIONS", "GET"):
        assert (await client.send(method, "/v1/embeddings", headers=fields, body=b"{}")).status == 401
    assert len(upstream.calls) == 1


async def test_a_key_header_separates_callers(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(shares_all=True, key_headers=frozenset({"x-user"}))
    upstream.reply = lambda call: (
        upstream.embed(call) if call.headers["X-User"] == "A" else web.json_response({}, status=403)
    )
    asked = {"model": "m", "input": "x"}
    assert [(await client.post(asked, X_User="A")).cache for _ in range(3)] == ["MISS", "HIT", "HIT"]
    assert (await client.post(asked, X_User="B")).status == 403
    assert (await client.post(asked, X_User="A")).cache == "HIT"
