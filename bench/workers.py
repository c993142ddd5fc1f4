"""Hit throughput of several workers compared with one, and the cost of losing a worker.

    python -m bench.workers [--workers 2] [--seconds 3] [--rounds 5]

Nothing is pinned: with as many workers as cores, the load (wrk) shares those cores.
"""

import argparse
import asyncio
import os
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path

from aiohttp import ClientError, ClientSession, TCPConnector

from bench import wrk
from bench.servers import Server, proxy_server

ROWS = (1, 16, 64)  # items
CONNECTIONS = 32
CLIENTS = 16
_MEMORY = ("--store", "memory:", "--memory", "2GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=int, default=3, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each; the median is shown")
    given = parser.parse_args()
    wrk.require_tools()
    with proxy_server(*_MEMORY, core=None) as one, several(given.workers) as many:
        print(f"{'items':>5} {'one':>8} {given.workers:>5} workers {'ratio':>6}   aim 1.7")
        for items in ROWS:
            compare(items, one, many, given)
    print(asyncio.run(kill_one(given.workers)))


def several(count: int) -> AbstractContextManager[Server]:
    return proxy_server(*_MEMORY, "--workers", str(count), core=None)


def compare(items: int, one: Server, many: Server, given: argparse.Namespace) -> None:
    sent = wrk.Requests(items=items, encoding="base64")
    body = wrk.body_of(range(1, items + 1), "base64")
    for server in (one, many):
        while not all(wrk.post(server, body) == "HIT" for _ in range(40)):
            pass  # every worker must have it in memory
    before, after = wrk.median_rates(
        [one, many], sent, rounds=given.rounds, connections=CONNECTIONS, seconds=given.seconds, core=None
    )
    print(f"{items:>5} {before:>8.0f} {after:>13.0f} {after / before:>6.2f}", flush=True)


async def kill_one(workers: int) -> str:
    """Requests that fail when a worker is killed, and the time until it is replaced."""
    with several(workers) as proxy:
        url, pid = proxy.url, proxy.pid
        failed = answered = 0
        first_seen_s: dict[str, float] = {}  # of each worker, by the part of its requests' ids that is its own
        is_over = asyncio.Event()

        async def ask(session: ClientSession) -> None:
            nonlocal failed, answered
            while not is_over.is_set():
                try:
                    async with session.post(url, json={"model": "demo", "input": "x"}) as answer:
                        await answer.read()
                        answered += answer.status == 200
                        its = answer.headers["X-Request-Id"].partition("-")[0]
                        first_seen_s.setdefault(its, time.perf_counter())
                except ClientError:
                    failed += 1

        def children() -> list[str]:
            return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

        async with ClientSession(connector=TCPConnector(limit=0)) as session:
            clients = [asyncio.create_task(ask(session)) for _ in range(CLIENTS)]
            await asyncio.sleep(2)
            known = set(first_seen_s)
            os.kill(int(children()[0]), signal.SIGKILL)
            started = time.perf_counter()
            await asyncio.sleep(3)
            is_over.set()
            await asyncio.gather(*clients)
    back_s = min(at for its, at in first_seen_s.items() if its not in known) - started
    return (
        f"a worker killed under load: {failed} of {answered + failed} requests of {CLIENTS} connections failed;"
        f" the one in its place answered after {back_s * 1000:.0f} ms"
    )


if __name__ == "__main__":
    main()
