"""The memory of a proxy while distinct items go through it, in both encodings, as a plot.

    python -m bench.memory [--items 1000000] [--memory 64] [--plot docs/memory.svg]

For each encoding a proxy of its own gets so many items, more than it has room for, and then a tenth as many in base64.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from bench import filling
from bench.servers import DIMENSIONS, Server, proxy_server, upstream_server

MIB = 2**20
BOUND = 1.3
BATCH, CONNECTIONS = 64, 2
STEPS = 200  # at which the memory is noted
ENCODINGS = ("base64", "float")


class Run(NamedTuple):
    encoding: str
    start_mib: float
    items: list[int]
    rss_mib: list[float]

    def most_mib(self) -> float:
        return max(self.rss_mib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--memory", type=int, default=64, help="of the proxy, in MiB")
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    given = parser.parse_args()
    print(f"{DIMENSIONS} dimensions, --memory {given.memory}MiB, {given.items:,} items; MiB of RSS")
    print(f"{'encoding':>8} {'start':>6} {'at most':>8} {'growth / --memory':>18} {'then base64':>12} {'min':>5}")
    runs = []
    with upstream_server() as upstream:
        for encoding in ENCODINGS:
            flags = ("--store", "memory:", "--memory", f"{given.memory}MiB", "--log-requests", "no")
            began_s = time.monotonic()
            with proxy_server(*flags, upstream=upstream) as proxy:
                run = asyncio.run(measure(proxy, encoding, given.items))
            runs.append(run)
            most = run.most_mib()
            print(
                f"{encoding:>8} {run.start_mib:>6.0f} {most:>8.0f} {(most - run.start_mib) / given.memory:>18.2f}"
                f" {run.rss_mib[-1]:>12.0f} {(time.monotonic() - began_s) / 60:>5.1f}",
                flush=True,
            )
    if given.plot:
        draw(runs, given.memory, given.items, given.plot)


async def measure(proxy: Server, encoding: str, items: int) -> Run:
    await filling.fill(proxy, range(BATCH), encoding, connections=1)
    run = Run(encoding, proxy.rss_bytes() / MIB, [], [])
    added = BATCH
    for its, until in ((encoding, items), ("base64", items + items // 10)):
        for end in range(added + items // STEPS, until + 1, items // STEPS):
            await filling.fill(proxy, range(added, end), its, connections=CONNECTIONS, batch=BATCH)
            added = end
            run.items.append(added)
            run.rss_mib.append(proxy.rss_bytes() / MIB)
    return run


def draw(runs: list[Run], memory_mib: int, items: int, path: Path) -> None:
    mpl.rcParams["svg.hashsalt"] = "memory"  # the same picture has the same bytes
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        axes.plot([0, *run.items], [run.start_mib, *run.rss_mib], label=f"items as {run.encoding}, then base64")
    start_mib = max(run.start_mib for run in runs)
    axes.axhline(start_mib + BOUND * memory_mib, color="gray", linestyle="--", label=f"start + {BOUND} --memory")
    axes.axvline(items, color="lightgray", linewidth=1)
    axes.set(
        xlabel=f"distinct items of {DIMENSIONS} dimensions", ylabel="RSS, MiB",
        title=f"--memory {memory_mib}MiB", ylim=(0, None), xlim=(0, None),
    )  # fmt: skip
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
