"""Hit throughput of several workers compared with one, and the cost of losing a worker.

    python -m bench.workers [--workers 2] [--seconds 3] [--rounds 5]

Nothing is pinned: with as many workers as cores, the load (wrk) shares those cores.
"""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import ClientError, ClientSession, TCPConnector

from bench import hot

ROWS = [hot.Row(1, "base64", 32, 0, None), hot.Row(16, "base64", 32, 0, None), hot.Row(64, "base64", 32, 0, None)]
CLIENTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=int, default=3, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each; the median is shown")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with proxy(18096, 1) as one, proxy(18098, given.workers) as many:
            print(f"{'items':>5} {'one':>8} {given.workers:>5} workers {'ratio':>6}   aim 1.7")
            for row in ROWS:
                compare(row, url_of(one), url_of(many), Path(folder), given)
        print(asyncio.run(kill_one(given.workers)))


@contextmanager
def proxy(port: int, workers: int) -> Iterator[subprocess.Popen[str]]:
    flags = ["--port", str(port), "--admin-port", str(port + 1), "--workers", str(workers), "--memory", "2GiB"]
    command = [sys.executable, "-m", "proxy", "serve", "--store", "memory:", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert any("Ctrl-C" in line for line in process.stdout)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def url_of(process: subprocess.Popen[str]) -> str:
    assert isinstance(process.args, list)
    return f"http://127.0.0.1:{process.args[process.args.index('--port') + 1]}/v1/embeddings"


def compare(row: hot.Row, one: str, many: str, folder: Path, given: argparse.Namespace) -> None:
    script = hot.write_script(row, folder)
    runs: dict[str, list[float]] = {one: [], many: []}
    for url in runs:
        while not all(hot.ask(url, row) == "HIT" for _ in range(40)):
            pass  # every worker must have it in memory
    for _ in range(given.rounds):
        for url, counts in runs.items():
            counts.append(hot.load(url, script, row.connections, given.seconds, core=None))
    before, after = (statistics.median(counts) for counts in runs.values())
    print(f"{row.items:>5} {before:>8.0f} {after:>13.0f} {after / before:>6.2f}", flush=True)


async def kill_one(workers: int) -> str:
    """Requests that fail when a worker is killed, and the time until it is replaced."""
    with proxy(18096, workers) as process:
        url, pid = url_of(process), process.pid
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
