"""CORS where the operator decides: the pages that may use the proxy, and the setting."""

import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from proxy.config.checks import require_client_auth
from proxy.config.cors_origins import parse_cors_origins
from proxy.config.settings import UpstreamSetting
from proxy.errors import ConfigError
from tests.conftest import StartProxy
from tests.embeddings.test_fast_path import Parsed, request, told, wire
from tests.support.client import KEY, Client, UpstreamResponse, raw
from tests.support.pages import (
    ALLOW_ORIGIN,
    OTHER,
    PAGE,
    POLICIES,
    PREFLIGHT,
    UNKNOWN,
    Browsable,
    Policy,
    ask,
    cors,
    everyone,
    owning,
    preflight,
    reflects,
)
from tests.support.scripted import Call, ScriptedUpstream, error_reply
from tests.support.settings import DEFAULTS

ALLOWED = frozenset({PAGE, OTHER})


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
