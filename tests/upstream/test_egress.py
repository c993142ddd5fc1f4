"""Upstreams through a forward proxy, and the failures of one."""

import asyncio
import logging
import shutil
import signal
from pathlib import Path

import aiohttp
import orjson
import pytest
import trustme
from aiohttp import web
from yarl import URL

from proxy.config.settings import UpstreamSetting
from proxy.upstream import egress
from tests.conftest import StartProxy
from tests.support.authorities import Authorities
from tests.support.client import KEY
from tests.support.egress import LOGIN, URL_LOGIN, Net, logged
from tests.support.forward_proxy import ForwardProxy
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import Call, ScriptedUpstream, error_reply

DOWN = 502, "upstream_unreachable"


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
