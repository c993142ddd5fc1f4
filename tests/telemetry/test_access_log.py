import asyncio

import orjson
import pytest
from aiohttp import ClientPayloadError, web

from proxy.labels import RequestOutcome
from proxy.telemetry.access_log import AccessLog, AccessLogLine, RequestIds, trace_id
from tests.conftest import StartProxy
from tests.support.scripted import Call, ScriptedUpstream, error_reply

LINE = AccessLogLine(
    request_id="id-1",
    trace_id=None,
    outcome=RequestOutcome.HIT,
    status=200,
    model="m",
    items=3,
    cached=3,
    duration_s=0.00021,
    held_s=0.0,
    client=None,
    why=None,
)
NOW = 1_700_000_000.25


def text_of(line: AccessLogLine, *, is_json: bool = True) -> str:
    written: list[str] = []
    log = AccessLog(written.append, is_json=is_json, clock=lambda: NOW)
    log.add(line)
    log.flush()
    (text,) = written
    return text


def test_a_line_of_json_has_every_field() -> None:
    assert orjson.loads(text_of(LINE._replace(trace_id="ab" * 16))) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "proxy.requests",
        "message": "request",
        "request_id": "id-1",
        "outcome": "hit",
        "status": 200,
        "model": "m",
        "items": 3,
        "cached": 3,
        "duration_ms": 0.21,
        "trace_id": "ab" * 16,
    }
    assert "trace_id" not in orjson.loads(text_of(LINE))


def test_a_line_for_people_has_what_they_look_for() -> None:
    assert text_of(LINE, is_json=False)[8:] == " hit     200      0.21 ms     3/3     m  id-1\n"


@pytest.mark.parametrize("is_json", [True, False])
def test_a_models_name_can_not_forge_lines(is_json: bool) -> None:
    text = text_of(LINE._replace(model="m\n12:00:00 hit 200\x1b[2J\u202e" + "x" * 10_000), is_json=is_json)
    assert text.count("\n") == 1
    assert text.isascii() or is_json
    assert "\x1b" not in text
    assert len(text) < 500


def test_lines_are_buffered_up_to_a_limit() -> None:
    written: list[str] = []
    log = AccessLog(written.append, is_json=False)
    for _ in range(5000):
        log.add(LINE)
    assert [text.count("\n") for text in written] == [4096]
    log.flush()
    log.flush()
    assert [text.count("\n") for text in written] == [4096, 904]


def test_nothing_is_buffered_without_an_access_log() -> None:
    log = AccessLog(None, is_json=False)
    log.add(LINE)
    assert not log._lines


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("4bf92f3577b34da6a3ce929d0e0e4736", None),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None),
        (None, None),
    ],
)
def test_only_a_valid_traceparent_gives_a_trace_id(given: str | None, expected: str | None) -> None:
    assert trace_id(given) == expected


def test_a_plain_id_of_the_client_is_kept_and_others_are_numbered() -> None:
    ids = RequestIds("abcd")
    assert ids.of("the-clients-own") == "the-clients-own"
    assert [ids.of(given) for given in (None, "", "two words", "x" * 129, "line\nbreak")] == [
        f"abcd-{n}" for n in range(1, 6)
    ]


@pytest.mark.relays_refusals
async def test_every_request_has_one_line_and_an_id(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    lines: list[str] = []
    client = await start_proxy(write_log=lines.append, log_format="json")
    answers = [
        await client.embed(["a", "b"]),
        await client.embed(["a", "b", "c"], headers={"X_Request_Id": "mine"}),
        await client.embed(["c"], headers={"traceparent": f"00-{'12' * 16}-{'34' * 8}-01"}),
        await client.embed(["c"], stream=True),
        await client.post(b"{"),
    ]
    upstream.reply = error_reply(429, b"{}", x_request_id="the-upstreams")
    answers += [await client.embed("d"), await client.send("GET", "/v1/models"), await client.send("GET", "//")]
    client.proxy.log.flush()
    logged = [orjson.loads(line) for line in "".join(lines).splitlines()]
    assert [(line["outcome"], line["status"], line["items"], line["cached"]) for line in logged] == [
        ("miss", 200, 2, 0),
        ("partial", 200, 3, 2),
        ("hit", 200, 1, 1),
        ("bypass", 200, 1, 0),
        ("bypass", 500, 1, 0),
        ("error", 429, 1, 0),
        ("pass", 429, 0, 0),
        ("pass", 429, 0, 0),
    ]
    assert [line["model"] for line in logged] == ["m", "m", "m", "m", None, "m", None, None]
    assert logged[2]["trace_id"] == "12" * 16
    assert [answer.headers["X-Request-Id"] for answer in answers[:3]] == [line["request_id"] for line in logged[:3]]
    assert logged[1]["request_id"] == "mine"
    assert answers[5].headers["X-Request-Id"] == "the-upstreams"


async def test_a_client_that_leaves_is_logged(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    lines: list[str] = []
    client = await start_proxy(write_log=lines.append, log_format="json")
    arrived, gate = asyncio.Event(), asyncio.Event()

    async def held(call: Call) -> web.Response:
        arrived.set()
        await gate.wait()
        return upstream.embed(call)

    upstream.reply = held
    leaving = asyncio.create_task(client.embed("x"))
    await arrived.wait()
    leaving.cancel()
    while not lines:
        await asyncio.sleep(0)
        client.proxy.log.flush()
    gate.set()
    assert orjson.loads(lines[0])["status"] == 499
    assert await client.metric("embedding_proxy_requests_total", outcome="error", status="499") == 1


@pytest.mark.parametrize("target", ["/v1/embeddings", "/v1/chat/completions"])
async def test_a_response_that_the_upstream_breaks_off_is_not_logged_as_a_client_that_left(
    start_proxy: StartProxy, upstream: ScriptedUpstream, target: str
) -> None:
    lines: list[str] = []
    client = await start_proxy(write_log=lines.append, log_format="json")

    async def break_off(call: Call) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(call.request)
        await response.write(b"{")
        assert call.request.transport is not None
        call.request.transport.close()
        return response

    upstream.reply = break_off
    with pytest.raises(ClientPayloadError):
        await client.post({"model": "m", "input": "x", "stream": True}, target=target)
    client.proxy.log.flush()
    assert orjson.loads(lines[0])["status"] == 502
