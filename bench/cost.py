"""What metrics and the log of requests take off hit throughput.

Two proxies by turns, pinned as in `bench.hot`: one as it is, and one that counts nothing and logs no requests.

    python -m bench.cost [--seconds 3] [--rounds 5]
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import hot

ROWS = [hot.ROWS[0], hot.ROWS[2]]
SILENT = """
from proxy import tally
tally.Count.inc = tally.Spread.observe = lambda self, *_: None
from proxy.cli import main
main()
"""


@contextmanager
def silent_proxy() -> Iterator[str]:
    command = [sys.executable, "-c", SILENT, "serve", "--port", "18094", "--admin-port", "18095"]
    with hot.process([*command, "--store", "memory:", "--memory", "2GiB", "--log-requests", "no"]):
        yield "http://127.0.0.1:18094/v1/embeddings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, of which the median counts")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, hot.proxy_server() as proxy, silent_proxy() as silent:
        print(f"{'items':>5} {'encoding':8} {'silent':>8} {'as it is':>8} {'ratio':>6}   aim 0.90")
        for row in ROWS:
            script = hot.write_script(row, Path(folder))
            runs: dict[str, list[float]] = {silent: [], proxy: []}
            for url in runs:
                hot.fill(url, row)
            for _ in range(given.rounds):
                for url, counts in runs.items():
                    counts.append(hot.load(url, script, row.connections, given.seconds))
            before, after = (statistics.median(counts) for counts in runs.values())
            print(f"{row.items:>5} {row.encoding:8} {before:>8.0f} {after:>8.0f} {after / before:>6.3f}", flush=True)


if __name__ == "__main__":
    main()
