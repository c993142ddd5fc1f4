"""The longest hit by how many entries are cached, afterwards and while they are added.

    python -m bench.pauses [--entries 20000,100000,300000,1000000] [--dimensions 64] [--seconds 10] [--rounds 3]

One client asks for one known item after another. The machine's own pauses are in all figures: the best of the rounds
has the fewest of them.
"""

import argparse
import asyncio
import gc
import http.client
import os
import random
import select
import sys
import time
from collections.abc import Awaitable
from typing import NamedTuple
from urllib.parse import urlsplit

from bench import filling
from bench.servers import LOAD_CORE, Server, proxy_server, upstream_server
from bench.wrk import HEADERS

FIRST = 1000
CONNECTIONS = 2


class Hits(NamedTuple):
    p50_ms: float
    p999_ms: float
    max_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", default="20000,100000,300000,1000000")
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    if given.probe:
        url, entries = given.probe
        print(*probe(url, int(entries)))
        return
    sizes = [int(size) for size in given.entries.split(",")]
    with upstream_server(given.dimensions) as upstream:
        flags = ("--store", "memory:", "--memory", "16GiB", "--log-requests", "no")
        with proxy_server(*flags, upstream=upstream) as proxy:
            asyncio.run(measure(proxy, sizes, given))


async def measure(proxy: Server, sizes: list[int], given: argparse.Namespace) -> None:
    print(f"hits of one item, ms; {given.rounds} rounds of {given.seconds:g} s, {given.dimensions} dimensions")
    print(f"{'':>9} {'':>8} {'while they are added':>22}   afterwards")
    print(f"{'entries':>9} {'RSS':>8} {'p50':>6} {'p99.9':>7} {'max':>7} {'p50':>8} {'p99.9':>7}  max of each round")
    await filling.fill(proxy, range(FIRST), "base64", connections=1)
    added = FIRST
    for size in sizes:
        during = await probed(proxy, added, filling.fill(proxy, range(added, size), "base64", connections=CONNECTIONS))
        added = size
        after = [await probed(proxy, added, asyncio.sleep(given.seconds)) for _ in range(given.rounds)]
        best = min(after, key=lambda hits: hits.max_ms)
        print(
            f"{size:>9} {proxy.rss_bytes() / 2**20:>4.0f} MiB"
            f" {during.p50_ms:>6.2f} {during.p999_ms:>7.2f} {during.max_ms:>7.1f}"
            f" {best.p50_ms:>8.2f} {best.p999_ms:>7.2f}  " + " ".join(f"{hits.max_ms:.1f}" for hits in after),
            flush=True,
        )


async def probed(proxy: Server, entries: int, work: Awaitable[None]) -> Hits:
    """The hits of a client, in a process of its own, for as long as ``work`` takes."""
    command = [sys.executable, "-m", "bench.pauses", "--probe", proxy.url, str(entries)]
    pipe = asyncio.subprocess.PIPE
    probing = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        await work
    finally:
        shown, _ = await probing.communicate(b"\n")
    return Hits(*map(float, shown.split()))


def probe(url: str, entries: int) -> Hits:
    """Ask for one item after another until something is on the standard input."""
    gc.disable()
    there = urlsplit(url)
    assert there.hostname is not None
    connection = http.client.HTTPConnection(there.hostname, there.port)
    latencies_ms: list[float] = []
    while not latencies_ms or not select.select([sys.stdin], [], [], 0)[0]:
        body = filling.body_of([random.randrange(entries)], "base64")
        began_s = time.perf_counter()
        connection.request("POST", there.path, body, HEADERS)
        response = connection.getresponse()
        response.read()
        latencies_ms.append((time.perf_counter() - began_s) * 1000)
        assert response.headers["X-Cache"] == "HIT", response.headers["X-Cache"]
    latencies_ms.sort()
    return Hits(latencies_ms[len(latencies_ms) // 2], latencies_ms[len(latencies_ms) * 999 // 1000], latencies_ms[-1])


if __name__ == "__main__":
    main()
