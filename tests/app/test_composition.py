"""The two ports, and how a process starts and ends."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from proxy.app import running
from proxy.config.settings import StoreSetting
from proxy.errors import ConfigError
from proxy.protocol.providers import GENERIC
from tests.conftest import StartProxy
from tests.support import proxy_log
from tests.support.client import Client, raw
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import ScriptedUpstream, error_reply
from tests.support.settings import settings_for


async def test_a_target_that_names_a_host_is_refused(client: Client, upstream: ScriptedUpstream) -> None:
    answer = await raw(client, b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"type":"invalid_request_error"' in answer
    assert not upstream.calls


async def test_bytes_that_are_not_http_are_refused_and_the_process_lives(client: Client) -> None:
    assert (await raw(client, b"\x16\x03\x01 not http\r\n\r\n")).startswith(b"HTTP/1.1 400")
    assert (await client.embed("x")).cache == "MISS"


async def test_a_started_proxy_is_healthy_and_ready(client: Client) -> None:
    for path in ("/healthz", "/readyz"):
        async with client.session.get(client.proxy.admin_url + path) as response:
            assert (response.status, await response.text()) == (200, "ok\n")


async def test_metrics_are_in_the_prometheus_text_format(client: Client) -> None:
    async with client.session.get(client.proxy.admin_url + "/metrics") as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "# HELP embedding_proxy_requests_total " in await response.text()


async def test_the_admin_routes_are_not_on_the_data_port(client: Client, upstream: ScriptedUpstream) -> None:
    await client.send("GET", "/metrics")
    assert upstream.calls[0].target == "/metrics"


async def test_a_taken_port_is_reported(upstream: ScriptedUpstream, start_proxy: StartProxy) -> None:
    client = await start_proxy()
    port = int(client.origin.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=rf"can't listen on 127\.0\.0\.1:{port}: .*; choose another with --port"):
        async with running(settings_for(upstream, port=port)):
            pass


async def test_a_store_that_fails_is_logged_at_once(start_proxy: StartProxy, caplog: pytest.LogCaptureFixture) -> None:
    unreachable = StoreSetting(url=f"redis://127.0.0.1:{free_port()}")
    for store, reason in ((unreachable, "connection"), (StoreSetting(path=Path("/proc/no/such")), "refused")):
        caplog.clear()
        client = await start_proxy(store=store)
        await client.proxy.cache.probe_store()
        # That the item of the proxy before was not stored is said when its write has failed.
        (message,) = [line for line in proxy_log.messages(caplog) if not line.startswith("items not stored")]
        assert message.startswith(f"store not available ({reason}: ")
        assert (await client.embed("x")).status == 200
        await client.proxy.fetcher.drain()  # what could not be stored is said, too, and is not of the next store


async def test_a_proxy_does_not_start_with_another_programs_file_as_its_store(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\xff\xd8\xff\xe0\0" * 10_000)
    for path, what in ((photo, "a file of something else"), (tmp_path, "a folder")):
        with pytest.raises(ConfigError) as refused:
            async with running(settings_for(upstream, store=StoreSetting(path=path))):
                pass
        assert str(refused.value) == (
            f"--store sqlite:///{path}: this is {what} and no store; left unchanged;"
            " accepted: the file of a store, or a path without a file"
        )
    assert photo.read_bytes() == b"\xff\xd8\xff\xe0\0" * 10_000
    assert list(tmp_path.iterdir()) == [photo]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_another_programs_file_as_the_store_is_one_line_and_exit_status_2(tmp_path: Path, workers: str) -> None:
    notes = tmp_path / "notes"
    notes.write_text("precious")
    command = [sys.executable, "-m", "proxy", "serve", "--port", "0", "--admin-port", "0", "--workers", workers]
    run = subprocess.run(
        [*command, "--store", f"sqlite:///{notes}"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith(f"embedding-proxy: --store sqlite:///{notes}: this is a file of text and no store;")
    assert notes.read_text() == "precious"


async def test_a_wrong_base_url_is_logged_once(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.reply = error_reply(404, b"404: Not Found")
    for n in range(3):
        assert (await client.post({"model": "m", "input": str(n)}, target=f"/v1/embeddings?n={n}")).status == 404
    assert proxy_log.messages(caplog) == [
        f"perhaps the base URL is wrong, or the model's name: 404 from {upstream.base_url}/embeddings"
        " (logged once; counted in metrics)"
    ]


async def test_an_unreachable_upstream_is_logged_the_first_time(
    start_proxy: StartProxy, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.base_url = f"http://127.0.0.1:{free_port()}/v1"
    client = await start_proxy()
    for n in range(3):
        assert (await client.embed(str(n))).status == 502
    (message,) = proxy_log.messages(caplog)
    assert message.startswith("upstream scripted: connection failed: Cannot connect to host 127.0.0.1")


async def test_the_openapi_description(client: Client) -> None:
    async with client.session.get(client.proxy.admin_url + "/openapi.json") as response:
        described = await response.json()
    assert described["servers"] == [{"url": client.proxy.base_url}]
    request = described["components"]["schemas"]["Request"]
    assert {"model", "input", "encoding_format", "user", *GENERIC.key} == set(request["properties"])


def curl(process: Process) -> str:
    """Run the line that the banner shows, as it stands there."""
    line = process.banner[process.banner.index("curl -i") :].split("\n\n")[0]
    return subprocess.run(["sh", "-c", f"{line} -s"], capture_output=True, text=True, check=True).stdout  # noqa: S607


def test_the_first_run_of_a_newcomer(tmp_path: Path) -> None:
    first = Process(tmp_path, free_port())
    miss, hit = curl(first), curl(first)
    assert "X-Cache: MISS" in miss
    assert "X-Cache: HIT" in hit
    data = miss.split('"data":')[1].split('"usage"')[0]
    assert data in hit
    first.stop(signal.SIGKILL)

    second = Process(tmp_path, free_port())
    again = curl(second)
    assert "X-Cache: HIT" in again
    assert data in again
    assert second.stop(signal.SIGTERM)[0] == 0


def test_the_python_lines_of_the_banner_run(tmp_path: Path) -> None:
    process = Process(tmp_path, free_port())
    snippet = process.banner[process.banner.index("    from openai") :].split("\n\n")[0]
    code = "\n".join(line.strip() for line in snippet.splitlines())
    miss, hit = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    numbers = re.fullmatch(r"X-Cache: MISS (\[(-?0\.\d*[1-9]\d*, ){3}-?0\.\d*[1-9]\d*\])\n", miss)
    assert numbers is not None, miss
    assert hit == f"X-Cache: HIT {numbers[1]}\n"
    assert process.stop(signal.SIGINT)[0] == 0


def test_the_variable_of_the_banner_points_the_sdk_to_the_proxy(tmp_path: Path) -> None:
    process = Process(tmp_path, free_port())
    code = "from openai import OpenAI; print(OpenAI(api_key='any').embeddings.create(model='m', input='x').model)"
    export = next(line for line in process.banner.splitlines() if "OPENAI_BASE_URL" in line)
    run = subprocess.run(  # noqa: S602 - the line as it stands there
        f'{export}\n"{sys.executable}" -c "{code}"', shell=True, capture_output=True, text=True, check=True
    )
    assert run.stdout == "m\n"
    assert process.stop(signal.SIGINT)[0] == 0


def test_json_logs_are_json_to_the_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "proxy", "serve", "--port", "0", "--admin-port", "0", "--log-format", "json"]
    command += ["--store", "memory:"]
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert popen.stdout is not None
    first = popen.stdout.readline()
    popen.send_signal(signal.SIGTERM)
    rest, _ = popen.communicate()
    lines = [orjson.loads(line) for line in [first, *rest.splitlines()]]
    assert lines[0]["message"].startswith("serving http://127.0.0.1:")
    assert lines[-1]["message"] == "stopped"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
