"""The processes that the benchmarks measure and load, each pinned to a core, and the CPU time they have used.

python -m bench.servers bare PORT                  bare aiohttp: reads a body, responds with as many bytes as one hit
python -m bench.servers upstream PORT DIMENSIONS   responds at once with a vector for each "#" in the body
"""

import asyncio
import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import orjson
import uvloop
from aiohttp import web

from tests.support.redis_server import free_port

DIMENSIONS = 1536
SERVER_CORE, LOAD_CORE = "0", "1"
PROXY = (sys.executable, "-m", "proxy")
BARE_BODY_BYTES = 8_400  # a hit of one item as base64
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Server:
    """A running process and the address of its embeddings route."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.pid = process.pid
        self.url = f"http://127.0.0.1:{port}/v1/embeddings"

    def cpu_s(self) -> float:
        """The CPU time of the process and of its workers so far, in seconds, in steps of 10 ms."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return sum(map(_cpu_s, [self.pid, *map(int, children)]))

    def rss_bytes(self) -> int:
        """What of the process is resident in memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


@contextmanager
def process(command: Sequence[str], *, core: str | None = SERVER_CORE) -> Iterator[subprocess.Popen[str]]:
    """A process that prints "Ctrl-C" when it is ready. ``core``: None for all of them."""
    pinned = [] if core is None else ["taskset", "-c", core]
    started = subprocess.Popen(
        [*pinned, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # one line per request
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert started.stdout is not None
    try:
        if not any("Ctrl-C" in line for line in started.stdout):
            sys.exit(f"did not start: {' '.join(command)}")
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait()


@contextmanager
def bare_server() -> Iterator[Server]:
    port = free_port()
    with process([sys.executable, "-m", "bench.servers", "bare", str(port)]) as started:
        yield Server(started, port)


@contextmanager
def upstream_server(dimensions: int = DIMENSIONS) -> Iterator[str]:
    """Yields the base URL."""
    port = free_port()
    with process([sys.executable, "-m", "bench.servers", "upstream", str(port), str(dimensions)], core=LOAD_CORE):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def proxy_server(
    *flags: str, upstream: str | None = None, core: str | None = SERVER_CORE, program: Sequence[str] = PROXY
) -> Iterator[Server]:
    """A proxy with ``flags``, in front of ``upstream`` or of its own demo."""
    port = free_port()
    ports = ["--port", str(port), "--admin-port", str(free_port())]
    ahead = ["--upstream", upstream] if upstream else []
    with process([*program, "serve", *ports, *ahead, *flags], core=core) as started:
        yield Server(started, port)


# --- what runs in the processes


async def _bare_handler(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=b"x" * BARE_BODY_BYTES, content_type="application/json")


async def _serve_bare(port: int) -> None:
    app = web.Application(client_max_size=64 * 1024**2)
    app.router.add_post("/v1/embeddings", _bare_handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await _serve()


class _Upstream(asyncio.Protocol):
    """Knows only requests with a Content-Length, one at a time on a connection."""

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = bytes(self._received).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if not found or (length and len(body) < int(length[1])):
            return
        self._received.clear()
        content = _vectors(body.count(b"#"), self._dimensions, is_base64=b'"base64"' in body)
        fields = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        self._transport.write(b"HTTP/1.1 200 OK\r\n" + fields + content)


@cache
def _vectors(items: int, dimensions: int, *, is_base64: bool) -> bytes:
    vector = np.random.default_rng(0).standard_normal(dimensions).astype("<f4")
    vector /= np.linalg.norm(vector)
    # In the shortest text of the float32, as most servers write it: read as a float64 it is another number.
    numbers = b"[" + b",".join(np.format_float_positional(number).encode() for number in vector) + b"]"
    embedding = b'"' + base64.b64encode(vector.tobytes()) + b'"' if is_base64 else numbers
    data = b",".join(b'{"object":"embedding","index":%d,"embedding":%s}' % (index, embedding) for index in range(items))
    usage = orjson.dumps({"prompt_tokens": 8 * items, "total_tokens": 8 * items})
    return b'{"object":"list","data":[' + data + b'],"model":"demo","usage":' + usage + b"}"


async def _serve_upstream(port: int, dimensions: int) -> None:
    await asyncio.get_running_loop().create_server(lambda: _Upstream(dimensions), "127.0.0.1", port)
    await _serve()


async def _serve() -> None:
    print("Ctrl-C ends it", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    kind, *numbers = sys.argv[1:]
    uvloop.run(_serve_bare(int(numbers[0])) if kind == "bare" else _serve_upstream(*map(int, numbers)))
