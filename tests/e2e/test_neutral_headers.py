"""Header fields that differ on every request cost no hits; fields that choose a model are part of the key."""

import logging
from typing import Any

import pytest
from aiohttp import web

from proxy.config.settings import SameModel, UpstreamSetting
from proxy.protocol.provider import Provider
from proxy.protocol.providers import GENERIC
from tests.conftest import StartProxy
from tests.e2e.test_merged_requests import behind_a_first, body
from tests.protocol.test_assertions import jwt
from tests.support.client import Client, UpstreamResponse
from tests.support.scripted import Call, ScriptedUpstream

# As real systems write them, with what changes from request to request.
VARYING = {
    "x-datadog-tags": "_dd.p.dm=-1,_dd.p.tid=68f1a2b{}",
    "x-datadog-trace-id": "123456789{}",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e473{}-00f067aa0ba902b7-01",
    "baggage": "sentry-trace_id=771a43a4192642f0b136d5159a50170{}",
    "b3": "80f198ee56343ba864fe8b2a57d3eff{}-e457b5a2e4d86bd1-1",
    "uber-trace-id": "4bf92f3577b34da{}:a3ce929d0e0e4736:0:1",
    "grpc-tags-bin": "AAA{}",
    "x-amzn-trace-id": "Root=1-5759e988-bd862e3fe1be46a99427279{}",
    "x-envoy-attempt-count": "{}",
    "x-envoy-peer-metadata": "ChoKCkNMVVNURVJfSUQSDBoKS3ViZXJuZXRlcw{}",
    "x-request-start": "171612345678{}",
    "x-forwarded-client-cert": "By=spiffe://c/ns/a/sa/p;Hash=468ed33be74eee65{};URI=spiffe://c/ns/a/sa/client",
    "x-goog-iap-jwt-assertion": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ1In0.{}",
    "x-amzn-oidc-data": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ1In0=.{}",
    "x-amzn-oidc-accesstoken": "opaque-{}",
    "cf-access-jwt-assertion": "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1In0.{}",
    "x-akamai-g2o-auth-data": "5, 192.0.2.1, 192.0.2.2, 171612345{}, 1.2, n",
    "x-amzn-lattice-target": "ServiceArn=arn:aws:vpc-lattice:eu-central-1:1:service/svc-{}",
    "cf-ray": "230b030023ae282{}-SJC",
    "cf-region": "Texas {}",
    "cloudfront-viewer-country-region": "T{}",
    "x-appengine-region": "c{}",
    "fly-region": "fr{}",
    "x-client-region": "U{}",
    "x-azure-ref": "0zxV+XAAAAABKMMOjBv2NT4TY6SQVjC0zV1NURURHRTA2MTkANDM3YzgyY{}",
    "amz-sdk-invocation-id": "d9d1b5d0-5b1f-4a3b-8b0a-{}",
    "amz-sdk-request": "attempt={}; max=3",
    "x-stainless-retry-count": "{}",
    "postman-token": "c05239b1-4f6f-4efb-b888-4deefa391a3{}",
    "x-portkey-trace-id": "trace-{}",
}
CHOOSING = ["x-portkey-metadata", "x-tfy-metadata", "cf-aig-metadata", "helicone-fallbacks", "x-data-keywordsai-params"]
ASSERTION = "X-Goog-Iap-Jwt-Assertion"


def with_values(name: str, count: int) -> list[dict[str, str]]:
    return [{name: VARYING[name].format(number)} for number in range(count)]


def plan(number: int) -> str:
    return f'{{"plan": "{number}"}}'


@pytest.mark.parametrize("name", VARYING)
async def test_neutral_field_with_another_value_is_a_hit(client: Client, upstream: ScriptedUpstream, name: str) -> None:
    answers = [await client.embed("x", headers=fields) for fields in with_values(name, 3)]
    assert [answer.cache for answer in answers] == ["MISS", "HIT", "HIT"]
    assert len(upstream.calls) == 1
    assert upstream.calls[0].headers[name] == VARYING[name].format(0)  # it travels all the same


@pytest.mark.parametrize("name", VARYING)
async def test_requests_that_differ_in_a_neutral_field_are_merged(
    client: Client, upstream: ScriptedUpstream, name: str
) -> None:
    asks = [(body(text), fields) for text, fields in zip("ab", with_values(name, 2), strict=True)]
    answers = await behind_a_first(client, upstream, asks, upstream.embed)
    assert [answer.cache for answer in answers] == ["MISS", "MISS"]
    assert [call.json["input"] for call in upstream.calls] == ["first", ["a", "b"]]


@pytest.mark.parametrize("name", ["x-forwarded-client-cert", "x-goog-iap-jwt-assertion"])
async def test_merged_call_sends_one_value_of_a_neutral_field(
    client: Client, upstream: ScriptedUpstream, name: str
) -> None:
    asks = [(body(text), fields) for text, fields in zip("ab", with_values(name, 2), strict=True)]
    await behind_a_first(client, upstream, asks, upstream.embed)
    assert upstream.calls[-1].headers.getall(name) == [VARYING[name].format(0)]


@pytest.mark.parametrize("name", CHOOSING)
async def test_model_selecting_field_is_part_of_the_key(client: Client, upstream: ScriptedUpstream, name: str) -> None:
    def routed(call: Call) -> web.Response:
        one = upstream.embedding(call.json | {"model": call.headers.get(name, "")}, call.items[0], 16)
        return upstream.embed(call, data=[{"index": 0, "embedding": one}])

    upstream.reply = routed
    answers = [await client.embed("x", headers={name: plan(number)}) for number in (1, 2, 1, 2)]
    assert [answer.cache for answer in answers] == ["MISS", "MISS", "HIT", "HIT"]
    assert answers[0].vectors == answers[2].vectors
    assert answers[1].vectors == answers[3].vectors
    assert answers[0].vectors != answers[1].vectors


# --- an assertion that is the only credential


class Verifying:
    """An upstream that takes what was signed by its proxy in front, and knows no key."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self.is_down = False

    def __call__(self, call: Call) -> web.StreamResponse:
        if self.is_down:
            return web.json_response({}, status=500)
        if not call.headers.get(ASSERTION, "").endswith(".signed"):
            return web.json_response({}, status=401)
        return self._upstream.embed(call)


@pytest.fixture
def verifying(upstream: ScriptedUpstream) -> Verifying:
    upstream.reply = Verifying(upstream)
    return upstream.reply


async def ask(
    client: Client, claims: dict[str, Any], given: Any = "x", *, signature: str = "signed"
) -> UpstreamResponse:
    fields = {ASSERTION: jwt(claims, signature=signature)}
    return await client.post({"model": "m", "input": given}, key=None, **fields)


async def test_renewed_token_keeps_the_entries_of_its_user(
    client: Client, upstream: ScriptedUpstream, verifying: Verifying
) -> None:
    del verifying
    texts = ["long text", "x"]
    assert (await ask(client, {"sub": "u", "iat": 1}, texts)).cache == "MISS"
    renewed = await ask(client, {"sub": "u", "iat": 2}, texts)
    assert (renewed.cache, "validated" in renewed.headers["Cache-Status"]) == ("HIT", True)
    assert (await ask(client, {"sub": "u", "iat": 2}, texts)).cache == "HIT"
    # The upstream has seen each token once, with the smallest text, before anything was served.
    assert [call.items for call in upstream.calls] == [["x"], ["long text"], ["x"]]


async def test_users_known_only_by_token_do_not_share_entries(client: Client, verifying: Verifying) -> None:
    del verifying
    answers = [await ask(client, {"sub": user, "iat": 1}) for user in ("u", "v", "u", "v")]
    assert [answer.cache for answer in answers] == ["MISS", "MISS", "HIT", "HIT"]


@pytest.mark.parametrize("given", ["x", ["x", "y"]])
async def test_forged_token_is_refused_by_the_upstream(client: Client, verifying: Verifying, given: Any) -> None:
    del verifying
    assert (await ask(client, {"sub": "u", "iat": 1})).cache == "MISS"
    assert (await ask(client, {"sub": "u", "iat": 2}, given, signature="forged")).status == 401


async def test_forged_token_gets_no_hit_while_the_upstream_is_down(client: Client, verifying: Verifying) -> None:
    assert (await ask(client, {"sub": "u", "iat": 1})).cache == "MISS"
    verifying.is_down = True
    assert (await ask(client, {"sub": "u", "iat": 2}, signature="forged")).status == 500
    assert (await ask(client, {"sub": "u", "iat": 1})).cache == "HIT"  # the upstream has vouched for that one


async def test_renewed_certificate_keeps_the_entries_of_its_client(client: Client) -> None:
    async def embed(number: int, user: str) -> str:
        field = f'By=spiffe://c/p;Hash={number};Subject="";URI=spiffe://c/{user}'
        asked = {"model": "m", "input": "x"}
        return (await client.post(asked, key=None, **{"X-Forwarded-Client-Cert": field})).cache

    assert [await embed(number, user) for number, user in enumerate("aabba")] == ["MISS", "HIT", "MISS", "HIT", "HIT"]


async def test_requests_merged_with_a_refused_token_are_retried_alone(
    client: Client, upstream: ScriptedUpstream
) -> None:
    asks = [
        (body(text), {ASSERTION: jwt({"sub": "u"}, signature=signature)})
        for text, signature in (("a", "forged"), ("b", "signed"), ("c", "signed"))
    ]
    answers = await behind_a_first(client, upstream, asks, Verifying(upstream))
    assert [answer.status for answer in answers] == [401, 200, 200]
    assert [call.json["input"] for call in upstream.calls] == ["first", ["a", "b", "c"], "a", "b", "c"]


async def test_refusal_not_explained_by_a_token_applies_to_all(client: Client, upstream: ScriptedUpstream) -> None:
    def refuse(_: Call) -> web.Response:
        return web.json_response({}, status=401)

    asks = [(body(text), {ASSERTION: jwt({"sub": "u"})}) for text in "ab"]
    answers = await behind_a_first(client, upstream, asks, refuse)
    assert [answer.status for answer in answers] == [401, 401]
    assert [call.json["input"] for call in upstream.calls] == ["first", ["a", "b"]]


# --- what the operator says


async def test_configured_neutral_header_keeps_hits(start_proxy: StartProxy) -> None:
    client = await start_proxy(neutral_headers=frozenset({"x-portkey-metadata", "x-session-token"}))
    fields = [{"X-Portkey-Metadata": plan(number), "X-Session-Token": f"{number}"} for number in range(2)]
    assert [(await client.embed("x", headers=some)).cache for some in fields] == ["MISS", "HIT"]


async def test_provider_neutral_header_applies_to_its_upstreams_only(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    def setting(name: str, row: Provider, **more: Any) -> UpstreamSetting:
        return UpstreamSetting(name=name, base_url=upstream.base_url, provider=row, **more)

    lax = Provider(name="lax", neutral_headers=frozenset({"x-plan-tags"}))
    client = await start_proxy(
        upstream=setting("default", GENERIC),
        routed=(
            setting("lax", lax, models=("a",)),
            setting("mixed", lax, models=("b",), same_model=(SameModel(upstream="default"),)),
        ),
    )
    outcomes = {
        model: [(await client.embed("x", model=model, headers={"X-Plan-Tags": value})).cache for value in "121"]
        for model in ("a", "b", "c")
    }
    assert outcomes == {
        "a": ["MISS", "HIT", "HIT"],
        "b": ["MISS", "MISS", "HIT"],  # the upstream in its place may go by it
        "c": ["MISS", "MISS", "HIT"],
    }


async def test_fast_path_applies_provider_neutral_headers(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    row = Provider(name="lax", neutral_headers=frozenset({"x-plan-tags"}))
    client = await start_proxy(upstream=UpstreamSetting(name="s", base_url=upstream.base_url, provider=row))
    outcomes = [(await client.embed("x", headers={"X-Plan-Tags": f"{n}"})).cache for n in range(3)]
    assert outcomes == ["MISS", "HIT", "HIT"]


# --- what the operator is told


async def varying_misses(client: Client, header: str) -> float:
    return await client.metric("embedding_proxy_varying_header_misses_total", header=header)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """But for asyncio's, that a task took long."""
    records = [record for record in caplog.records if record.name.startswith("proxy")]
    return [record.getMessage() for record in records if record.levelno == logging.WARNING]


async def test_field_that_prevents_all_hits_is_logged_once(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(45):
        assert (await client.embed("x", headers={"X-Job-Tags": f"{number}"})).cache == "MISS"
    (said,) = warnings(caplog)
    assert "20 values of x-job-tags from one credential for one model, and no hit" in said
    assert "set --neutral-headers x-job-tags" in said
    assert await varying_misses(client, "x-job-tags") == 40


async def test_field_with_recurring_values_is_not_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(45):
        for _ in range(1 + number % 2):
            await client.embed("x", headers={"X-Job-Tags": f"{number}"})
    assert warnings(caplog) == []
    assert await varying_misses(client, "x-job-tags") == 0


async def test_no_cache_requests_do_not_count_for_field_warnings(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(25):
        await client.embed("x", headers={"X-Job-Tags": f"{number}", "Cache-Control": "no-store"})
    assert warnings(caplog) == []


@pytest.mark.parametrize("name", ["Authorization", "Cookie", "X-Pat"])
async def test_many_clients_cause_no_field_warning(client: Client, caplog: pytest.LogCaptureFixture, name: str) -> None:
    for number in range(25):
        await client.post({"model": "m", "input": "x"}, key=None, **{name: f"{number}"})
    assert warnings(caplog) == []


async def test_client_chosen_field_names_make_few_metric_series(client: Client) -> None:
    for number in range(20 * 18):
        await client.embed("x", headers={f"X-{number % 18}-Tags": f"{number}"})
    async with client.session.get(client.proxy.admin_url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    series = [line for line in lines if line.startswith("embedding_proxy_varying_header_misses_total{")]
    assert len(series) == 17
    assert await varying_misses(client, "other") == 2 * 20
