"""Jobs under rate limits: direct, through a proxy, and through two replicas.

    python -m bench.limits [--quick] [--only "Retry-After alone"] [--ways direct,proxy]

100 batches of 40 texts, 24 at a time, and four queries a second, by the openai client with its default retries, against
upstreams over HTTP that limit calls and items in every way. It takes ten minutes. A figure with a "!" is beyond its
bound:

- no batch and no query fails;
- the job takes at most 1.2 times what the limit alone makes it, if each batch is a call and queries cost nothing;
- a query takes at most as long as without a limit, and one slot of it: 95 % of those after the first second;
- at most 5 % of the calls are refused, after the first second.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from bench.limits_cost import measured_us
from bench.limits_job import WAYS, Bounds, Result, measured
from tests.support.limiters import LIMITERS, BusyServer

BATCHES = 100
LIMITERS_OF_BENCH = LIMITERS | {"4 at a time, Retry-After": lambda: BusyServer(4)}
_HEADS = (
    ("limiter", "way", "batches", "queries", "seconds", "times the", "query", "its", "calls", "refused"),
    ("", "", "failed", "failed", "", "ideal", "p95, s", "bound", "", ""),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the batches, as a smoke test")
    parser.add_argument("--only", choices=LIMITERS_OF_BENCH, metavar="LIMITER", help="one limiter, by its name")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"some of: {', '.join(WAYS)}")
    given = parser.parse_args()
    ways = [way.strip() for way in given.ways.split(",")]
    if not set(ways) <= set(WAYS):
        parser.error(f"--ways: some of {', '.join(WAYS)}")
    names = [given.only] if given.only else list(LIMITERS_OF_BENCH)
    asyncio.run(run(names, ways, BATCHES // 5 if given.quick else BATCHES))


async def run(names: list[str], ways: list[str], batches: int) -> None:
    cost_us = await asyncio.to_thread(measured_us)
    print(f"a miss under no limit pays {cost_us:.1f} µs of CPU for the pacer\n", flush=True)
    for head in _HEADS:
        print(_row(*head))
    worse = []
    for name in names:
        succeeded = {}
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                result, bounds = await measured(Path(folder), LIMITERS_OF_BENCH[name], way, batches)
            succeeded[way] = result.succeeded
            print(_row(name, way, *_cells(result, bounds)), flush=True)
        worse += [f"{name}, {way}" for way in ways if succeeded[way] < succeeded.get("direct", 0)]
    if "direct" in ways:
        print(f"\nfewer batches and queries of 100 succeed than direct: {'; '.join(worse) or 'for no limiter'}")


def _cells(result: Result, bounds: Bounds) -> list[str]:
    ratio, refused = result.took_s / bounds.ideal_s, result.late_refusals / max(1, result.calls)
    return [
        _marked(f"{result.failed_batches}", is_good=not result.failed_batches),
        _marked(f"{result.failed_queries}", is_good=not result.failed_queries),
        f"{result.took_s:.1f}",
        _marked(f"{ratio:.2f}", is_good=ratio <= bounds.max_ratio),
        _marked(f"{result.p95_s:.2f}", is_good=result.p95_s <= bounds.query_s),
        f"{bounds.query_s:.2f}",
        f"{result.calls}",
        _marked(f"{refused:.1%}", is_good=refused <= bounds.max_refused),
    ]


def _marked(figure: str, *, is_good: bool) -> str:
    return figure if is_good else f"{figure}!"


def _row(limiter: str, way: str, *figures: str) -> str:
    return f"{limiter:26} {way:24}" + "".join(f"{figure:>10}" for figure in figures)


if __name__ == "__main__":
    main()
