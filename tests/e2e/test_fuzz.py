"""Whatever a client sends: no error of the proxy's own making, no hang; what is not understood arrives as it was."""

import asyncio
import os
import random
import sys
from collections.abc import Iterator

import orjson
import pytest
from aiohttp import web

from proxy.config.upstream_urls import parse_upstream
from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.scripted import Call, ScriptedUpstream, items_of

BODIES = 200_000 if IS_SLOW_PROFILE else 1_500
EXAMPLES = 2_000 if IS_SLOW_PROFILE else 30
AT_ONCE = 32
CHOKE_S = 60.0  # by then it hangs

SEEDS = [
    b'{"model":"m","input":"x"}',
    b'{"input":["a","b","a"],"model":"m","encoding_format":"base64"}',
    b'{"model":"m","input":[1,2,3],"dimensions":8,"user":"u"}',
    b'{"model":"m","input":[[1],[2,3]],"encoding_format":"float"}',
    b'{"model":"m","input":[{"content":[{"type":"text","text":"x"}]}],"provider":{"order":["a"]}}',
    '{"model":"m","input":["caf\u00e9 \U0001f600","\\u00e9\\ud83d\\ude00:"],"task":"q"}'.encode(),
    b'{"model":"m","input":["x"],"truncate":true,"late_chunking":false,"modality":"text"}',
]
PIECES = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"-1", b"1e999", b"1E-400", b"NaN", b"Infinity",
    b"18446744073709551616", b"9007199254740993", b"-0.0", b"\\ud800", b"\\u0000", b"\\u003a", b"\x00", b"\xff",
    b"\xc3", b"\xef\xbb\xbf", b'""', b"[]", b"{}", b'"model":"n"', b'"input":"y"', b'"input":[],',
    b'"encoding_format":null,', b'"dimensions":0,', b'"dimensions":"8",', b"[" * 200,
    b'{"a":' * 100, b" " * 50, b"/**/", b"'", b"\r\n",
    b"a" * 5000,
]  # fmt: skip


def mutated(rng: random.Random, body: bytes) -> bytes:
    """A few random edits, of bytes or of pieces that mean something to a JSON parser."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        at, end = sorted(rng.randrange(len(body) + 1) for _ in range(2))
        match rng.randrange(6):
            case 0:
                body = body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]
            case 1:
                body = body[:at] + rng.choice(PIECES) + body[at:]
            case 2:
                body = body[:at] + rng.choice(PIECES) + body[end:]
            case 3:
                body = body[:at] + body[min(end, at + 8) :]
            case 4:
                body = body[:at] + body[at:end] * 2 + body[end:]
            case 5:
                other = rng.choice(SEEDS)
                body = body[:at] + other[rng.randrange(len(other)) :]
    return body


def bodies(count: int) -> Iterator[bytes]:
    rng = random.Random(20261120)
    for _ in range(count):
        yield mutated(rng, rng.choice(SEEDS))


class TolerantUpstream:
    """Answers what it can read and refuses the rest, and knows what it was sent under which number."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self.received: dict[str, bytes] = {}

    def __call__(self, call: Call) -> web.Response:
        if (number := call.headers.get("x-number")) is not None:
            self.received[number] = call.body
        self._upstream.calls.clear()
        try:
            asked = orjson.loads(call.body)
            asked = {"model": asked["model"], "input": asked["input"], "dimensions": asked.get("dimensions")}
            return self._upstream.embed(Call("POST", "", call.headers, orjson.dumps(asked), call.request))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a mutated body
            return web.json_response({"error": {"message": type(error).__name__}}, status=400)


@pytest.mark.long
async def test_mutated_bodies_are_served_or_relayed_unchanged(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    # To note where each step came from, as debugging does, takes eight times as long.
    asyncio.get_running_loop().set_debug(False)
    client = await start_proxy(provider="generic")
    received = TolerantUpstream(upstream)
    upstream.reply = received
    pending = iter(enumerate(bodies(BODIES)))
    outcomes: dict[str, int] = {}

    async def work() -> None:
        for number, body in pending:
            answer = await asyncio.wait_for(client.post(body, x_number=str(number)), CHOKE_S)
            check(body, answer, received.received.pop(str(number), None))
            outcomes[answer.headers["X-Cache"]] = outcomes.get(answer.headers["X-Cache"], 0) + 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(work())
    assert sum(outcomes.values()) == BODIES
    assert min(outcomes.get(state, 0) for state in ("HIT", "MISS", "BYPASS")) > 0


def check(body: bytes, answer: UpstreamResponse, received: bytes | None) -> None:
    assert answer.status in {200, 400}, (body, answer.status, answer.body)
    if answer.cache == "BYPASS":
        assert received == body
    elif answer.status == 200:
        asked = orjson.loads(body)
        data = answer.json["data"]
        assert [datum["index"] for datum in data] == list(range(len(items_of(asked["input"]))))
        assert len({orjson.dumps(datum["embedding"]) for datum in data}) == len(
            {orjson.dumps(item) for item in items_of(asked["input"])}
        )


@pytest.mark.long
async def test_requests_generated_from_the_openapi_description(start_proxy: StartProxy) -> None:
    client = await start_proxy(upstream=parse_upstream("demo"))
    assert await schemathesis(client) == 0


async def schemathesis(client: Client) -> int:
    """Run it against the proxy, in a process of its own; its exit status."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{client.proxy.admin_url}/openapi.json",
        f"--url={client.proxy.base_url}",
        f"--max-examples={EXAMPLES}",
        "--checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
        "response_headers_conformance",
        "--header=Authorization: Bearer k",
        "--seed=1",
        "--no-color",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
    )
    said, _ = await process.communicate()
    sys.stdout.write(said.decode())
    assert process.returncode is not None
    return process.returncode
