"""Hits per second, compared with bare aiohttp in the same run.

The server is pinned to core 0 and the load (wrk) to core 1. Each row runs several times, taking turns with the bare
server, and the medians are compared: absolute figures drift with the machine, ratios much less.

    python bench/hot.py [--seconds 3] [--rounds 3] [--rows 1/base64/32,16/float/8]
"""

import argparse
import asyncio
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import uvloop
from aiohttp import web

DIMENSIONS = 1536
WORDS_A_TEXT = 40
SERVER_CORE, LOAD_CORE = "0", "1"
BARE_BODY_BYTES = 8_400  # a hit of one item as base64


@dataclass(frozen=True)
class Row:
    items: int
    encoding: str
    connections: int
    aim: float  # ratio to bare aiohttp
    peer: float | None  # the fastest compiled peer's ratio, measured elsewhere in the same way


ROWS = [
    Row(1, "base64", 32, 0.95, 0.86),
    Row(1, "float", 32, 0.90, 0.46),
    Row(16, "base64", 8, 0.35, 0.152),
    Row(16, "float", 8, 0.28, 0.047),
    Row(256, "base64", 2, 0.028, 0.0167),
    Row(256, "float", 2, 0.014, 0.0029),
    Row(2048, "base64", 1, 0.0035, 0.0019),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each row; the median is shown")
    parser.add_argument("--rows", default="", help="only these, as items/encoding/connections")
    parser.add_argument("--bare", type=int, metavar="PORT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        serve_bare(given.bare)
        return
    for tool in ("wrk", "taskset"):
        if not shutil.which(tool):
            sys.exit(f"bench/hot.py needs {tool}: apt install {'wrk' if tool == 'wrk' else 'util-linux'}")
    wanted = set(filter(None, given.rows.split(",")))
    rows = [row for row in ROWS if not wanted or f"{row.items}/{row.encoding}/{row.connections}" in wanted]
    with tempfile.TemporaryDirectory() as folder, bare_server() as bare, proxy_server() as proxy:
        measure(rows, bare, proxy, Path(folder), given.seconds, given.rounds)


def measure(rows: list[Row], bare: str, proxy: str, folder: Path, seconds: int, rounds: int) -> None:
    print(f"{DIMENSIONS}-d, every item a hit; requests/s, medians of {rounds} runs of {seconds} s\n")
    print(f"{'items':>5} {'encoding':8} {'conns':>5} {'bare':>8} {'proxy':>8} {'ratio':>8} {'aim':>8} {'Go peer':>8}")
    yardstick = write_script(ROWS[0], folder)
    for row in rows:
        script = write_script(row, folder)
        fill(proxy, row)
        runs: dict[str, list[float]] = {bare: [], proxy: []}
        for _ in range(rounds):
            runs[bare].append(load(bare, yardstick, ROWS[0].connections, seconds))
            runs[proxy].append(load(proxy, script, row.connections, seconds))
        base, ours = statistics.median(runs[bare]), statistics.median(runs[proxy])
        print(
            f"{row.items:>5} {row.encoding:8} {row.connections:>5} {base:>8.0f} {ours:>8.0f} {ours / base:>8.4f}"
            f" {row.aim:>8} {row.peer or '-':>8}",
            flush=True,
        )


# --- the two servers


async def bare_handler(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=b"x" * BARE_BODY_BYTES, content_type="application/json")


def serve_bare(port: int) -> None:
    """The baseline: an application whose handler reads the body and responds with as many bytes as one hit."""
    app = web.Application(client_max_size=64 * 1024**2)
    app.router.add_post("/v1/embeddings", bare_handler)

    async def run() -> None:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print("Ctrl-C", flush=True)
        await asyncio.Event().wait()

    uvloop.run(run())


@contextmanager
def bare_server() -> Iterator[str]:
    with process([sys.executable, __file__, "--bare", "18091"]):
        yield "http://127.0.0.1:18091/v1/embeddings"


@contextmanager
def proxy_server() -> Iterator[str]:
    command = [sys.executable, "-m", "proxy", "serve", "--port", "18092", "--admin-port", "18093"]
    with process([*command, "--store", "memory:", "--memory", "2GiB"]):
        yield "http://127.0.0.1:18092/v1/embeddings"


@contextmanager
def process(command: list[str]) -> Iterator[None]:
    pinned = ["taskset", "-c", SERVER_CORE, *command]
    popen = subprocess.Popen(
        pinned,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # one line per request
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert popen.stdout is not None
    try:
        if not any("Ctrl-C" in line for line in popen.stdout):
            sys.exit(f"did not start: {' '.join(command)}")
        yield
    finally:
        popen.send_signal(signal.SIGTERM)
        popen.wait()


# --- the load


def body_of(row: Row) -> bytes:
    texts = [" ".join(f"word{(i * 7 + n) % 1000}" for n in range(WORDS_A_TEXT)) + f" {i}" for i in range(row.items)]
    return orjson.dumps({"model": "demo", "input": texts, "encoding_format": row.encoding})


def fill(url: str, row: Row) -> None:
    """Send the request of ``row`` twice; the second time it must be a hit."""
    ask(url, row)
    state = ask(url, row)
    assert state == "HIT", state


def ask(url: str, row: Row) -> str:
    """One request; returns its X-Cache."""
    return post(url, body_of(row))


def post(url: str, body: bytes) -> str:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"}
    request = urllib.request.Request(url, body, headers)  # noqa: S310
    with urllib.request.urlopen(request) as response:  # noqa: S310
        response.read()
        return str(response.headers["X-Cache"])


def write_script(row: Row, folder: Path) -> Path:
    name = f"{row.items}-{row.encoding}"
    body, script = folder / f"{name}.json", folder / f"{name}.lua"
    body.write_bytes(body_of(row))
    script.write_text(
        f'local file = io.open("{body}", "rb")\n'
        'wrk.method = "POST"\nwrk.body = file:read("*all")\n'
        'wrk.headers["Content-Type"] = "application/json"\n'
        'wrk.headers["Authorization"] = "Bearer sk-bench"\n'
        "done = function(summary, latency, requests)\n"
        "  local bad = summary.errors.connect + summary.errors.read + summary.errors.write\n"
        "  bad = bad + summary.errors.status + summary.errors.timeout\n"
        '  io.write(string.format("bad %d\\n", bad))\n'
        "end\n"
    )
    return script


def load(url: str, script: Path, connections: int, seconds: int, *, core: str | None = LOAD_CORE) -> float:
    pinned = [] if core is None else ["taskset", "-c", core]
    command = [*pinned, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s"]
    shown = subprocess.run([*command, "-s", str(script), url], capture_output=True, text=True, check=True).stdout
    if "bad 0" not in shown:
        sys.exit(f"some requests failed:\n{shown}")
    match = re.search(r"Requests/sec:\s+([\d.]+)", shown)
    assert match
    return float(match[1])


if __name__ == "__main__":
    main()
