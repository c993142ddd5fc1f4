"""What is not HTTP gets an error in OpenAI's form, and is quoted nowhere."""

import asyncio
import gc
import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import orjson
import pytest

from proxy.http import malformed
from proxy.http.connection import Connection
from tests.e2e.test_no_leaks import BEARER, KEY, TEXT, canaries_in, nothing_is_seen
from tests.support.client import Client, raw
from tests.support.gate import Gate
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.scripted import ScriptedUpstream, error_reply

MUTANTS = 100_000 if IS_SLOW_PROFILE else 2_000
AT_ONCE = 16
SILENCE_S = 5.0  # a mutant may well be the beginning of a request, and is waited for

AUTH = f"Authorization: {BEARER}\r\n".encode()
HOST = b"Host: localhost\r\n"
POST = b"POST /v1/embeddings HTTP/1.1\r\n" + HOST + AUTH
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
SECRET = f"{KEY} {TEXT}".encode()

# What is wrong, and the status for it.
MALFORMED = {
    "no HTTP at all": (SECRET + b"\r\n\r\n", 400),
    "an unknown version": (b"GET /" + KEY.encode() + b" HTTP/9.9\r\n" + AUTH + b"\r\n", 400),
    "a control character in a value": (POST + b"X: " + SECRET + b"\x01\r\n\r\n", 400),
    "NUL in a value": (POST + b"X: " + SECRET + b"\0\r\n\r\n", 400),
    "NUL in a name": (POST + KEY.encode() + b"\0: x\r\n\r\n", 400),
    "a length that is none": (POST + b"Content-Length: " + SECRET + b"\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "no host": (b"GET /" + KEY.encode() + b" HTTP/1.1\r\n" + AUTH + b"\r\n", 400),
    "a target that is no URL": (b"GET http://" + KEY.encode() + b"@h:x/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a chunk size that is none": (POST + CHUNKED + SECRET + b"\r\n", 400),
    "a chunk that is too long": (POST + CHUNKED + b"3\r\n" + SECRET + b"\r\n0\r\n\r\n", 400),
    "a trailer that is none": (POST + CHUNKED + b"0\r\n" + SECRET + b"\x01\r\n\r\n", 400),
    "a long target": (b"GET /" + KEY.encode() * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "a long value": (POST + b"X: " + SECRET * 9000 + b"\r\n\r\n", 431),
    "a long name": (POST + KEY.encode() * 9000 + b": x\r\n\r\n", 431),
    "many fields": (POST + b"".join(b"X-%d: %b\r\n" % (n, SECRET) for n in range(200)) + b"\r\n", 431),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _logs_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.mark.parametrize("name", MALFORMED)
async def test_it_gets_an_error_in_openais_form(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    request, status = MALFORMED[name]
    response = await raw(client, request)
    assert_is_error(response, status)
    assert not upstream.calls
    await nothing_is_seen(client, caplog)


def assert_is_error(response: bytes, status: int) -> None:
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert b"\r\nContent-Type: application/json" in head
    assert b"\r\nConnection: close" in head
    error = orjson.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert canaries_in(response) == []


@pytest.mark.parametrize("target", [b"/v1/embeddings", b"/v1/files"])
async def test_a_body_that_turns_out_malformed_is_refused_when_it_does(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, target: bytes
) -> None:
    """By then, its request is being handled and waits for the rest."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(client.origin.rpartition(":")[2]))
    writer.write(POST.replace(b"/v1/embeddings", target) + b"Expect: 100-continue\r\n" + CHUNKED)
    await reader.readuntil(b"100 Continue\r\n\r\n")
    writer.write(b"5\r\nhello\r\n" + SECRET + b"\r\n")
    assert_is_error(await reader.read(), 400)
    await close(writer)
    await nothing_is_seen(client, caplog)


async def test_a_body_that_is_malformed_before_its_turn_is_refused_in_turn(
    client: Client, upstream: ScriptedUpstream
) -> None:
    gate = Gate(upstream)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(client.origin.rpartition(":")[2]))
    writer.write(SEEDS[0] + POST + CHUNKED + b"5\r\nhello\r\n")
    await gate.calls(1)
    (connection,) = (it for it in gc.get_objects() if isinstance(it, Connection) and it.connected)
    writer.write(SECRET + b"\r\n")
    while len(connection._messages) < 2:
        await asyncio.sleep(0)
    gate.open()
    response = await reader.read()
    assert response.startswith(b"HTTP/1.1 200 ")
    assert_is_error(response[response.rindex(b"HTTP/1.1 ") :], 400)
    await close(writer)


@pytest.mark.parametrize("name", MALFORMED)
async def test_the_admin_port_logs_nothing_of_it(client: Client, caplog: pytest.LogCaptureFixture, name: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(client.proxy.admin_url.rpartition(":")[2]))
    writer.write(MALFORMED[name][0])
    writer.write_eof()
    with suppress(ConnectionError):
        await reader.read()
    await close(writer)
    await nothing_is_seen(client, caplog)


def test_the_two_limits_differ() -> None:
    assert malformed.MAX_TARGET_BYTES != malformed.MAX_FIELD_BYTES


# --- anything else that may arrive

SEEDS = [
    POST + b"Content-Type: application/json\r\nContent-Length: 25\r\n\r\n" + b'{"model":"m","input":"x"}',
    POST + b"X-" + KEY.encode() + b": " + SECRET + b"\r\n" + CHUNKED + b"9;" + KEY.encode()
    + b"\r\nc4nary7te\r\n0\r\n\r\n",
    b"GET /v1/" + KEY.encode() + b"?q=" + KEY.encode() + b" HTTP/1.1\r\n" + HOST + AUTH + b"\r\n",
    b"GET http://" + KEY.encode() + b"/ HTTP/1.1\r\n" + HOST + b"Cookie: " + SECRET + b"\r\n\r\n",
    b"CONNECT " + KEY.encode() + b":443 HTTP/1.1\r\n" + HOST + AUTH + b"\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + AUTH + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: "
    + KEY.encode() + b"\r\n\r\n" + SECRET,
]  # fmt: skip
PIECES = [
    b"\0", b"\x01", b"\x7f", b"\xff", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b";", b"/", b"//", b"?",
    b"#", b"@", b"[", b"]", b"%", b"%00", b"*", b"http://", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"GET", b"PRI",
    b"\x16\x03\x01", b"Host: x\r\n", b"Content-Length: 1\r\n", CHUNKED, b"Connection: close\r\n",
    b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"Sec-WebSocket-Key1: x\r\n",
    KEY.encode(), SECRET, AUTH, b"A" * 70_000,
]  # fmt: skip
# Ends what is still incomplete: no head, no chunk and no short body goes on like this.
TAIL = b"\x01" * 100 + b"\r\n\r\n" + b"\x01" * 100


def mutants(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Requests with something wrong in them, in two parts that are sent one after the other."""
    dice = random.Random(20261130)
    for _ in range(count):
        sent = dice.choice(SEEDS)
        for _ in range(dice.choice((1, 1, 2, 3))):
            at, end = sorted(dice.randrange(len(sent) + 1) for _ in range(2))
            match dice.randrange(4):
                case 0:
                    sent = sent[:at] + dice.choice(PIECES) + sent[at:]
                case 1:
                    sent = sent[:at] + dice.choice(PIECES) + sent[min(end, at + 20) :]
                case 2:
                    sent = sent[:at] + sent[min(end, at + 8) :]
                case 3:
                    sent = sent[:at] + bytes([dice.randrange(256)]) + sent[at + 1 :]
        cut = dice.randrange(len(sent) + 1)
        yield sent[:cut], sent[cut:] + TAIL


async def test_no_mutant_is_quoted(
    client: Client, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.get_running_loop().set_debug(False)  # most of the time would be debugging's
    upstream.reply = error_reply(200, b"{}")
    pending = mutants(MUTANTS)
    statuses: Counter[bytes] = Counter()
    port = int(client.origin.rpartition(":")[2])

    async def work() -> None:
        for first, second in pending:
            response = await exchange(port, first, second)
            upstream.calls.clear()
            assert canaries_in(response) == [], (first, second, response)
            assert b" 500 " not in response, (first, second, response)
            statuses[response[9:12]] += 1
            if response[9:10] == b"4":
                assert b"\r\nContent-Type: application/json" in response, (first, second, response)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(work())
    assert statuses.total() == MUTANTS
    assert statuses[b""] < MUTANTS / 20, statuses
    await nothing_is_seen(client, caplog)


async def exchange(port: int, first: bytes, second: bytes) -> bytes:
    """All bytes that arrive until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    response = b""
    try:
        async with asyncio.timeout(SILENCE_S):
            writer.write(first)
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(second)
            while chunk := await reader.read(65536):
                response += chunk
    except TimeoutError:
        pass
    except ConnectionError:
        return response
    finally:
        await close(writer)
    return response


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
