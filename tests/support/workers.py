"""A proxy of several workers as a user starts it, and its processes."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import ScriptedUpstream

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


async def until_true(holds: Callable[[], bool]) -> None:
    async def is_true() -> bool:
        return holds()

    await until(is_true)
