"""Send a corpus through a running proxy with the real openai client, and see what the cache did.

    make run                                        # in one terminal
    .venv/bin/pip install openai tqdm               # in another
    .venv/bin/python bench/replay.py corpus.jsonl.gz

A corpus is gzipped JSONL, with an object that has a "text" on each line, such as
printf '{"text": "one"}\\n{"text": "two"}\\n' | gzip > corpus.jsonl.gz. Empty texts are left out, since no API takes
them. With --check every vector is compared, bit by bit, with the upstream's own response:

    .venv/bin/embedding-proxy demo --port 8081 &
    .venv/bin/embedding-proxy serve --upstream http://127.0.0.1:8081/v1 --store sqlite:////tmp/replay.sqlite3 &
    .venv/bin/python bench/replay.py corpus.jsonl.gz --passes 2 --store sqlite:////tmp/replay.sqlite3 \\
        --check http://127.0.0.1:8081/v1

With --ids the texts are sent in another order, as a trace of accesses has them: each line of that file is the number of
a line of the corpus. --write writes what is sent as a corpus of its own. --expect compares the counts of all passes
with those of a report on the same texts, for as many passes as the report has the file, and for one memory and store:

    .venv/bin/python bench/replay.py texts.jsonl.gz --ids trace.gz --write sent.jsonl.gz --passes 0
    .venv/bin/embedding-proxy analyze sent.jsonl.gz sent.jsonl.gz --model demo --json \\
        --memory 512MiB --store-limit 10GiB > report.json
    .venv/bin/python bench/replay.py sent.jsonl.gz --concurrency 1 --passes 2 --expect report.json
"""

import argparse
import asyncio
import gzip
import os
import sqlite3
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

try:
    import numpy as np
    import orjson
    from numpy.typing import NDArray
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI
    from prometheus_client.parser import text_string_to_metric_families
    from redis import Redis
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    sys.exit(
        f"bench/replay.py needs {missing.name}. After make run: .venv/bin/pip install openai tqdm,"
        " and run it with .venv/bin/python"
    )

COUNTERS = {
    "memory": ("embedding_proxy_items_total", {"result": "memory"}),
    "store": ("embedding_proxy_items_total", {"result": "store"}),
    "duplicate": ("embedding_proxy_items_total", {"result": "duplicate"}),
    "joined": ("embedding_proxy_items_total", {"result": "joined"}),
    "upstream": ("embedding_proxy_items_total", {"result": "upstream"}),
    "sent": ("embedding_proxy_upstream_batch_items_sum", {}),
    "calls": ("embedding_proxy_upstream_batch_items_count", {}),
}
ITEM_COUNTERS = ("memory", "store", "duplicate", "joined", "upstream")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    seconds: list[float]  # of each request
    vectors: dict[str, NDArray[np.float32]]
    unequal: int  # vectors that differ in a bit from the first one of the same text
    counts: dict[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl.gz")
    parser.add_argument("--base-url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--admin-url", default="http://127.0.0.1:9090")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--batch", type=int, default=64, help="items per request")
    parser.add_argument("--concurrency", type=int, default=4, help="concurrent requests")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--store", default="", help="the proxy's store, to measure its bytes per item")
    parser.add_argument("--check", default="", metavar="URL", help="the upstream's own base URL, to compare with")
    parser.add_argument("--ids", type=Path, metavar="FILE.gz", help="numbers of the texts to send, one a line")
    parser.add_argument("--first", type=int, help="send only so many texts")
    parser.add_argument("--write", type=Path, metavar="FILE.jsonl.gz", help="write the texts that are sent")
    parser.add_argument("--expect", type=Path, metavar="REPORT.json", help="a report to compare with: analyze --json")
    given = parser.parse_args()
    texts = [text for file in given.files for text in read(file)]
    if given.ids:
        texts = [texts[number % len(texts)] for number in read_ids(given.ids)]
    texts = texts[: given.first]
    if given.write:
        with gzip.open(given.write, "wb", compresslevel=1) as corpus:
            corpus.writelines(orjson.dumps({"text": text}) + b"\n" for text in texts)
    try:
        show(texts, given)
    except (APIConnectionError, URLError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        sys.exit(
            f"can't reach the proxy: {reason}. Is it running (make run), at {given.base_url} (--base-url) and"
            f" {given.admin_url} (--admin-url)?"
        )
    except APIStatusError as error:
        sys.exit(f"{error.request.url} answered {error.status_code}: {error.message}")


def show(texts: list[str], given: argparse.Namespace) -> None:
    distinct = len(set(texts))
    print(f"{len(texts)} items, {distinct} distinct, batches of {given.batch}, {given.concurrency} at a time")
    print(f"{'pass':>4} {'hits':>8} {'dups':>6} {'sent up':>8} {'calls':>6} {'p50 ms':>8} {'p99 ms':>8} {'B/item':>8}")
    known: dict[str, NDArray[np.float32]] = {}
    totals: Counter[str] = Counter()
    for number in range(1, given.passes + 1):
        done = asyncio.run(replay(texts, known, given, f"pass {number}"))
        known |= done.vectors
        totals += Counter(done.counts)
        p50, p99 = np.percentile(done.seconds, [50, 99]) * 1000
        counts = done.counts
        print(
            f"{number:>4} {counts['memory'] + counts['store']:>8} {counts['duplicate']:>6} {counts['sent']:>8}"
            f" {counts['calls']:>6} {p50:>8.1f} {p99:>8.1f} {bytes_an_item(given.store):>8}"
            + (f"  {done.unequal} vectors differ from an earlier answer" if done.unequal else "")
        )
    if given.check:
        asyncio.run(check(known, given))
    if given.expect:
        compare(given.expect, totals, distinct)


def compare(report: Path, counts: Counter[str], distinct: int) -> None:
    """Print the counts beside those of a report of `embedding-proxy analyze`. Exits with 1 if they differ, unless
    something was evicted: that is in part random."""
    expected = orjson.loads(report.read_bytes())
    [scenario] = expected["scenarios"]
    of, repetition = scenario["items"], expected["repetition"]
    rows = [
        ("items", sum(counts[name] for name in ITEM_COUNTERS), repetition["items"]),
        ("distinct", distinct, repetition["distinct"]),
        ("hits", counts["memory"] + counts["store"] + counts["joined"], of["memory"] + of["store"]),
        ("duplicates", counts["duplicate"], of["duplicate"]),
        ("upstream", counts["upstream"], of["upstream"]),
    ]
    print(f"{'':<12}{'proxy':>10}{'analyze':>10}{'points':>9}")
    for name, seen, said in rows:
        print(f"{name:<12}{seen:>10}{said:>10}{100 * (said - seen) / max(1, rows[0][1]):>9.3f}")
    if not scenario["evicts"] and any(seen != said for _, seen, said in rows):
        sys.exit("the report and the proxy differ")


def read_ids(file: Path) -> list[int]:
    try:
        with gzip.open(file) as lines:
            return list(map(int, lines))
    except (OSError, EOFError) as error:
        sys.exit(f"{file}: {getattr(error, 'strerror', None) or error}")
    except ValueError:
        sys.exit(f"{file}: each line has to be a number")


def read(file: Path) -> Iterable[str]:
    try:
        with gzip.open(file) as lines:
            yield from filter(None, (orjson.loads(line)["text"] for line in lines))
    except OSError as error:
        sys.exit(f"{file}: {error.strerror or error}")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        sys.exit(f'{file}: each line has to be an object with a "text"')


def client_of(base_url: str) -> AsyncOpenAI:
    key = os.environ.get("OPENAI_API_KEY", "sk-replay")
    return AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0)


async def replay(
    texts: list[str], known: dict[str, NDArray[np.float32]], given: argparse.Namespace, title: str
) -> Pass:
    before = counters(given.admin_url)
    seconds: list[float] = []
    vectors: dict[str, NDArray[np.float32]] = {}
    unequal = 0
    async with client_of(given.base_url) as client:
        batches = iter([texts[i : i + given.batch] for i in range(0, len(texts), given.batch)])
        with tqdm(total=len(texts), desc=title, unit="item", leave=False) as bar:

            async def work() -> None:
                nonlocal unequal
                for batch in batches:
                    started = time.perf_counter()
                    answer = await client.embeddings.create(model=given.model, input=batch)
                    seconds.append(time.perf_counter() - started)
                    for text, datum in zip(batch, answer.data, strict=True):
                        vector = np.array(datum.embedding, np.float32)
                        first = known.get(text, vectors.setdefault(text, vector))
                        unequal += not np.array_equal(first, vector)
                    bar.update(len(batch))

            await asyncio.gather(*(work() for _ in range(given.concurrency)))
    after = counters(given.admin_url)
    counts = {name: int(after[name] - before[name]) for name in COUNTERS}
    return Pass(seconds=seconds, vectors=vectors, unequal=unequal, counts=counts)


async def check(known: dict[str, NDArray[np.float32]], given: argparse.Namespace) -> None:
    texts, unequal = list(known), 0
    async with client_of(given.check) as client:
        for start in tqdm(range(0, len(texts), given.batch), desc="check", leave=False):
            batch = texts[start : start + given.batch]
            answer = await client.embeddings.create(model=given.model, input=batch)
            for text, datum in zip(batch, answer.data, strict=True):
                unequal += not np.array_equal(known[text], np.array(datum.embedding, np.float32))
    print(f"{len(texts)} vectors compared with the upstream's own: {unequal} differ")


def counters(admin_url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{admin_url}/metrics") as response:  # noqa: S310
        families = list(text_string_to_metric_families(response.read().decode()))
    return {
        name: sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == wanted and labels.items() <= sample.labels.items()
        )
        for name, (wanted, labels) in COUNTERS.items()
    }


def bytes_an_item(store: str) -> str:
    """Bytes per entry in the store: from the file sizes of SQLite, or the mean MEMORY USAGE of a sample in Redis."""
    if store.startswith("sqlite:///"):
        path = Path(store.removeprefix("sqlite:///"))
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            (entries,) = connection.execute("SELECT count(*) FROM slot").fetchone()
        connection.close()
        return f"{path.stat().st_size / max(1, entries):.0f}"
    if store:
        with Redis.from_url(store) as client:
            sample = [key for key, _ in zip(client.scan_iter("embedding:*"), range(1000), strict=False)]
            return f"{np.mean([client.memory_usage(key) for key in sample]):.0f}" if sample else "-"
    return "-"


if __name__ == "__main__":
    main()
