"""Reaching an upstream through real forward proxies, and real TLS servers that request a certificate."""

import asyncio
import logging
import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import trustme
from aiohttp import web
from yarl import URL

from proxy.config.settings import UpstreamSetting
from proxy.errors import ConfigError
from proxy.upstream import egress
from proxy.upstream.egress import Egress
from proxy.upstream.outbound import Outbound
from tests.conftest import StartProxy
from tests.support.authorities import Authorities, careless, refusing
from tests.support.client import KEY, Client
from tests.support.forward_proxy import ForwardProxy
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import Call, ScriptedUpstream, error_reply

LOGIN = "Basic dTpwQHNzOi8="  # u and p@ss:/
URL_LOGIN = "u:p%40ss%3A%2F"
DOWN = 502, "upstream_unreachable"


@pytest.fixture
def authorities(tmp_path: Path) -> Authorities:
    return Authorities(tmp_path)


class Net:
    """One upstream and one forward proxy, each with TLS or without."""

    def __init__(self, upstream: ScriptedUpstream, through: ForwardProxy, start: StartProxy, way: Egress) -> None:
        self.upstream = upstream
        self.through = through
        self.way = way
        self._start = start

    async def proxy(self, *, login: str = "", **changes: Any) -> Client:
        way = replace(self.way, **changes)
        if login and way.proxy is not None:
            way = replace(way, proxy=egress.parse_proxy(way.proxy.url.replace("://", f"://{login}@")))
        return await self._start(upstream=UpstreamSetting(name="scripted", base_url=self.upstream.base_url, egress=way))

    def answer(self, answer: Any) -> tuple[int, str]:
        return answer.status, answer.json["error"]["code"]


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the proxy logged; on a busy machine asyncio's debug mode has something to say as well."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("proxy.")]


@pytest.fixture(params=["http", "https"])
def upstream_scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy_scheme() -> str:
    return "http"


@pytest.fixture
async def net(
    authorities: Authorities, start_proxy: StartProxy, upstream_scheme: str, proxy_scheme: str
) -> AsyncIterator[Net]:
    tls = authorities.server_tls()
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(
            ScriptedUpstream().serving(tls if upstream_scheme == "https" else None)
        )
        through = await stack.enter_async_context(ForwardProxy().serving(tls if proxy_scheme == "https" else None))
        way = Egress(proxy=egress.parse_proxy(f"{proxy_scheme}://127.0.0.1:{through.port}"), ca=authorities.ca)
        yield Net(upstream, through, start_proxy, way)


# --- through the forward proxy


@pytest.mark.parametrize("proxy_scheme", ["http", "https"])
async def test_miss_uses_the_forward_proxy_and_hit_does_not(net: Net, upstream_scheme: str) -> None:
    net.through.login = LOGIN
    client = await net.proxy(login=URL_LOGIN)
    miss, hit = await client.embed(["a", "b"]), await client.embed(["a", "b"])
    assert [(answer.status, answer.cache) for answer in (miss, hit)] == [(200, "MISS"), (200, "HIT")]
    assert hit.vectors == miss.vectors
    authority = net.upstream.base_url.split("/")[2]
    wanted = {
        "https": f"CONNECT {authority} HTTP/1.1",
        "http": f"POST http://{authority}/v1/embeddings HTTP/1.1",
    }[upstream_scheme]
    assert net.through.lines == [wanted]
    assert len(net.upstream.calls) == 1


@pytest.mark.parametrize("upstream_scheme", ["https"])
async def test_tunnel_is_reused_for_later_calls(net: Net) -> None:
    net.through.login = LOGIN
    client = await net.proxy(login=URL_LOGIN)
    for item in ("a", "b", "c"):
        assert (await client.embed(item)).cache == "MISS"
    assert len(net.through.heads) == 1
    assert len(net.upstream.calls) == 3


async def test_credentials_stay_with_forward_proxy_or_upstream(net: Net, upstream_scheme: str) -> None:
    net.through.login = LOGIN
    client = await net.proxy(login=URL_LOGIN)
    await client.embed("a", headers={"Proxy-Authorization": "Basic Y2xpZW50OmNsaWVudA=="})
    assert f"Proxy-Authorization: {LOGIN}\r\n" in net.through.heads[0]
    assert "Proxy-Authorization" not in net.upstream.calls[0].headers
    assert net.upstream.calls[0].headers["Authorization"] == KEY
    if upstream_scheme == "https":
        assert KEY not in net.through.heads[0]


async def test_passthrough_streams_through_the_forward_proxy(net: Net) -> None:
    received = asyncio.Event()

    async def events(call: Call) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(call.request)
        for number in range(3):
            received.clear()
            await response.write(b"data: %d\n\n" % number)
            await received.wait()  # the next is sent only when the client has seen this one
        return response

    net.upstream.reply = events
    net.through.login = LOGIN
    client = await net.proxy(login=URL_LOGIN)
    seen = []
    url = URL(client.origin + "/v1/chat/completions?a=%2F&b=%c3", encoded=True)
    async with client.session.post(url, data=b"{}") as response:
        async for chunk in response.content.iter_any():
            seen.append(chunk)
            received.set()
    assert seen == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
    assert net.upstream.calls[0].target == "/v1/chat/completions?a=%2F&b=%c3"
    assert len(net.through.heads) == 1


async def test_bypass_uses_the_forward_proxy(net: Net) -> None:
    client = await net.proxy()
    answer = await client.embed("a", never_heard_of=1)
    assert answer.status == 200
    assert len(net.through.heads) == len(net.upstream.calls) == 1


async def test_websocket_uses_the_forward_proxy(net: Net) -> None:
    async def echo(call: Call) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(call.request)
        async for message in socket:
            await socket.send_str(message.data + "!")
        return socket

    net.upstream.reply = echo
    net.through.login = LOGIN
    client = await net.proxy(login=URL_LOGIN)
    async with client.session.ws_connect(client.origin.replace("http", "ws") + "/v1/realtime") as socket:
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello!"
        await socket.close()
    assert len(net.through.heads) == 1
    assert "Proxy-Authorization" not in net.upstream.calls[0].headers


async def test_each_upstream_uses_its_own_forward_proxy(net: Net, upstream: ScriptedUpstream) -> None:
    there = UpstreamSetting(name="there", base_url=net.upstream.base_url, egress=net.way)
    here = UpstreamSetting(name="here", base_url=upstream.base_url, models=("local",))
    client = await net._start(upstream=there, routed=(here,))
    assert (await client.embed("a")).status == (await client.embed("a", model="local")).status == 200
    assert len(net.through.heads) == len(net.upstream.calls) == len(upstream.calls) == 1


async def test_proxies_from_the_environment_are_ignored(
    start_proxy: StartProxy, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{free_port()}")
    client = await start_proxy()
    assert (await client.embed("a")).status == 200
    assert (await client.send("GET", "/v1/models", body=b"{}")).status != 502


async def test_no_proxy_variable_does_not_disable_the_configured_proxy(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    client = await net.proxy()
    assert (await client.embed("a")).status == 200
    assert len(net.through.heads) == 1


# --- failures of the forward proxy

REFUSALS = [
    (b"HTTP/1.1 407 Who Are You\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
     "the forward proxy refused this proxy's credentials (407)"),
    (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\npolicy", "the forward proxy does not allow it (403)"),
    (b"HTTP/1.1 302 Found\r\nLocation: http://login/\r\nContent-Length: 0\r\n\r\n",
     "the forward proxy does not allow it (302)"),
    (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "the forward proxy can't connect to it (503)"),
    (b"", "the forward proxy closed the connection without a response"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", "the forward proxy's response is not HTTP"),
]  # fmt: skip


@pytest.mark.parametrize("upstream_scheme", ["https"])
@pytest.mark.parametrize(("reply", "why"), REFUSALS, ids=[why for _, why in REFUSALS])
async def test_failed_connect_is_reported_and_opens_the_circuit(
    net: Net, caplog: pytest.LogCaptureFixture, reply: bytes, why: str
) -> None:
    net.through.reply = reply
    client = await net.proxy(login=URL_LOGIN)
    for number in range(5):
        answer = await client.embed(str(number))
        assert net.answer(answer) == DOWN
        assert answer.json["error"]["message"] == f"The upstream could not be reached: {why}."
    assert net.answer(await client.embed("x")) == (503, "upstream_down")
    assert len(net.through.heads) == 5
    assert not net.upstream.calls
    first, second = logged(caplog)
    assert first.startswith(f"upstream scripted: connection failed: through http://127.0.0.1:{net.through.port}: ")
    assert second.startswith("circuit open for upstream scripted (")
    for route in (client.send("GET", "/v1/models"), client.send("POST", "/v1/chat/completions", body=b"{}")):
        answer = await route
        assert net.answer(answer) == DOWN
        assert answer.json["error"]["message"] == f"The upstream could not be reached: {why}."
        assert "Proxy-Authenticate" not in answer.headers
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.session.ws_connect(client.origin.replace("http", "ws") + "/v1/realtime")
    assert refused.value.status == 502


async def test_forward_proxy_down_opens_the_circuit(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    client = await net.proxy(proxy=egress.parse_proxy(f"http://{URL_LOGIN}@127.0.0.1:{free_port()}"))
    for number in range(5):
        answer = await client.embed(str(number))
        assert net.answer(answer) == DOWN
        assert answer.json["error"]["message"].endswith(": the forward proxy can't be connected to.")
    assert net.answer(await client.embed("x")) == (503, "upstream_down")
    assert not net.upstream.calls
    assert "p@ss" not in caplog.text
    assert LOGIN.split()[1] not in caplog.text


async def test_unresolvable_forward_proxy_is_reported(net: Net) -> None:
    client = await net.proxy(proxy=egress.parse_proxy("http://proxy.invalid:3128"))
    answer = await client.embed("a")
    assert answer.json["error"]["message"].endswith(": the forward proxy's host name is not known.")


@pytest.mark.parametrize("upstream_scheme", ["https"])
async def test_silent_forward_proxy_hits_the_connect_timeout(net: Net, start_proxy: StartProxy) -> None:
    net.through.hangs = True
    setting = UpstreamSetting(name="scripted", base_url=net.upstream.base_url, egress=net.way)
    client = await start_proxy(upstream=setting, upstream_connect_timeout_s=0.05)
    for number in range(5):
        assert net.answer(await client.embed(str(number))) == (504, "upstream_timeout")
    assert net.answer(await client.embed("x")) == (503, "upstream_down")


@pytest.mark.parametrize("upstream_scheme", ["http"])
async def test_407_of_the_forward_proxy_is_not_relayed(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    net.through.login = LOGIN
    client = await net.proxy()
    for answer in (await client.embed("a"), await client.send("GET", "/v1/models")):
        assert net.answer(answer) == DOWN
        assert "(407)" in answer.json["error"]["message"]
        assert "Proxy-Authenticate" not in answer.headers
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.session.ws_connect(client.origin.replace("http", "ws") + "/v1/realtime")
    assert refused.value.status == 502
    assert await client.metric("embedding_proxy_upstream_answers_total", status="unreachable") == 1
    (said,) = logged(caplog)
    assert said.startswith("upstream scripted: connection rejected: ")


@pytest.mark.parametrize("upstream_scheme", ["https"])
async def test_407_inside_a_tunnel_is_relayed(net: Net) -> None:
    net.upstream.reply = error_reply(407, {"error": "mine"})
    client = await net.proxy()
    answer = await client.send("GET", "/v1/models")
    assert (answer.status, answer.json) == (407, {"error": "mine"})


@pytest.mark.parametrize("upstream_scheme", ["https"])
@pytest.mark.parametrize("proxy_scheme", ["https"])
async def test_forward_proxy_with_untrusted_certificate_is_refused(net: Net, authorities: Authorities) -> None:
    other = authorities.write("other.pem", trustme.CA().cert_pem.bytes())
    client = await net.proxy(login=URL_LOGIN, ca=other)
    answer = await client.embed("a")
    assert answer.json["error"]["message"].endswith(": the forward proxy's certificate is not trusted.")
    assert not net.through.heads


async def test_forward_proxy_credentials_are_never_shown(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    net.through.reply = REFUSALS[0][0]
    client = await net.proxy(login=URL_LOGIN)
    shown = [(await client.embed("a")).body, (await client.send("GET", "/v1/models")).body]
    for path in ("/", "/status.json", "/metrics", "/openapi.json"):
        async with client.session.get(client.proxy.admin_url + path) as response:
            shown.append(await response.read())
    everything = b"".join(shown).decode() + caplog.text + repr(net.way) + repr(client.proxy.origins.default)
    for secret in ("p@ss", URL_LOGIN, LOGIN, LOGIN.split()[1]):
        assert secret not in everything


# --- TLS


def peer_certificate(call: Call) -> Any:
    """The certificate of who called, as `ssl.SSLSocket.getpeercert` has it."""
    assert call.request.transport is not None
    return call.request.transport.get_extra_info("peercert")


def peer_name(call: Call) -> str:
    return str(dict(pair for (pair,) in peer_certificate(call)["subject"])["commonName"])


Start = Callable[[str, Egress], Any]


@pytest.fixture
def start(start_proxy: StartProxy) -> Start:
    """Starts a proxy in front of a base URL."""

    async def start(base_url: str, way: Egress) -> Client:
        return await start_proxy(upstream=UpstreamSetting(name="scripted", base_url=base_url, egress=way))

    return start


async def test_private_authority_is_trusted_only_if_configured(authorities: Authorities, start: Start) -> None:
    async with ScriptedUpstream().serving(authorities.server_tls()) as upstream:
        untrusting = await start(upstream.base_url, Egress())
        for answer in (await untrusting.embed("a"), await untrusting.send("GET", "/v1/models")):
            assert answer.json["error"]["message"].endswith(": its certificate is not trusted.")
        trusting = await start(upstream.base_url, Egress(ca=authorities.ca))
        assert [(await trusting.embed("a")).cache for _ in range(2)] == ["MISS", "HIT"]


async def test_configured_authority_replaces_the_system_ones(authorities: Authorities, start: Start) -> None:
    other = authorities.write("other.pem", trustme.CA().cert_pem.bytes())
    async with ScriptedUpstream().serving(authorities.server_tls()) as upstream:
        answer = await (await start(upstream.base_url, Egress(ca=other))).embed("a")
        assert answer.json["error"]["message"].endswith(": its certificate is not trusted.")
        both = authorities.write("both.pem", "Größe\n".encode() + other.read_bytes() + authorities.ca.read_bytes())
        assert (await (await start(upstream.base_url, Egress(ca=both))).embed("a")).status == 200


async def test_intermediate_authority_can_be_configured(authorities: Authorities, start: Start) -> None:
    middle = authorities.servers.create_child_ca()
    ca = authorities.write("middle.pem", middle.cert_pem.bytes())
    async with ScriptedUpstream().serving(authorities.server_tls(by=middle)) as upstream:
        assert (await (await start(upstream.base_url, Egress(ca=ca))).embed("a")).status == 200


async def test_authority_that_fails_strict_x509_checks_is_trusted(tmp_path: Path, start: Start) -> None:
    ca, tls = careless(tmp_path)
    async with ScriptedUpstream().serving(tls) as upstream:
        assert (await (await start(upstream.base_url, Egress(ca=ca))).embed("a")).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_client_certificate_is_sent_when_requested(
    authorities: Authorities, start: Start, version: ssl.TLSVersion
) -> None:
    seen = []

    def peer(call: Call) -> web.Response:
        seen.append(peer_name(call))
        return upstream.embed(call)

    cert, key = authorities.client_files("proxy")
    both = authorities.write("both.pem", cert.read_bytes() + key.read_bytes())
    upstream = ScriptedUpstream(reply=peer)
    async with upstream.serving(authorities.server_tls(asks=True, version=version)):
        for way in (Egress(ca=authorities.ca, cert=cert, cert_key=key), Egress(ca=authorities.ca, cert=both)):
            client = await start(upstream.base_url, way)
            assert [(await client.embed("a")).cache for _ in range(2)] == ["MISS", "HIT"]
            assert (await client.post({"input": "a", "model": "m", "unheard": 1})).status == 200
        without = await start(upstream.base_url, Egress(ca=authorities.ca))
        assert (await without.embed("a")).json["error"]["code"] == "upstream_unreachable"
    assert seen == ["proxy"] * 4


ALERTS = [
    (ssl.TLSVersion.TLSv1_3, False, "it asks for a client certificate"),
    (ssl.TLSVersion.TLSv1_3, True, "it refused this proxy's client certificate"),
    (ssl.TLSVersion.TLSv1_2, False, "TLS with it failed"),
    (ssl.TLSVersion.TLSv1_2, True, "it refused this proxy's client certificate"),
]


@pytest.mark.parametrize(("version", "has_certificate", "why"), ALERTS)
async def test_refused_client_certificate_is_reported(
    authorities: Authorities, start: Start, caplog: pytest.LogCaptureFixture,
    version: ssl.TLSVersion, has_certificate: bool, why: str,
) -> None:  # fmt: skip
    way = Egress(ca=authorities.ca)
    if has_certificate:
        cert, key = authorities.client_files("stranger", trustme.CA())
        way = replace(way, cert=cert, cert_key=key)
    async with refusing(authorities.server_tls(asks=True, version=version)) as port:
        client = await start(f"https://127.0.0.1:{port}/v1", way)
        answer = await client.embed("a")
        assert answer.json["error"]["message"] == f"The upstream could not be reached: {why}."
        assert (await client.embed("b")).status == 502
    (said,) = logged(caplog)  # once
    assert said.startswith(("upstream scripted: connection failed: ", "upstream scripted: connection rejected: "))


@pytest.mark.parametrize("upstream_scheme", ["https"])
@pytest.mark.parametrize("proxy_scheme", ["http", "https"])
async def test_client_certificate_is_sent_through_a_tunnel(net: Net, authorities: Authorities, start: Start) -> None:
    cert, key = authorities.client_files("proxy")
    async with ScriptedUpstream().serving(authorities.server_tls(asks=True)) as upstream:
        client = await start(upstream.base_url, replace(net.way, cert=cert, cert_key=key))
        assert [(await client.embed("a")).cache for _ in range(2)] == ["MISS", "HIT"]
    assert len(net.through.heads) == 1


async def test_https_to_an_http_server_is_reported(
    start: Start, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    client = await start(upstream.base_url.replace("http:", "https:"), Egress())
    answer = await client.embed("a")
    assert answer.json["error"]["message"].endswith(": it does not speak TLS.")
    assert logged(caplog)[-1].endswith("; is its URL http:// and not https://?")


async def test_reloaded_files_apply_to_new_connections(authorities: Authorities, start: Start) -> None:
    seen = []

    def peer(call: Call) -> web.Response:
        seen.append(peer_certificate(call)["serialNumber"])
        return upstream.embed(call)

    upstream = ScriptedUpstream(reply=peer)
    async with upstream.serving(authorities.server_tls(asks=True)):
        cert, key = authorities.client_files("proxy")
        client = await start(upstream.base_url, Egress(ca=authorities.ca, cert=cert, cert_key=key))
        outbound = client.proxy.origins.default.client.outbound
        await client.embed("a")
        authorities.client_files("proxy")
        await client.embed("b")
        outbound.reload()
        await client.embed("c")
        authorities.ca.write_bytes(b"")
        with pytest.raises(
            ConfigError, match=r"upstream scripted: the CA file .*ca\.pem has no certificate in PEM form"
        ):
            outbound.reload()
        assert (await client.embed("d")).status == 200
    assert seen[0] == seen[1] != seen[2] == seen[3]


def test_refresh_reloads_changed_files(authorities: Authorities, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cert, key = authorities.client_files("proxy")
    outbound = Outbound("gpu", Egress(ca=authorities.ca, cert=cert, cert_key=key))
    first = outbound.options("https://h")["ssl"]
    outbound.refresh()
    assert outbound.options("https://h")["ssl"] is first
    key_before = key.read_bytes()
    authorities.client_files("proxy")
    key_after = key.read_bytes()
    key.write_bytes(key_before)  # only the one of the two is there yet
    outbound.refresh()
    outbound.refresh()
    assert outbound.options("https://h")["ssl"] is first
    key.write_bytes(key_after)
    outbound.refresh()
    assert outbound.options("https://h")["ssl"] is not first
    key.unlink()
    outbound.refresh()
    wrong, read, gone = logged(caplog)  # each said once
    assert wrong.startswith(f"upstream gpu: the key in {key} is not that of the first certificate in {cert}")
    assert wrong.endswith("; keeping the previous certificates")
    assert read == "upstream gpu: certificates reloaded"
    assert gone.startswith(f"upstream gpu: the client certificate's key {key}: No such file or directory")


# --- files that can't be used


def broken(authorities: Authorities) -> dict[str, tuple[Egress, str]]:
    cert, key = authorities.client_files("one")
    _, other_key = authorities.client_files("two")
    ca = authorities.ca
    der = authorities.write("ca.der", ssl.PEM_cert_to_DER_cert(ca.read_text()))
    empty = authorities.write("empty.pem", b"")
    cut = authorities.write("cut.pem", ca.read_bytes()[:300])
    locked = authorities.write("locked.pem", ENCRYPTED_KEY)
    locked_old = authorities.write("old.pem", ENCRYPTED_KEY_OLD)
    reversed_chain = authorities.write("reversed.pem", authorities.clients.cert_pem.bytes() + cert.read_bytes())
    folder, missing = ca.parent, ca.parent / "missing.pem"
    return {
        "no CA file": (Egress(ca=missing), f"the CA file {missing}: No such file or directory"),
        "a folder": (Egress(ca=folder), f"the CA file {folder}: Is a directory"),
        "empty": (Egress(ca=empty), f"the CA file {empty} has no certificate in PEM form"),
        "a key": (Egress(ca=key), f"the CA file {key} has no certificate in PEM form"),
        "DER": (Egress(ca=der), f"has no certificate in PEM form; it is DER: openssl x509 -inform DER -in {der} -out "),
        "cut short": (Egress(ca=cut), f"the CA file {cut} can't be read: "),
        "no certificate": (Egress(cert=missing), f"the client certificate {missing}: No such file or directory"),
        "no key file": (Egress(cert=cert, cert_key=missing), f"the client certificate's key {missing}: No such file"),
        "no key": (Egress(cert=cert), f"{cert} has no private key in PEM form; give --upstream-cert-key, or cert_key"),
        "swapped": (Egress(cert=key, cert_key=cert), f"{key} has no certificate in PEM form"),
        "key empty": (Egress(cert=cert, cert_key=empty), f"{empty} has no private key in PEM form"),
        "mismatch": (Egress(cert=cert, cert_key=other_key), f"the key in {other_key} is not that of the first certif"),
        "order": (Egress(cert=reversed_chain, cert_key=key), f"the key in {key} is not that of the first certificate"),
        "encrypted": (
            Egress(cert=cert, cert_key=locked), f"the key in {locked} is encrypted and the proxy can't prompt for"
        ),
        "encrypted, old": (Egress(cert=cert, cert_key=locked_old), f"the key in {locked_old} is encrypted"),
        "cut key": (
            Egress(cert=cert, cert_key=authorities.write("cut-key.pem", key.read_bytes()[:200])), "can't be used: "
        ),
    }  # fmt: skip


# Of a password nobody needs to know.
ENCRYPTED_KEY = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIH0\n-----END ENCRYPTED PRIVATE KEY-----\n"
ENCRYPTED_KEY_OLD = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIH0\n"


def test_unusable_files_raise_config_errors(authorities: Authorities) -> None:
    for name, (way, message) in broken(authorities).items():
        with pytest.raises(ConfigError) as error:
            Outbound("gpu", way)
        assert str(error.value).startswith("upstream gpu: "), name
        assert message in str(error.value), name
        assert "\n" not in str(error.value)


# --- a real process


async def test_process_applies_flags_and_reloads_certificates_on_sighup(
    authorities: Authorities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = authorities.client_files("proxy")
    renewed = authorities.client_files("renewed")
    upstream = ScriptedUpstream()
    seen = []

    def peer(call: Call) -> web.Response:
        assert call.request.transport is not None
        seen.append(
            dict(pair for (pair,) in call.request.transport.get_extra_info("peercert")["subject"])["commonName"]
        )
        return upstream.embed(call)

    upstream.reply = peer
    async with (
        upstream.serving(authorities.server_tls(asks=True)),
        ForwardProxy(login=LOGIN).serving(authorities.server_tls()) as through,
    ):
        monkeypatch.setenv("EMBEDDING_PROXY_UPSTREAM_PROXY", f"https://{URL_LOGIN}@127.0.0.1:{through.port}")
        flags = ("--upstream-ca", authorities.ca, "--upstream-cert", cert, "--upstream-cert-key", key)
        process = await asyncio.to_thread(
            Process, tmp_path, 0, "--upstream", upstream.base_url, "--store", "memory:", *map(str, flags)
        )
        try:
            assert f"via https://127.0.0.1:{through.port}" in process.banner
            async with aiohttp.ClientSession() as session:

                async def ask(item: str) -> str:
                    body = orjson.dumps({"model": "m", "input": item})
                    async with session.post(process.base_url + "/embeddings", data=body, headers=JSON) as answer:
                        return f"{answer.status} {answer.headers.get('X-Cache')}"

                assert [await ask("a"), await ask("a")] == ["200 MISS", "200 HIT"]
                shutil.copy(renewed[0], cert)
                shutil.copy(renewed[1], key)
                process.popen.send_signal(signal.SIGHUP)
                said = ""
                while "certificates reloaded" not in said:
                    said = await asyncio.to_thread(process.readline)
                    assert said, "it ended"
                assert await ask("b") == "200 MISS"
        finally:
            process.popen.kill()
            process.wait()
    assert seen == ["proxy", "renewed"]
    assert all(line.startswith("CONNECT 127.0.0.1:") for line in through.lines)


JSON = {"Content-Type": "application/json", "Authorization": KEY}
