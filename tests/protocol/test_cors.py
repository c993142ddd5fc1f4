"""Web pages on another origin: who may read responses, by the upstream's word or by --cors-origins."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from multidict import CIMultiDict

from proxy.access import client_keys
from proxy.config.checks import require_client_auth
from proxy.config.cors_origins import parse_cors_origins
from proxy.config.settings import SameModel, StoreSetting, UpstreamSetting
from proxy.errors import ConfigError
from proxy.protocol.cors import Cors, is_preflight
from tests.conftest import StartProxy
from tests.e2e.test_stampede import waiting
from tests.embeddings.test_fast_path import Parsed, request, told, wire
from tests.support.client import KEY, Client, UpstreamResponse, raw
from tests.support.gate import Gate
from tests.support.scripted import Call, ScriptedUpstream, error_reply
from tests.support.settings import DEFAULTS

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


# --- the upstream decides: hits


@pytest.mark.parametrize("origin", [PAGE, UNKNOWN, "null", None])
@pytest.mark.parametrize("policy", POLICIES)
async def test_a_hit_has_the_fields_of_the_miss(
    client: Client, upstream: ScriptedUpstream, policy: Policy, origin: str | None
) -> None:
    Browsable(upstream, policy)
    miss, hit, again = [await ask(client, "x", origin) for _ in range(3)]
    assert [miss.cache, hit.cache, again.cache] == ["MISS", "HIT", "HIT"]
    assert cors(miss).get("access-control-allow-origin", [""]) == [policy(origin).get(ALLOW_ORIGIN, "")]
    expected = cors(miss)
    if policy is listed:
        expected["vary"] = ["Origin"]  # hits don't vary by what else the upstream's do
    assert cors(hit) == cors(again) == expected


@pytest.mark.parametrize("policy", [reflects, everyone])
async def test_the_cache_fields_are_exposed_where_the_page_may_read(
    client: Client, upstream: ScriptedUpstream, policy: Policy
) -> None:
    Browsable(upstream, policy)
    for answer in [await ask(client, "x", PAGE) for _ in range(2)]:
        theirs = [value for name, value in policy(PAGE).items() if name == "Access-Control-Expose-Headers"]
        assert cors(answer)["access-control-expose-headers"] == [*theirs, OWN_EXPOSED]


async def test_a_page_that_may_not_read_learns_nothing_of_what_it_could(
    client: Client, upstream: ScriptedUpstream
) -> None:
    Browsable(upstream, listed)
    await ask(client, "x", PAGE)
    refused = await ask(client, "y", UNKNOWN)
    hit = await ask(client, "y", UNKNOWN)
    assert (refused.cache, hit.cache) == ("MISS", "HIT")
    assert cors(hit) == {"vary": ["Origin"]}


async def test_pages_of_two_origins_share_entries_and_not_fields(client: Client, upstream: ScriptedUpstream) -> None:
    Browsable(upstream, reflects)
    miss = await ask(client, ["x", "a longer text"], PAGE)
    for _ in range(3):
        for origin in (PAGE, OTHER):
            hit = await ask(client, ["x", "a longer text"], origin)
            assert (hit.cache, hit.headers[ALLOW_ORIGIN]) == ("HIT", origin)
            assert hit.embeddings == miss.embeddings
    assert upstream.items == {'"x"': 2, '"a longer text"': 1}  # the upstream was asked once about the other page


async def test_a_page_of_which_the_upstream_said_nothing_is_served_while_it_is_down(
    client: Client, upstream: ScriptedUpstream
) -> None:
    await ask(client, "x", None)
    upstream.reply = abort
    hit = await ask(client, "x", PAGE)
    assert hit.headers["Cache-Status"] == "embedding-proxy; hit; detail=unvalidated"
    assert cors(hit) == {}


async def test_in_a_shared_scope_the_upstream_is_not_asked_about_a_page(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """It would be an error, and not a hit, while the upstream has no answer."""
    client = await start_proxy(shares_all=True)
    await ask(client, "x", None)
    assert (await ask(client, "x", PAGE)).cache == "HIT"
    assert len(upstream.calls) == 1


async def test_a_request_that_comes_again_from_another_page_is_not_the_same(
    client: Client, upstream: ScriptedUpstream
) -> None:
    Browsable(upstream, reflects)
    for _ in range(4):
        await ask(client, "x", PAGE)
    assert (await ask(client, "x", OTHER)).headers[ALLOW_ORIGIN] == OTHER


async def test_what_is_sent_to_everyone_holds_for_origins_not_seen_yet(
    client: Client, upstream: ScriptedUpstream
) -> None:
    served = Browsable(upstream, everyone)
    await ask(client, "x", None)
    assert (await ask(client, "x", PAGE)).headers[ALLOW_ORIGIN] == "*"
    served.policy = listed  # and when the upstream has changed its mind, no more
    await ask(client, "y", OTHER)
    assert ALLOW_ORIGIN not in (await ask(client, "x", UNKNOWN)).headers


async def test_a_hit_after_a_preflight_has_its_fields(client: Client, upstream: ScriptedUpstream) -> None:
    Browsable(upstream, reflects)
    await ask(client, "x", None)
    assert (await preflight(client)).status == 204
    hit = await ask(client, "x", PAGE)
    assert hit.cache == "HIT"
    assert cors(hit) == {
        "access-control-allow-origin": [PAGE],
        "access-control-allow-credentials": ["true"],
        "access-control-expose-headers": [OWN_EXPOSED],
        "vary": ["Origin"],
    }


async def test_a_preflight_does_not_hide_what_the_miss_told(client: Client, upstream: ScriptedUpstream) -> None:
    Browsable(upstream, everyone)
    miss = await ask(client, "x", PAGE)
    await preflight(client)
    assert cors(await ask(client, "x", PAGE)) == cors(miss)


async def test_the_upstreams_last_word_counts(client: Client, upstream: ScriptedUpstream) -> None:
    served = Browsable(upstream, nobody)
    await ask(client, "x", PAGE)
    served.policy = reflects
    await preflight(client)
    assert (await ask(client, "x", PAGE)).headers[ALLOW_ORIGIN] == PAGE
    served.policy = nobody
    await ask(client, "y", PAGE)
    assert cors(await ask(client, "x", PAGE)) == {}


async def test_an_error_of_a_gateway_that_knows_no_cors_is_not_the_upstreams_word(
    client: Client, upstream: ScriptedUpstream
) -> None:
    served = Browsable(upstream, reflects)
    await ask(client, "x", PAGE)
    upstream.reply = error_reply(502, b"<html>bad gateway</html>")
    failed = await ask(client, "y", PAGE)
    assert (failed.status, failed.headers[ALLOW_ORIGIN]) == (502, PAGE)  # so that the page can tell what failed
    upstream.reply = served
    assert (await ask(client, "x", PAGE)).headers[ALLOW_ORIGIN] == PAGE


async def test_a_hit_after_a_restart_has_the_fields(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path
) -> None:
    Browsable(upstream, reflects)
    first, second = [await start_proxy(store=StoreSetting(path=sqlite_path)) for _ in range(2)]
    await ask(first, "x", PAGE)
    hit = await ask(second, "x", PAGE)
    assert hit.headers["Cache-Status"] == "embedding-proxy; hit; detail=validated"
    assert hit.headers[ALLOW_ORIGIN] == PAGE


async def test_a_request_that_repeats_to_the_byte_has_the_fields(
    client: Client, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    Browsable(upstream, everyone)
    parsed = Parsed(monkeypatch)
    async with wire(client) as line:
        answers = [await line.ask(request()) for _ in range(6)]
        assert parsed.count == 4
        assert len({told(answer) for answer in answers[1:]}) == 1
        assert b"\r\nAccess-Control-Allow-Origin: *\r\n" in answers[5]
        from_page = [await line.ask(request(orjson.dumps({"model": "m", "input": "a"}), f"Origin: {PAGE}"))]
        from_page += [await line.ask(request(orjson.dumps({"model": "m", "input": "a"}), f"Origin: {PAGE}"))]
    assert all(b"\r\nAccess-Control-Allow-Origin: *\r\n" in answer for answer in from_page)


async def test_a_page_that_repeats_to_the_byte_sees_what_changed(client: Client, upstream: ScriptedUpstream) -> None:
    served = Browsable(upstream, reflects)
    sent = request(orjson.dumps({"model": "m", "input": "a"}), f"Origin: {PAGE}")
    async with wire(client) as line:
        answers = [await line.ask(sent) for _ in range(6)]
        assert all(f"\r\nAccess-Control-Allow-Origin: {PAGE}\r\n".encode() in answer for answer in answers)
        served.policy = nobody
        await ask(client, "b", PAGE)
        assert b"Access-Control" not in await line.ask(sent)


# --- the upstream decides: other responses of the route


async def test_a_partial_answer_has_the_fields(client: Client, upstream: ScriptedUpstream) -> None:
    Browsable(upstream, reflects)
    miss = await ask(client, "x", PAGE)
    partial = await ask(client, ["x", "y"], PAGE)
    assert partial.cache == "PARTIAL"
    assert cors(partial) == cors(miss)


async def test_a_bypass_has_the_upstreams_fields_and_teaches_them(client: Client, upstream: ScriptedUpstream) -> None:
    served = Browsable(upstream, nobody)
    await ask(client, "x", PAGE)
    served.policy = reflects
    bypass = await client.post({"model": "m", "input": "x", "stream": True}, Origin=PAGE)
    assert bypass.cache == "BYPASS"
    assert cors(bypass) == cors(await ask(client, "x", PAGE))
    assert bypass.headers[ALLOW_ORIGIN] == PAGE


@pytest.mark.parametrize("fails", [False, True])
async def test_a_response_to_another_page_is_made_the_own(
    client: Client, upstream: ScriptedUpstream, fails: bool
) -> None:
    """Of two pages that ask for the same item at once, the second gets what was answered to the first."""
    served = Browsable(upstream, reflects)
    for page in (PAGE, OTHER):
        await preflight(client, Origin=page)
    gate = Gate(upstream)
    answers = []
    origins: list[str | None] = [PAGE, OTHER, None]
    for number, origin in enumerate(origins, start=1):
        answers.append(asyncio.create_task(ask(client, "x", origin)))
        await waiting(client, number)
    await gate.calls(1)
    gate.answer = served.unavailable if fails else served
    gate.open()
    got = await asyncio.gather(*answers)
    assert [answer.status for answer in got] == [503 if fails else 200] * 3
    assert [answer.headers.get(ALLOW_ORIGIN) for answer in got] == [PAGE, OTHER, None]
    assert [call.method for call in upstream.calls] == ["OPTIONS", "OPTIONS", "POST"]


async def test_pages_of_two_origins_are_not_merged_into_one_call(client: Client, upstream: ScriptedUpstream) -> None:
    served = Browsable(upstream, reflects)
    gate = Gate(upstream)
    gate.answer = served
    answers = [asyncio.create_task(ask(client, "first", PAGE))]
    await gate.calls(1)
    sent = [("a", PAGE), ("b", PAGE), ("c", OTHER), ("d", None)]
    answers += [asyncio.create_task(ask(client, text, origin)) for text, origin in sent]
    await waiting(client, 5)
    gate.open()
    got = await asyncio.gather(*answers)
    assert [answer.headers.get(ALLOW_ORIGIN) for answer in got] == [PAGE, PAGE, PAGE, OTHER, None]
    assert sorted(call.items for call in upstream.calls) == [["a", "b"], ["c"], ["d"], ["first"]]


async def test_the_proxys_own_errors_have_the_fields(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    key = client_keys.add(tmp_path / "clients", "app")
    own = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-owned")
    client = await start_proxy(upstream=own, client_keys=tmp_path / "clients", max_body_bytes=1000)
    Browsable(upstream, reflects)
    await client.post({"model": "m", "input": "x"}, key=f"Bearer {key}", Origin=PAGE)
    unknown = await ask(client, "x", PAGE)
    large = await client.post({"model": "m", "input": "x" * 1000}, key=f"Bearer {key}", Origin=PAGE)
    missing = {"Cache_Control": "only-if-cached", "Origin": PAGE}
    missed = await client.post({"model": "m", "input": "y"}, key=f"Bearer {key}", **missing)
    upstream.reply = error_reply(401, b"bad key sk-owned")
    refused = await client.post({"model": "m", "input": "y"}, key=f"Bearer {key}", Origin=PAGE)
    answers = [unknown, large, missed, refused]
    assert [answer.status for answer in answers] == [401, 413, 504, 502]
    assert [answer.headers.get(ALLOW_ORIGIN) for answer in answers] == [PAGE] * 4


async def test_an_upstream_that_can_not_be_reached_is_told_to_the_page(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    served = Browsable(upstream, reflects)
    client = await start_proxy()
    await ask(client, "x", PAGE)
    upstream.reply = abort
    failed = await ask(client, "y", PAGE)
    assert (failed.status, failed.headers[ALLOW_ORIGIN]) == (502, PAGE)
    upstream.reply = served


def abort(call: Call) -> web.Response:
    assert call.request.transport is not None
    call.request.transport.abort()
    return web.Response()


async def test_each_upstream_speaks_for_itself(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    async with ScriptedUpstream().serving() as second:
        Browsable(upstream, reflects)
        Browsable(second, nobody)
        routed = UpstreamSetting(name="second", base_url=second.base_url, models=("other",))
        client = await start_proxy(routed=(routed,))
        for model in ("m", "other"):
            await client.embed("x", model=model, headers={"Origin": PAGE})
        hits = [await client.embed("x", model=model, headers={"Origin": PAGE}) for model in ("m", "other")]
        assert [hit.headers.get(ALLOW_ORIGIN) for hit in hits] == [PAGE, None]
        assert [hit.cache for hit in hits] == ["HIT", "HIT"]


async def test_a_hit_on_what_a_fallback_computed_has_the_fields_of_its_answer(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    async with ScriptedUpstream().serving() as second:
        upstream.reply = error_reply(503, b"{}")
        Browsable(second, reflects)
        first = UpstreamSetting(
            name="first", base_url=upstream.base_url, same_model=(SameModel(upstream="second"),), models=("m",)
        )
        client = await start_proxy(upstream=UpstreamSetting(name="second", base_url=second.base_url), routed=(first,))
        miss, hit = [await ask(client, "x", PAGE) for _ in range(2)]
        assert (miss.cache, hit.cache) == ("MISS", "HIT")
        assert cors(hit) == cors(miss)
        assert hit.headers[ALLOW_ORIGIN] == PAGE


async def test_other_routes_are_as_the_upstream_has_them(client: Client, upstream: ScriptedUpstream) -> None:
    served = Browsable(upstream, reflects)
    await ask(client, "x", PAGE)
    upstream.reply = lambda call: served.answer(call, web.json_response({}, headers={"X-Cache": "MISS"}))
    answer = await client.send("GET", "/v1/models", headers={"Origin": PAGE, "Authorization": KEY})
    assert cors(answer) == {
        "access-control-allow-origin": [PAGE], "access-control-allow-credentials": ["true"], "vary": ["Origin"]
    }  # fmt: skip
    upstream.reply = error_reply(200, b"{}")
    assert cors(await client.send("GET", "/v1/models", headers={"Origin": PAGE, "Authorization": KEY})) == {}


# --- the upstream decides: preflights


async def owning(
    start_proxy: StartProxy, upstream: ScriptedUpstream, folder: Path, **changes: Any
) -> tuple[Client, str]:
    """A proxy that holds the upstream's key, and a key of a client's."""
    key = client_keys.add(folder / "clients", "app")
    own = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-owned")
    return await start_proxy(upstream=own, client_keys=folder / "clients", **changes), f"Bearer {key}"


@pytest.mark.parametrize("target", ["/v1/embeddings", "/v1/models?x=1"])
async def test_a_preflight_goes_up_without_any_key(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, target: str
) -> None:
    client, key = await owning(start_proxy, upstream, tmp_path)
    Browsable(upstream, reflects)
    answer = await preflight(client, target, Cookie="a=b", X_Api_Key=key, Authorization=key)
    assert answer.status == 204
    assert cors(answer) == {
        "access-control-allow-origin": [PAGE],
        "access-control-allow-credentials": ["true"],
        "access-control-allow-methods": ["POST"],
        "access-control-allow-headers": ["authorization, content-type"],
        "vary": ["Origin"],
    }
    (call,) = upstream.calls
    assert (call.method, call.target, call.body) == ("OPTIONS", target, b"")
    assert {name: call.headers.get(name) for name in PREFLIGHT} == PREFLIGHT
    assert not {"Authorization", "Cookie", "X-Api-Key"} & {*call.headers}
    assert "sk-owned" not in str(call.headers)


async def test_an_upstream_that_refuses_a_preflight_has_refused_no_key(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    client, _ = await owning(start_proxy, upstream, tmp_path)
    upstream.reply = error_reply(401, b"who are you")
    answer = await preflight(client)
    assert (answer.status, answer.body) == (401, b"who are you")


@pytest.mark.parametrize(
    ("method", "fields", "body"),
    [
        ("OPTIONS", {**PREFLIGHT, "Origin": None}, None),
        ("OPTIONS", {**PREFLIGHT, "Access-Control-Request-Method": None}, None),
        ("OPTIONS", PREFLIGHT, b"{}"),
        ("GET", PREFLIGHT, None),
        ("POST", PREFLIGHT, b"{}"),
        ("HEAD", PREFLIGHT, None),
    ],
)
async def test_only_a_preflight_passes_without_a_key(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, method: str, fields: Any, body: bytes | None
) -> None:
    client, _ = await owning(start_proxy, upstream, tmp_path)
    headers = {name: value for name, value in fields.items() if value}
    assert (await client.send(method, "/v1/embeddings", headers=headers, body=body)).status == 401
    assert not upstream.calls


def test_a_body_in_chunks_makes_no_preflight() -> None:
    assert is_preflight("OPTIONS", CIMultiDict({**PREFLIGHT, "Content-Length": "0"}))
    assert not is_preflight("OPTIONS", CIMultiDict({**PREFLIGHT, "Transfer-Encoding": "chunked"}))


async def test_a_preflight_to_a_proxy_without_a_key_is_untouched(client: Client, upstream: ScriptedUpstream) -> None:
    Browsable(upstream, reflects)
    answer = await preflight(client, Authorization=KEY)
    assert answer.headers["Access-Control-Allow-Methods"] == "POST"
    assert upstream.calls[0].headers["Authorization"] == KEY


# --- what is remembered


def test_what_is_remembered_is_bounded() -> None:
    cors = Cors()
    told = CIMultiDict({ALLOW_ORIGIN: PAGE})

    def hit(page: str) -> CIMultiDict[str]:
        fields = CIMultiDict({"X-Cache": "HIT"})
        cors.finish(page, fields)
        return fields

    for number in range(5000):
        cors.learn(f"https://{number}.example", 200, told)
        hit("https://0.example")
    assert len(cors._sent) == 1024
    assert ALLOW_ORIGIN in hit("https://0.example")  # it was used all the time
    assert ALLOW_ORIGIN not in hit("https://1.example")
    cors.learn(PAGE, 200, CIMultiDict({ALLOW_ORIGIN: PAGE, "Access-Control-Expose-Headers": "x" * 5000}))
    assert cors.knows(PAGE)
    assert ALLOW_ORIGIN not in hit(PAGE)
    for page, fields in (
        ("https://" + "x" * 300, told),
        ("*", CIMultiDict({ALLOW_ORIGIN: "*"})),
        (f"{PAGE}, {OTHER}", told),
    ):
        cors.learn(page, 200, fields)
        assert cors.knows(page)  # there is nothing to ask for
        assert page not in cors._sent


def test_fields_that_can_not_be_sent_again_are_left_out() -> None:
    cors = Cors()
    cors.learn(None, 200, CIMultiDict([(ALLOW_ORIGIN.lower(), "*"), ("Access-Control-Expose-Headers", "\udcff")]))
    assert cors.hit_header_lines() == f"{ALLOW_ORIGIN}: *\r\nAccess-Control-Expose-Headers: {OWN_EXPOSED}\r\n"
    cors.learn(None, 200, CIMultiDict())
    assert cors.hit_header_lines() == ""


# --- the operator decides


ALLOWED = frozenset({PAGE, OTHER})
LISTED = {"access-control-allow-origin": [PAGE], "vary": ["Origin"]}


def exposed(answer: UpstreamResponse) -> set[str]:
    (value,) = answer.headers.getall("Access-Control-Expose-Headers")
    return set(value.lower().split(", "))


async def test_a_preflight_from_an_allowed_origin_is_answered_here(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    client, _ = await owning(start_proxy, upstream, tmp_path, cors_origins=ALLOWED)
    answer = await preflight(client, Access_Control_Request_Private_Network="true")
    assert (answer.status, answer.body) == (204, b"")
    assert cors(answer) == {
        "access-control-allow-origin": [PAGE],
        "access-control-allow-methods": ["POST"],
        "access-control-allow-headers": ["authorization,content-type,x-stainless-os"],
        "access-control-max-age": ["7200"],
        "access-control-allow-private-network": ["true"],
        "vary": ["Origin, Access-Control-Request-Method, Access-Control-Request-Headers"],
    }
    assert not {"Content-Length", "Content-Type"} & {*answer.headers}
    assert "Access-Control-Allow-Private-Network" not in (await preflight(client)).headers
    assert not upstream.calls


@pytest.mark.parametrize("origin", [UNKNOWN, "null", PAGE + ":8443", "http://app.example.com", PAGE.upper()])
async def test_a_preflight_from_another_origin_is_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, origin: str
) -> None:
    client = await start_proxy(cors_origins=ALLOWED)
    answer = await preflight(client, Origin=origin)
    assert answer.status == 403
    assert answer.json["error"]["code"] == "origin_not_allowed"
    assert not {name for name in cors(answer) if name != "vary"}
    assert not upstream.calls


async def test_what_a_preflight_may_not_name_is_not_repeated(start_proxy: StartProxy) -> None:
    client = await start_proxy(cors_origins=ALLOWED)
    answer = await preflight(client, Access_Control_Request_Headers="a b", Access_Control_Request_Method="P O")
    assert answer.status == 204
    assert not {"Access-Control-Allow-Headers", "Access-Control-Allow-Methods"} & {*answer.headers}


Ask = Callable[[Client], Awaitable[UpstreamResponse]]


def of_embeddings(given: Any = "x", **fields: Any) -> Ask:
    return lambda client: client.embed(given, headers={"Origin": PAGE}, **fields)


def of_other(method: str, target: str) -> Ask:
    return lambda client: client.send(method, target, headers={"Origin": PAGE, "Authorization": KEY})


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("asks", "status"),
    [
        (of_embeddings(), 200),
        (of_embeddings(["x", "y"]), 200),
        (of_embeddings(stream=True), 200),
        (of_embeddings("x" * 2000), 413),
        (of_embeddings(model="refused"), 400),
        (of_other("GET", "/v1/models"), 200),
        (of_other("OPTIONS", "/v1/embeddings"), 200),
        (of_other("TRACE", "/v1/embeddings"), 400),
    ],
)
async def test_every_response_to_an_allowed_origin_can_be_read(
    start_proxy: StartProxy, upstream: ScriptedUpstream, policy: Policy, asks: Ask, status: int
) -> None:
    client = await start_proxy(cors_origins=ALLOWED, max_body_bytes=1000)
    served = Browsable(upstream, policy)

    def reply(call: Call) -> web.StreamResponse:
        if call.method != "POST":
            return served.answer(call, web.json_response({}))
        return served.failing(call) if call.json["model"] == "refused" else served(call)

    upstream.reply = reply
    for _ in range(2):
        answer = await asks(client)
        assert answer.status == status
        assert answer.headers.getall(ALLOW_ORIGIN) == [PAGE]
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "origin" in answer.headers["Vary"].lower().split(", ")
        assert {
            "x-cache", "cache-status", "x-cache-saved-tokens", "x-request-id", "retry-after",
            "x-ratelimit-remaining-tokens",
        } <= exposed(answer)  # fmt: skip
    assert all("Origin" not in call.headers for call in upstream.calls)


@pytest.mark.relays_refusals
async def test_rate_limits_by_any_name_are_exposed(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(cors_origins=ALLOWED)
    upstream.reply = error_reply(429, b"{}", RateLimit_Policy="1", x_ratelimitbysize_remaining="2", other="3")
    answer = await ask(client, "x", PAGE)
    assert {"ratelimit-policy", "x-ratelimitbysize-remaining"} <= exposed(answer)
    assert "other" not in exposed(answer)


async def test_errors_before_the_upstream_is_known_can_be_read(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    client, _ = await owning(start_proxy, upstream, tmp_path, cors_origins=ALLOWED)
    refused = await ask(client, "x", PAGE)
    assert (refused.status, refused.headers[ALLOW_ORIGIN]) == (401, PAGE)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = UpstreamSetting(name="nowhere", base_url=f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
        client = await start_proxy(upstream=nowhere, cors_origins=ALLOWED)
        answers = [await ask(client, "x", PAGE) for _ in range(6)]
        answers.append(await client.send("GET", "/v1/models", headers={"Origin": PAGE}))
    assert {answer.status for answer in answers} == {502, 503}
    assert all(answer.headers[ALLOW_ORIGIN] == PAGE for answer in answers)


@pytest.mark.parametrize("policy", [reflects, everyone])
@pytest.mark.parametrize("origin", [UNKNOWN, "null", None])
async def test_no_other_origin_may_read_whatever_the_upstream_says(
    start_proxy: StartProxy, upstream: ScriptedUpstream, policy: Policy, origin: str | None
) -> None:
    client = await start_proxy(cors_origins=ALLOWED)
    Browsable(upstream, policy)
    answers = [await ask(client, "x", origin) for _ in range(3)]
    assert [answer.cache for answer in answers] == ["MISS", "HIT", "HIT"]
    assert [cors(answer) for answer in answers] == [{"vary": ["Origin"]}] * 3
    upstream.reply = lambda _: web.json_response({}, headers=policy(origin))
    other = await client.send("GET", "/v1/models", headers={"Origin": origin} if origin else {})
    assert cors(other) == {"vary": ["Origin"]}
    assert [call.headers.get("Origin") for call in upstream.calls] == [origin] * 2  # to refuse by itself


@pytest.mark.parametrize("origin", [PAGE, "null", None])
async def test_with_a_star_every_response_says_the_same(
    start_proxy: StartProxy, upstream: ScriptedUpstream, origin: str | None
) -> None:
    client = await start_proxy(cors_origins=frozenset("*"))
    Browsable(upstream, lambda _: {"Access-Control-Allow-Origin": PAGE})
    answers = [await ask(client, "x", origin) for _ in range(3)]
    assert [answer.headers.getall(ALLOW_ORIGIN) for answer in answers] == [["*"]] * 3
    assert all("Vary" not in answer.headers and "x-cache" in exposed(answer) for answer in answers)
    asked = await preflight(client, Origin=origin or PAGE)
    assert (asked.status, asked.headers[ALLOW_ORIGIN]) == (204, "*")
    assert asked.headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]


@pytest.mark.parametrize("origins", [ALLOWED, frozenset("*")])
async def test_a_request_that_repeats_to_the_byte_is_answered_alike(
    start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, origins: frozenset[str]
) -> None:
    client = await start_proxy(cors_origins=origins)
    parsed = Parsed(monkeypatch)
    async with wire(client) as line:
        answers = [await line.ask(request()) for _ in range(6)]
        assert parsed.count == 4
        from_page = [await line.ask(request(orjson.dumps({"model": "m"}), f"Origin: {PAGE}")) for _ in range(3)]
    assert len({told(answer) for answer in answers[1:]}) == 1
    assert (b"\r\nVary: Origin\r\n" if origins == ALLOWED else b"\r\nAccess-Control-Allow-Origin: *\r\n") in answers[5]
    assert all(b"\r\nAccess-Control-Allow-Origin: " in answer for answer in from_page)


async def test_an_upstreams_vary_is_added_to(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(cors_origins=ALLOWED)
    for theirs, ours in (("Accept-Encoding", "Accept-Encoding, Origin"), ("origin", "origin"), ("*", "*")):
        upstream.reply = error_reply(400, b"{}", Vary=theirs)
        assert (await ask(client, "x", PAGE)).headers.getall("Vary") == [ours]


async def test_two_origins_in_one_request_are_no_pages(start_proxy: StartProxy) -> None:
    client = await start_proxy(cors_origins=ALLOWED)
    sent = request(b"{}", f"Origin: {PAGE}", f"Origin: {OTHER}", "Connection: close")
    assert b"Access-Control" not in await raw(client, sent)


# --- a proxy that holds a key for this machine


async def test_an_allowed_page_may_use_the_key_of_a_proxy_for_this_machine(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    own = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-owned")
    client = await start_proxy(upstream=own, cors_origins=ALLOWED)
    assert (await preflight(client)).status == 204
    answer = await client.post({"model": "m", "input": "x"}, key=None, Origin=PAGE, Sec_Fetch_Site="cross-site")
    assert (answer.status, answer.headers[ALLOW_ORIGIN]) == (200, PAGE)
    for fields in (
        {"Origin": UNKNOWN},
        {"Origin": "null"},
        {"Origin": PAGE, "Host": "rebound.example"},  # the page's own name, made to mean this machine
        {"Sec-Fetch-Site": "cross-site"},  # an image, say, which has no Origin
    ):
        for method in ("POST", "GET", "OPTIONS"):
            assert (await client.send(method, "/v1/embeddings", headers=fields, body=b"{}")).status == 401
        asked = await client.send("OPTIONS", "/v1/embeddings", headers={**PREFLIGHT, **fields})
        assert asked.status == 401 or fields == {"Sec-Fetch-Site": "cross-site"}  # that one has an Origin
    assert len(upstream.calls) == 1


def test_not_every_page_may_use_the_key_of_a_proxy_for_this_machine() -> None:
    owned = UpstreamSetting(name="o", base_url="http://h/v1", key="sk-owned")
    for changes in ({"cors_origins": ALLOWED}, {"cors_origins": frozenset("*"), "client_keys": Path("keys")}):
        require_client_auth(replace(DEFAULTS, upstream=owned, **changes))
    require_client_auth(replace(DEFAULTS, cors_origins=frozenset("*")))
    with pytest.raises(ConfigError, match="list the origins, or set --client-keys"):
        require_client_auth(replace(DEFAULTS, upstream=owned, cors_origins=frozenset("*")))


# --- the setting


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("*", {"*"}),
        ("https://app.example.com", {"https://app.example.com"}),
        (" HTTPS://App.Example.com:443 ,http://localhost:3000", {"https://app.example.com", "http://localhost:3000"}),
        ("http://h:80", {"http://h"}),
        ("https://h:80", {"https://h:80"}),
        ("http://[0:0::1]:3000", {"http://[::1]:3000"}),
        ("chrome-extension://abcdefghijklmnop", {"chrome-extension://abcdefghijklmnop"}),
        ("https://xn--bcher-kva.example", {"https://xn--bcher-kva.example"}),
    ],
)
def test_origins_are_read_as_browsers_write_them(text: str, read: set[str]) -> None:
    assert parse_cors_origins(text) == read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "accepted: scheme://host or scheme://host:port"),
        ("https://a.example,", "accepted: scheme://host"),
        ("https://app.example.com/", "an origin has no path; use https://app.example.com"),
        ("https://app.example.com:8443/x?y#z", "an origin has no path; use https://app.example.com:8443"),
        ("app.example.com", "did you mean https://app.example.com"),
        ("localhost:3000", "did you mean http://localhost:3000"),
        ("https://*.example.com", "accepted: scheme://host"),
        ("https://bücher.example", "accepted: scheme://host"),
        ("https://h:99999", "accepted: scheme://host"),
        ("http://[::1::]", "accepted: scheme://host"),
        ("https://", "accepted: scheme://host"),
        ("null", "so only [*] allows it"),
        ("*, https://a.example", "[*] allows every origin"),
    ],
)
def test_what_is_no_origin_is_said_to_be_none(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_cors_origins(text)


def test_an_origin_that_is_refused_keeps_its_password_to_itself() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_cors_origins("https://user:s3cret@h")
    assert "s3cret" not in str(refused.value)
