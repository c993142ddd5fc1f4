"""Several processes that are one proxy, as a user starts them."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession, TCPConnector, web
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from proxy.access import client_keys
from proxy.admin.aggregate import Workers, add_up
from proxy.telemetry import counters
from proxy.telemetry.metrics import Metrics, text_of
from tests.support.gate import Gate
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.rolling import until_not_ready
from tests.support.scripted import Call, ScriptedUpstream

REQUESTS = "embedding_proxy_requests_total"
TIMEOUT_S = 60.0


@contextmanager
def proxy(folder: Path, upstream: ScriptedUpstream, *arguments: str, workers: int = 2) -> Iterator[Process]:
    store = () if "--store" in arguments else ("--store", "memory:")
    given = ("--upstream", upstream.base_url, "--workers", str(workers), *store, *arguments)
    process = Process(folder, free_port(), *given)
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.stop(signal.SIGTERM)


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    """Whose requests each have a connection of their own, and so any worker."""
    async with ClientSession(connector=TCPConnector(force_close=True)) as session:
        yield session


async def ask(session: ClientSession, process: Process, text: str = "x", key: str = "sk") -> int:
    headers = {"Authorization": f"Bearer {key}"}
    async with session.post(
        f"{process.base_url}/embeddings", json={"model": "m", "input": text}, headers=headers
    ) as answer:
        await answer.read()
        return answer.status


async def scraped(session: ClientSession, process: Process) -> dict[str, float]:
    """The sum of each metric's samples."""
    async with session.get(f"{process.admin_url}/metrics") as answer:
        assert answer.status == 200
        families = text_string_to_metric_families(await answer.text())
        sums: dict[str, float] = {}
        for family in families:
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0) + sample.value
        return sums


def children(process: Process) -> list[int]:
    """The workers and the admin port's process, in the order they were started."""
    pid = process.popen.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_there(pid: int) -> bool:
    """Whether a process is more than an entry that nobody has read yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await holds():
            await asyncio.sleep(0.02)


async def test_all_answer_and_one_scrape_is_of_all(
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


async def test_workers_that_fetch_an_item_at_the_same_time_serve_one_vector_in_the_end(
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


async def test_a_worker_that_is_killed_fails_its_own_and_is_replaced(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    held: list[str] = []

    async def reply(call: Call) -> web.StreamResponse:
        if "held" in str(call.items):
            held.extend(call.items)
            await gate.wait()
        return upstream.embed(call)

    upstream.reply = reply
    # Half of a worker's share must hold all 40: on a slow machine they come too far apart to travel together.
    with proxy(tmp_path, upstream, "--upstream-concurrency", "256", "--batch-window", "0ms") as process:
        for number in range(20):
            assert await ask(session, process, f"warm {number}") == 200
        asked = [asyncio.create_task(ask(session, process, f"held {number}")) for number in range(40)]
        await until(lambda: _is(len(held) == 40))
        before = await scraped(session, process)
        assert before["embedding_proxy_requests_in_flight"] == 40
        first, second, _ = children(process)
        os.kill(first, signal.SIGKILL)

        async def is_replaced() -> bool:
            return len(children(process)) == 3 and first not in children(process)

        await until(is_replaced)
        left = (await scraped(session, process))["embedding_proxy_requests_in_flight"]
        assert 0 < left < 40
        await until(lambda: _is(sum(task.done() for task in asked) == 40 - left))
        failed = [task for task in asked if task.done()]
        assert all(isinstance(task.exception(), ClientError) for task in failed)
        assert second in children(process)
        for _ in range(40):
            assert await ask(session, process) == 200
        gate.set()
        rest = await asyncio.gather(*(task for task in asked if task not in failed))
        assert rest == [200] * (40 - len(failed))
        after = await scraped(session, process)
        # What was counted is counted still.
        assert after[REQUESTS] == before[REQUESTS] + 40 + len(rest)
        status, log = await asyncio.to_thread(process.stop, signal.SIGTERM)
        assert status == 0
        assert "worker 1 ended, killed by SIGKILL" in log


async def _is(holds: bool) -> bool:
    return holds


async def test_what_is_under_way_is_finished_and_the_admin_port_goes_last(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path
) -> None:
    gate = Gate(upstream)
    with proxy(tmp_path, upstream) as process:
        asked = asyncio.create_task(ask(session, process))
        await gate.calls(1)
        process.popen.send_signal(signal.SIGTERM)

        async def is_shut() -> bool:
            # Without a request: one that came just in time would be held, too.
            try:
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", int(process.base_url.split(":")[2].split("/")[0])
                )
            except OSError:
                return True
            writer.close()
            return False

        await until_not_ready(session, process)
        await until(is_shut)
        assert (await scraped(session, process))["embedding_proxy_requests_in_flight"] == 1
        gate.open()
        assert await asked == 200
        status, _ = await asyncio.to_thread(process.wait)
        assert status == 0


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)])
async def test_a_second_signal_ends_all_at_once(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    with proxy(tmp_path, upstream, "--drain-delay", "1h") as process:
        pids = children(process)
        process.popen.send_signal(numbers[0])
        await until_not_ready(session, process)
        process.popen.send_signal(numbers[1])
        status, _ = await asyncio.to_thread(process.wait)
        assert status == 1
        assert not any(map(is_there, pids))


async def test_ctrl_c_reaches_all_and_means_drain(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with proxy(tmp_path, upstream) as process:
        # A terminal sends it to every process of the group.
        for pid in [*children(process), process.popen.pid]:
            os.kill(pid, signal.SIGINT)
        status, _ = await asyncio.to_thread(process.wait)
        assert status == 0


async def test_nobody_outlives_the_supervisor(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with proxy(tmp_path, upstream) as process:
        pids = children(process)
        assert len(pids) == 3
        process.popen.kill()
        process.popen.wait()
        await until(lambda: _is(not any(map(is_there, pids))))


def test_what_can_not_start_says_why_once(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    flags = ("--workers", "3", "--upstream-key-env", "UPSTREAM_KEY", "--client-keys", str(tmp_path / "none"))
    command = [sys.executable, "-m", "proxy", "serve", "--port", "0", "--admin-port", "0", *flags]
    environment = os.environ | {"HOME": str(tmp_path), "UPSTREAM_KEY": "sk-owned"}
    command += ["--upstream", upstream.base_url]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=TIMEOUT_S)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("embedding-proxy: ")


async def test_client_keys_are_read_again_by_all(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-owned")
    path = tmp_path / "clients"
    key = client_keys.add(path, "first")
    with proxy(tmp_path, upstream, "--upstream-key-env", "UPSTREAM_KEY", "--client-keys", str(path)) as process:
        assert await ask(session, process, key=key) == 200
        other = client_keys.add(path, "second")
        assert await ask(session, process, key=other) == 401
        process.popen.send_signal(signal.SIGHUP)

        async def is_known() -> bool:
            return [await ask(session, process, key=other) for _ in range(12)] == [200] * 12

        await until(is_known)


async def test_a_signal_to_the_whole_group_is_one_signal(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path
) -> None:
    gate = Gate(upstream)
    with proxy(tmp_path, upstream) as process:
        asked = asyncio.create_task(ask(session, process))
        await gate.calls(1)
        for pid in [*children(process), process.popen.pid]:
            os.kill(pid, signal.SIGTERM)
        await until_not_ready(session, process)
        gate.open()
        assert await asked == 200
        assert (await asyncio.to_thread(process.wait))[0] == 0


async def test_it_ends_where_no_worker_is_alive(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with proxy(tmp_path, upstream) as process:
        for _ in range(2):  # the second time there is a pause before the next
            for pid in children(process)[:2]:
                os.kill(pid, signal.SIGKILL)
            await until(lambda: _is(len(children(process)) == 3))
        process.popen.send_signal(signal.SIGSTOP)
        for pid in children(process):
            if Path(f"/proc/{pid}/cmdline").exists():
                os.kill(pid, signal.SIGKILL)
        process.popen.send_signal(signal.SIGTERM)
        process.popen.send_signal(signal.SIGCONT)
        await asyncio.to_thread(process.wait)


async def test_one_that_can_not_start_again_leaves_the_others_at_work(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-owned")
    path = tmp_path / "clients"
    key = client_keys.add(path, "first")
    with proxy(tmp_path, upstream, "--upstream-key-env", "UPSTREAM_KEY", "--client-keys", str(path)) as process:
        first = children(process)[0]
        path.write_text("what is this")
        os.kill(first, signal.SIGKILL)
        await until(lambda: _is(first not in children(process)))

        async def has_failed() -> bool:
            return len(children(process)) == 2

        await until(has_failed)

        async def answers() -> bool:
            try:
                async with asyncio.timeout(1):
                    return await ask(session, process, key=key) == 200
            except (TimeoutError, ClientError):  # its socket is that of the one that is missing
                return False

        await until(answers)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_hangup_without_client_keys_ends_nothing(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path, workers: int
) -> None:
    with proxy(tmp_path, upstream, workers=workers) as process:
        for pid in [process.popen.pid, *children(process)[:workers]]:
            os.kill(pid, signal.SIGHUP)
        assert await ask(session, process) == 200
        status, log = await asyncio.to_thread(process.stop, signal.SIGTERM)
        assert status == 0
        assert "SIGHUP: no client keys or certificates to reload" in log


# --- adding up


def family(registry: CollectorRegistry) -> list[Metric]:
    return list(text_string_to_metric_families(text_of(registry.collect()).decode()))


COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 1000), max_size=3)
SECONDS = st.lists(st.sampled_from([0.05, 0.5, 5.0]))


@given(st.lists(st.tuples(COUNTS, SECONDS), max_size=4))
def test_a_sum_is_what_one_process_would_have_counted(parts: list[tuple[dict[str, int], list[float]]]) -> None:
    def counted(all_parts: list[tuple[dict[str, int], list[float]]]) -> list[Metric]:
        registry = CollectorRegistry()
        counter = counters.Counter("things", "What.", ["of"], registry=registry)
        histogram = counters.Histogram("took_seconds", "How.", buckets=(0.1, 1.0), registry=registry)
        for counts, seconds in all_parts:
            for of, count in counts.items():
                counter.labels(of).inc(count)
            for value in seconds:
                histogram.observe(value)
        return family(registry)

    whole = add_up([counted([part]) for part in parts])
    if parts:
        assert series(whole) == pytest.approx(series(counted(parts)))
    else:
        assert whole == []


def series(families: list[Metric]) -> dict[str, float]:
    return {f"{sample.name}{sorted(sample.labels.items())}": sample.value for of in families for sample in of.samples}


def test_states_are_not_added_up() -> None:
    parts = []
    for state in ("closed", "open", "half-open"):
        metrics = Metrics()
        metrics.breaker("upstream", state)
        parts.append(metrics.families())
    sums = series(add_up(parts))
    assert sums["embedding_proxy_breaker_state[('circuit', 'upstream')]"] == 2
    assert [value for name, value in sums.items() if "build_info" in name] == [1]


async def test_a_worker_that_does_not_answer_costs_its_gauges_only(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.of_model(None).answered("hit", 200)
    metrics.queued_items.set(5)
    app = web.Application()

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=text_of(metrics.families()))

    app.router.add_get("/metrics", exposition)
    runner = web.AppRunner(app)
    await runner.setup()
    path = tmp_path / "1.sock"
    await web.UnixSite(runner, str(path)).start()
    workers = Workers(tmp_path)
    name, queued = "embedding_proxy_requests_total", "embedding_proxy_upstream_queued_items"

    async def sums() -> tuple[float, float]:
        found = series(list(await workers.families()))
        return sum(value for of, value in found.items() if of.startswith(name)), found.get(f"{queued}[]", 0.0)

    assert await sums() == (1, 5)
    await runner.cleanup()
    path.touch()
    assert await sums() == (1, 5)  # dead or only slow: nobody knows yet
    path.unlink()
    assert await sums() == (1, 0)
    assert await sums() == (1, 0)
