"""Several workers serve as one proxy."""

import asyncio
import signal
import sqlite3
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession

from tests.support.gate import Gate
from tests.support.scripted import ScriptedUpstream
from tests.support.workers import REQUESTS, ask, proxy, scraped, until


async def test_one_scrape_covers_all_workers(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path
) -> None:
    with proxy(
        tmp_path,
        upstream,
        workers=3,
    ) as process:
        for number in range(60):
            assert await ask(session, process, f"text {number % 5}") == 200
        sums = await scraped(session, process)
        assert sums[REQUESTS] == 60
        assert sums["embedding_proxy_items_total"] == 60
        assert sums["embedding_proxy_request_duration_seconds_count"] == 60
        assert sums["embedding_proxy_upstream_queue_limit_items"] == pytest.approx(100_000, abs=3)
        assert sums["embedding_proxy_build_info"] == 1
        ids = {
            line.split()[-1].split("-")[0] for line in process.stop(signal.SIGTERM)[1].splitlines() if " m  " in line
        }
        assert len(ids) == 3  # each counts its own
    async with ClientSession() as other:
        with pytest.raises(ClientError):
            await ask(other, process)


@pytest.mark.long
async def test_hits_of_every_worker_after_a_restart_are_counted_under_their_model(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-owned")
    arguments = ("--upstream-key-env", "UPSTREAM_KEY", "--store", f"sqlite:///{tmp_path / 'cache.sqlite3'}")
    with proxy(tmp_path, upstream, *arguments) as process:
        assert await ask(session, process) == 200
    with proxy(tmp_path, upstream, *arguments, workers=3) as process:
        for _ in range(30):
            assert await ask(session, process) == 200
        async with session.get(f"{process.admin_url}/status.json") as answer:
            status = await answer.json()
    (model,) = status["models"]  # and nothing under `other`
    assert (model["name"], model["items"], model["tokens"]) == ("m", 30, {"billed": 0, "saved": 30})
    assert len(upstream.calls) == 1


async def test_workers_that_fetch_an_item_at_the_same_time_eventually_serve_one_vector(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose write the file takes first, each of them learns only after it had to answer."""
    monkeypatch.setenv("UPSTREAM_KEY", "sk-owned")
    path = tmp_path / "cache.sqlite3"

    async def embedding(text: str) -> tuple[float, ...]:
        body = {"model": "m", "input": text, "encoding_format": "float"}
        async with session.post(f"{process.base_url}/embeddings", json=body) as answer:
            return tuple((await answer.json())["data"][0]["embedding"])

    with proxy(tmp_path, upstream, "--upstream-key-env", "UPSTREAM_KEY", "--store", f"sqlite:///{path}") as process:
        await embedding("warm")
        numbers = iter(range(1, 100))
        gate = Gate(upstream)
        gate.answer = lambda call: upstream.embed(call, data=[{"index": 0, "embedding": [next(numbers)] * 16}])
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        asked = [asyncio.create_task(embedding("x")) for _ in range(30)]
        await gate.calls(2)
        gate.open()
        first = set(await asyncio.gather(*asked))
        assert first == {(1.0,) * 16, (2.0,) * 16}
        holder.execute("ROLLBACK")
        holder.close()

        async def agree() -> bool:
            return len({await embedding("x") for _ in range(30)}) == 1

        await until(agree)
        assert await agree()
        assert await embedding("x") in first
    assert len(upstream.calls) == 3
