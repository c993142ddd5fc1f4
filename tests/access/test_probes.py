"""What is asked before stored items are served, and what is remembered of the answer."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from proxy.access.validations import Credential, CredentialId, CredentialScope, Validations
from proxy.config.settings import SameModel, UpstreamSetting
from proxy.protocol.identities import Identity
from proxy.protocol.providers import GENERIC
from proxy.upstream.router import Origin
from proxy.upstream.urls import Routes
from tests.conftest import StartProxy
from tests.support.client import raw
from tests.support.gate import Gate
from tests.support.guarded import INVALID, REVALIDATE_S, Clock, Guarded
from tests.support.in_flight import waiting
from tests.support.scripted import Call, ScriptedUpstream, error_reply

CREDENTIAL = Credential(CredentialId(b"tenant", b"name"), CredentialScope("u", "m"))


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


@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_probe_for_vectors_of_another_length_replaces_nothing(
    start_proxy: StartProxy, upstream: ScriptedUpstream, clock: Clock, is_shared: bool
) -> None:
    client = await start_proxy(monotonic=clock, revalidate_s=REVALIDATE_S, shares_all=is_shared)
    stored = [await client.embed("a", dimensions=8), await client.embed("a", dimensions=16)]
    clock.now += REVALIDATE_S
    gate = Gate(upstream)
    requests = [asyncio.create_task(client.embed("a", dimensions=8))]
    await gate.calls(1)
    requests.append(asyncio.create_task(client.embed("a", dimensions=16)))
    await waiting(client, 2)
    gate.open()
    answers = [await request for request in requests]
    assert [(answer.cache, answer.embeddings) for answer in answers] == [("HIT", a.embeddings) for a in stored]
    assert len(upstream.calls) == 3


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
    monkeypatch.setattr("proxy.embeddings.unvalidated._PROBE_TIMEOUT_S", 0.05)
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
        monkeypatch.setattr("proxy.embeddings.unvalidated._PROBE_TIMEOUT_S", 0.05)
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


def test_validations_are_bounded_and_contain_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.access.validations._MAX_ACCEPTED_BYTES", 50_000)
    monkeypatch.setattr("proxy.access.validations._MAX_REFUSED_BYTES", 50_000)
    validations = Validations(ttl_s=10, clock=lambda: 0.0)
    one = CredentialId(b"one", b"name")
    for n in range(100):
        validations.confirm(Credential(CredentialId(bytes([n]), b"name"), CredentialScope("u", "m")), asked_at_s=0.0)
        validations.confirm(Credential(one, CredentialScope("u", f"{n}")), asked_at_s=0.0)
        validations.note(Credential(CredentialId(b"refused", f"{n}".encode()), CredentialScope("u", "m")), 401)
    validations.confirm(Credential(one, CredentialScope("u" * 5000, "m")), asked_at_s=0.0)
    assert len(validations._accepted) < 70
    assert len(validations._refused) <= 10
    assert validations.is_confirmed(Credential(one, CredentialScope("u", "99")))
    assert not validations.is_confirmed(Credential(one, CredentialScope("u", "1")))
    assert not validations.is_confirmed(Credential(one, CredentialScope("u" * 5000, "m")))
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
    validations.note(CREDENTIAL, 401)
    clock.now += 1
    validations.confirm(CREDENTIAL, asked_at_s=asked_at_s)
    assert not validations.is_confirmed(CREDENTIAL)
    validations.confirm(CREDENTIAL, asked_at_s=validations.now())
    assert validations.is_confirmed(CREDENTIAL)
    clock.now += 100
    assert not validations.is_confirmed(CREDENTIAL)


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
