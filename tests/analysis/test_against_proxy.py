"""What the analysis says against what a proxy does with the same requests."""

import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.analysis import analysis
from proxy.analysis.identifier import Identifier
from proxy.analysis.intake import Intake
from proxy.analysis.report import Report
from proxy.analysis.token_counter import TokenCounter
from proxy.config.settings import MIB, StoreSetting, UpstreamSetting
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream

DIMENSIONS = 1536
RESULTS = ("memory", "store", "duplicate", "upstream")


def bodies(count: int, distinct: int, *, batch: int) -> list[dict[str, Any]]:
    """Requests with some frequent items and many rare ones, a tenth of them as numbers."""
    choose = random.Random(7)

    def number() -> int:
        return int(choose.paretovariate(0.4)) % distinct if choose.random() < 0.5 else choose.randrange(distinct)

    return [
        {
            "model": "text-embedding-3-small",
            "input": [f"text {number()}" for _ in range(batch)],
            "encoding_format": "float" if choose.random() < 0.1 else "base64",
        }
        for _ in range(count)
    ]


def analyzed(path: Path, memory_bytes: int, store_bytes: int | None) -> Report:
    counter = TokenCounter(None)
    intake = Intake(Identifier(UpstreamSetting(name="here", base_url="http://h/v1")), counter, model="m", batch=1)
    intake.read(path)
    return analysis.judge(
        intake, counter, memory_bytes=[memory_bytes], store_bytes=[store_bytes], prices={}, rate=1.0, provider="generic"
    )


async def counted(client: Client, sent: list[dict[str, Any]], times_s: list[float], now: list[float]) -> list[int]:
    for body, at_s in zip(sent, times_s, strict=True):
        now[0] = at_s
        assert (await client.post(body)).status == 200
    return [int(await client.metric("embedding_proxy_items_total", result=result)) for result in RESULTS]


def logged(path: Path, sent: list[dict[str, Any]], times_s: list[float]) -> None:
    log = [{"ts": at_s, "request": body} for body, at_s in zip(sent, times_s, strict=True)]
    path.write_bytes(b"\n".join(map(orjson.dumps, log)))


@pytest.mark.parametrize("has_store", [False, True])
async def test_all_numbers_are_the_same_while_nothing_is_evicted(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, has_store: bool
) -> None:
    upstream.dimensions = DIMENSIONS
    sent, now = bodies(150, 400, batch=8), [1.8e9]
    sent.append(sent[0] | {"unknown": 1})  # keyed as a whole
    sent += [sent[-1], sent[0] | {"model": "other"}]
    times_s = [1.8e9 + 7 * n for n in range(len(sent))]
    store = StoreSetting(path=tmp_path / "store.sqlite3") if has_store else StoreSetting()
    client = await start_proxy(clock=lambda: now[0], store=store, memory_bytes=64 * MIB)
    memory, stored, duplicates, asked = await counted(client, sent, times_s, now)
    logged(tmp_path / "log", sent, times_s)
    report = analyzed(tmp_path / "log", 64 * MIB, 64 * MIB if has_store else None)
    [scenario] = report.scenarios
    assert not scenario.evicts
    of = scenario.items
    assert (of.memory, of.store, of.duplicate, of.upstream) == (memory, stored, duplicates, asked)
    assert report.repetition.items == memory + stored + duplicates + asked
    assert report.repetition.distinct == asked == sum(map(len, (call.items for call in upstream.calls)))
    assert of.upstream_calls == len(upstream.calls)


@pytest.mark.long
async def test_a_store_that_evicts_has_nearly_the_same_hits(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Memory for a few entries: nearly all reads are the store's."""
    upstream.dimensions = DIMENSIONS
    sent, now = bodies(1000, 4000, batch=8), [1.8e9]
    times_s = [1.8e9 + 20 * n for n in range(len(sent))]
    store = StoreSetting(path=tmp_path / "store.sqlite3")
    client = await start_proxy(clock=lambda: now[0], store=store, memory_bytes=MIB, store_limit_bytes=16 * MIB)
    memory, stored, duplicates, asked = await counted(client, sent, times_s, now)
    logged(tmp_path / "log", sent, times_s)
    [scenario] = analyzed(tmp_path / "log", MIB, 16 * MIB).scenarios
    of = scenario.items
    items = memory + stored + duplicates + asked
    assert scenario.evicts
    assert of.duplicate == duplicates
    assert of.memory + of.store + of.duplicate + of.upstream == items
    assert abs(of.upstream - asked) < 0.01 * items
    assert abs(of.memory - memory) < 0.02 * items


@pytest.mark.long
async def test_a_memory_that_evicts_has_nearly_the_same_hits(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    upstream.dimensions = DIMENSIONS
    sent, now = bodies(600, 2000, batch=8), [1.8e9]
    times_s = [1.8e9 + n for n in range(len(sent))]
    client = await start_proxy(clock=lambda: now[0], memory_bytes=3 * MIB)
    memory, _, _, asked = await counted(client, sent, times_s, now)
    logged(tmp_path / "log", sent, times_s)
    [scenario] = analyzed(tmp_path / "log", 3 * MIB, None).scenarios
    assert scenario.evicts
    items = 8 * len(sent)
    assert abs(scenario.items.memory - memory) < 0.02 * items
    assert abs(scenario.items.upstream - asked) < 0.02 * items
