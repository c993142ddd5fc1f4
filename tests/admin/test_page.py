"""The status page, and the same numbers in the terminal."""

import asyncio
import base64
import hashlib
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import orjson
import pytest

from proxy.admin.history import STEP_S, History
from proxy.admin.status import About, UpstreamStatus, status_of
from proxy.cli import stats_text
from proxy.config.settings import StoreSetting, UpstreamSetting
from proxy.labels import ItemResult
from proxy.protocol.providers import GENERIC
from proxy.telemetry.lane_gauges import LaneState
from proxy.telemetry.metrics import Metrics
from tests.conftest import StartProxy
from tests.support import cli
from tests.support.client import Client
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import ScriptedUpstream, error_reply

SECRETS = ("sk-upstream-secret", "redis-password", "record-key-secret")


async def fetched(client: Client, path: str) -> tuple[dict[str, str], str]:
    async with client.session.get(client.proxy.admin_url + path) as response:
        assert response.status == 200
        return dict(response.headers), await response.text()


async def test_the_page_may_run_its_own_script_and_nothing_else(client: Client) -> None:
    fields, html = await fetched(client, "/")
    assert fields["Content-Type"] == "text/html; charset=utf-8"
    assert fields["X-Content-Type-Options"] == "nosniff"
    assert fields["Cache-Control"] == "no-store"
    policy = dict(rule.split(" ", 1) for rule in fields["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in fields["Content-Security-Policy"]
    for element, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
        assert policy[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def test_the_page_refers_to_nothing_outside(client: Client) -> None:
    _, html = await fetched(client, "/")
    found: list[str | None] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert not {name for name, _ in attrs if name == "style" or name.startswith("on")}, tag
            found.extend(value for name, value in attrs if name in {"src", "href"})

    Links().feed(html)
    assert found[0] is not None
    assert found[0].startswith("data:image/svg+xml,")
    assert set(found[1:]) == {"status.json", "metrics", "openapi.json"}


async def test_the_numbers_are_those_of_the_traffic(start_proxy: StartProxy) -> None:
    now_s = 100.0
    client = await start_proxy(monotonic=lambda: now_s)
    await client.embed(["a", "b", "a"])
    await client.embed("a")
    await client.proxy.status_page.sample()
    now_s += 400.0
    await client.embed("b")
    fields, body = await fetched(client, "/status.json")
    assert fields["Content-Type"] == "application/json"
    assert fields["Cache-Control"] == "no-store"
    shown = orjson.loads(body)
    assert shown["uptime_s"] == 400.0
    assert shown["base_url"] == client.proxy.base_url
    assert shown["since_start"]["requests"] == {"hit": 2, "partial": 0, "miss": 1, "bypass": 0, "error": 0}
    assert shown["since_start"]["item_hit_rate"] == 3 / 5
    assert shown["recent"]["requests"]["hit"] == 1
    assert shown["recent"]["item_hit_rate"] == 1.0
    assert [model["name"] for model in shown["models"]] == ["m"]
    assert [upstream["latency"]["count"] for upstream in shown["upstreams"]] == [1]
    assert shown["load"]["requests_in_flight"] == 0
    assert not shown["is_draining"]


async def test_the_history_is_sampled(start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = asyncio.Event()
    monkeypatch.setattr("proxy.admin.port.STEP_S", 0.0)
    monkeypatch.setattr("proxy.admin.page.StatusPage.sample", lambda _: sampled.set())
    await start_proxy()
    await sampled.wait()


async def test_draining_is_shown(client: Client) -> None:
    client.proxy.lifecycle.is_draining = True
    assert orjson.loads((await fetched(client, "/status.json"))[1])["is_draining"]


async def test_no_secret_is_shown(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    upstream_key, password, record_key = SECRETS
    client = await start_proxy(
        upstream=UpstreamSetting(name="mine", base_url=upstream.base_url, provider=GENERIC, key=upstream_key),
        store=StoreSetting(url=f"redis://user:{password}@127.0.0.1:{free_port()}/0"),
        record_key=record_key.encode(),
    )
    assert (await client.post({"model": "m", "input": "text-of-a-client"}, key="Bearer key-of-a-client")).status == 200
    for path in ("/", "/status.json"):
        _, body = await fetched(client, path)
        for secret in (*SECRETS, "text-of-a-client", "key-of-a-client"):
            assert secret not in body
    assert orjson.loads(body)["store"]["url"].startswith("redis://…@127.0.0.1:")


async def test_it_is_not_on_the_data_port(client: Client, upstream: ScriptedUpstream) -> None:
    for path in ("/", "/status.json"):
        await client.send("GET", path)
    assert [call.target for call in upstream.calls] == ["/", "/status.json"]


async def test_the_command_stats_prints_the_numbers_of_the_page(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await client.embed(["a", "b", "a"])
    await client.embed("a")
    run = await cli.run_beside(monkeypatch, capsys, "stats", "--admin-url", client.proxy.admin_url + "/")
    assert (run.status, run.err) == (0, "")
    words = [line.split() for line in run.out.splitlines()]
    assert words[0][0] == "embedding-proxy"
    for row in (
        ["items", "from", "cache", "50.0", "%", "50.0", "%"],
        ["requests", "from", "cache", "50.0", "%", "50.0", "%"],
        ["requests", "2", "2"],
        ["items:", "duplicate", "1", "1"],
        ["breakers", "store_read", "closed,", "store_write", "closed,", "upstream", "scripted", "closed"],
    ):
        assert row in words
    assert ["m", "4", "50.0", "%"] in [line[:4] for line in words]
    assert max(len(line) for line in run.out.splitlines()) <= 80
    assert "money" not in run.out


async def test_stats_without_a_proxy(
    client: Client, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.reply = error_reply(404, {})
    port, base_url = free_port(), client.proxy.base_url
    for url, message in (
        (
            f"http://127.0.0.1:{port}",
            f"can't reach the proxy at http://127.0.0.1:{port}/status.json: Connection refused; ",
        ),
        ("file:///etc/passwd", "'file:///etc/passwd' is not a URL; accepted: as http://127.0.0.1:9090"),
        ("127.0.0.1:9090", "'127.0.0.1:9090' is not a URL; accepted: as http://127.0.0.1:9090"),
        (base_url, f"{base_url}/status.json returned 404 without a status; "),
        (f"http://u:secret@127.0.0.1:{port}", f"can't reach the proxy at http://…@127.0.0.1:{port}/status.json: "),
        ("ftp://u:secret@host", "'ftp://…@host' is not a URL; "),
        (f"unix:{'x' * 200}", f"can't reach the proxy at unix:{'x' * 200}: AF_UNIX path too long; "),
    ):
        run = await cli.run_beside(monkeypatch, capsys, "stats", "--admin-url", url)
        assert "secret" not in run.err
        assert (run.status, run.out, run.err.count("\n")) == (1, "", 1)
        assert run.err.startswith(f"embedding-proxy: {message}")


async def test_stats_of_the_proxy_that_has_the_same_file(
    start_proxy: StartProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = await start_proxy()
    await client.embed("a")
    file = tmp_path / "proxy.toml"
    file.write_text(f"admin_port = {client.proxy.admin_url.rpartition(':')[2]}\n")
    run = await cli.run_beside(monkeypatch, capsys, "stats", "--json", "--config", str(file))
    assert (run.status, run.json["models"][0]["name"]) == (0, "m")
    explained = await cli.run_beside(monkeypatch, capsys, "explain", "--last", "1", "--config", str(file))
    assert explained.status == 0, explained.err


async def test_stats_over_a_socket(
    start_proxy: StartProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"unix:{tmp_path / 'admin.sock'}"
    await start_proxy(admin_host=address)
    for option in ("--admin-host", "--admin-url"):
        run = await cli.run_beside(monkeypatch, capsys, "stats", option, address)
        assert (run.status, run.out.split()[0]) == (0, "embedding-proxy"), run.err
    run = await cli.run_beside(monkeypatch, capsys, "stats", "--admin-url", f"unix:{tmp_path / 'other.sock'}")
    assert (run.status, run.err.startswith(f"embedding-proxy: can't reach the proxy at unix:{tmp_path}")) == (1, True)


def test_watching_continues_without_the_proxy_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    process = Process(tmp_path, free_port(), "--store", "memory:")
    command = [sys.executable, "-m", "proxy", "stats", "--watch", "--admin-url", process.admin_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("embedding-proxy ")
        process.stop(signal.SIGTERM)
        for line in watching.stdout:
            if line.startswith("can't reach the proxy"):
                break
        assert watching.stdout.readline() == "\n"
        assert watching.stdout.readline().startswith("embedding-proxy ")  # what was known last
        watching.send_signal(signal.SIGINT)
        rest, errors = watching.communicate()
    assert "Traceback" not in rest + errors
    assert (watching.returncode, errors) == (0, "")


def test_a_models_name_can_not_control_the_terminal() -> None:
    metrics = Metrics(prices={"*": 1.0})
    name = "\x1b]0;owned\x07\x9b2J\r\n" + "x" * 100
    metrics.admit_model(name)
    metrics.of_model(name).items[ItemResult.MEMORY].inc()
    metrics.of_model(name).save(2_000_000)
    about = About(version="1", base_url="http://x/v1", upstreams=(), store_url="memory:")
    shown = status_of(metrics.families(), about, History(0.0), now_s=STEP_S, uptime_s=93784.0, is_draining=True)
    text = stats_text.render(shown)
    assert all(letter.isprintable() for letter in text.replace("\n", ""))
    assert "?]0;owned??2J??xxxxxxxx…" in text
    assert "up 1 d 2 h" in text
    assert "stopping" in text
    assert ["money", "saved", "2.00", "2.00"] in [line.split() for line in text.splitlines()]


def test_the_screen_says_what_waits_for_a_rate_limit() -> None:
    metrics = Metrics()
    metrics.admit_model("m")
    metrics.watch_lanes(lambda: [LaneState("openai", "m", 125.0, 10.0)])
    upstream = UpstreamStatus(name="openai", base_url="http://x/v1", provider="openai", models=())
    about = About(version="1", base_url="http://x/v1", upstreams=(upstream,), store_url="memory:")
    shown = status_of(metrics.families(), about, History(0.0), now_s=STEP_S, uptime_s=1.0, is_draining=False)
    assert "openai: m held by its rate limit for 2 min 5 s, 10 calls/s" in stats_text.render(shown).splitlines()
