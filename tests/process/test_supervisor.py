"""Signals, drains and restarts of several processes."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession, web

from proxy.access import client_keys
from tests.support.gate import Gate
from tests.support.process import PROGRAM, Process
from tests.support.rolling import until_not_ready
from tests.support.scripted import Call, ScriptedUpstream
from tests.support.workers import REQUESTS, TIMEOUT_S, ask, children, is_there, proxy, scraped, until, until_true

RUNNING, CONFIGURED = "embedding_proxy_workers_running", "embedding_proxy_workers_configured"


@pytest.mark.long
async def test_a_killed_worker_fails_only_its_own_requests_and_is_restarted(
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
        await until_true(lambda: len(held) == 40)
        before = await scraped(session, process)
        assert before["embedding_proxy_requests_in_flight"] == 40
        first, second, _ = children(process)
        os.kill(first, signal.SIGKILL)

        async def is_replaced() -> bool:
            return len(children(process)) == 3 and first not in children(process)

        await until(is_replaced)
        left = (await scraped(session, process))["embedding_proxy_requests_in_flight"]
        assert 0 < left < 40
        await until_true(lambda: sum(task.done() for task in asked) == 40 - left)
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


async def test_in_flight_requests_finish_and_the_admin_port_closes_last(
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
async def test_a_second_signal_kills_all_processes(
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


async def test_ctrl_c_reaches_all_processes_and_drains_them(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with proxy(tmp_path, upstream) as process:
        # A terminal sends it to every process of the group.
        for pid in [*children(process), process.popen.pid]:
            os.kill(pid, signal.SIGINT)
        status, _ = await asyncio.to_thread(process.wait)
        assert status == 0


async def test_no_process_outlives_the_supervisor(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with proxy(tmp_path, upstream) as process:
        pids = children(process)
        assert len(pids) == 3
        process.popen.kill()
        process.popen.wait()
        await until_true(lambda: not any(map(is_there, pids)))


def test_an_error_at_the_start_is_reported_once(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    flags = ("--workers", "3", "--upstream-key-env", "UPSTREAM_KEY", "--client-keys", str(tmp_path / "none"))
    command = [sys.executable, "-m", "proxy", "serve", "--port", "0", "--admin-port", "0", *flags]
    environment = os.environ | {"HOME": str(tmp_path), "UPSTREAM_KEY": "sk-owned"}
    command += ["--upstream", upstream.base_url]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=TIMEOUT_S)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("embedding-proxy: ")


async def test_sighup_reloads_client_keys_in_all_workers(
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


async def test_a_signal_to_the_process_group_counts_once(
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


async def test_sigterm_ends_it_when_no_worker_is_alive(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with proxy(tmp_path, upstream) as process:
        for _ in range(2):  # the second time there is a pause before the next
            for pid in children(process)[:2]:
                os.kill(pid, signal.SIGKILL)
            await until_true(lambda: len(children(process)) == 3)
        process.popen.send_signal(signal.SIGSTOP)
        for pid in children(process):
            if Path(f"/proc/{pid}/cmdline").exists():
                os.kill(pid, signal.SIGKILL)
        process.popen.send_signal(signal.SIGTERM)
        process.popen.send_signal(signal.SIGCONT)
        await asyncio.to_thread(process.wait)


async def test_a_worker_that_can_not_restart_leaves_its_clients_to_the_others(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-owned")
    path = tmp_path / "clients"
    key = client_keys.add(path, "first")
    listed = path.read_text()
    with proxy(tmp_path, upstream, "--upstream-key-env", "UPSTREAM_KEY", "--client-keys", str(path)) as process:
        path.write_text("what is this")
        os.kill(children(process)[0], signal.SIGKILL)
        while "worker 1 ended, exit status 2" not in await asyncio.to_thread(process.readline):
            pass
        # With its socket open, the kernel would give it half of the connections, and they would wait.
        assert [await ask(session, process, key=key) for _ in range(20)] == [200] * 20
        sums = await scraped(session, process)
        assert [sums[name] for name in (RUNNING, CONFIGURED)] == [1, 2]
        path.write_text(listed)
        first = await _processes_of_requests(process, 20)

        async def is_back() -> bool:
            assert await ask(session, process, key=key) == 200
            return await _processes_of_requests(process, 1) != first

        await until(is_back)

        async def is_counted() -> bool:
            return (await scraped(session, process))[RUNNING] == 2

        await until(is_counted)
        assert (await scraped(session, process))["embedding_proxy_workers_ended_total"] == 1


async def _processes_of_requests(process: Process, count: int) -> set[str]:
    """What distinguishes the IDs of the processes that handled the next requests of the log."""
    found: list[str] = []
    while len(found) < count:
        line = await asyncio.to_thread(process.readline)
        found += re.findall(r" m  (\w+)-\w+", line)
    return set(found)


@pytest.mark.parametrize("workers", [1, 2])
async def test_sighup_without_files_to_reload_ends_no_process(
    upstream: ScriptedUpstream, session: ClientSession, tmp_path: Path, workers: int
) -> None:
    with proxy(tmp_path, upstream, workers=workers) as process:
        for pid in [process.popen.pid, *children(process)[:workers]]:
            os.kill(pid, signal.SIGHUP)
        assert await ask(session, process) == 200
        status, log = await asyncio.to_thread(process.stop, signal.SIGTERM)
        assert status == 0
        assert "SIGHUP: no client keys or certificates to reload" in log


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_sighup_before_it_is_ready_waits_until_it_is(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-owned")
    path, listed, log = tmp_path / "clients", tmp_path / "listed", tmp_path / "log"
    client_keys.add(listed, "first")
    os.mkfifo(path)
    flags = ("--upstream-key-env", "UPSTREAM_KEY", "--client-keys", str(path), "--workers", str(workers))
    command = [*PROGRAM, "serve", "--port", "0", "--admin-port", "0", "--store", "memory:", *flags]
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--upstream", upstream.base_url], stdout=file, stderr=file)
    try:
        with await asyncio.to_thread(path.open, "w") as fifo:  # opened once it reads its keys, as it starts
            of_worker = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            os.kill(process.pid if workers == 1 else int(of_worker.read_text().split()[0]), signal.SIGHUP)
            listed.replace(path)
            fifo.write(path.read_text())

        def is_reloaded() -> bool:
            assert process.poll() is None, log.read_text()
            return "client keys: reloaded 1" in log.read_text()

        await until_true(is_reloaded)
        assert "ended" not in log.read_text()
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
