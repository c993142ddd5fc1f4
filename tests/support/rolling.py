"""Rolling restarts under load, as an orchestrator does them: the next instance is up before the last one is told to go,
and traffic is moved once the last one says that it is not ready."""

import asyncio
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import ClientSession
from openai import AsyncOpenAI, OpenAIError

from tests.support.process import Process
from tests.support.redis_server import free_port

# Traffic must be moved within it. On a busy machine it takes this process, which is both the orchestrator and the load,
# more than half a second to see that an instance is not ready.
_DRAIN_DELAY = "2s"


@dataclass
class Tally:
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    exit_s: list[float] = field(default_factory=list)
    exit_statuses: list[int] = field(default_factory=list)


async def rolling_restarts(folder: Path, upstream_url: str, *, restarts: int, workers: int = 8) -> Tally:
    """Restart under the load of openai clients that never retry."""
    tally = Tally()
    arguments = ["--upstream", upstream_url, "--drain-delay", _DRAIN_DELAY, "--shutdown-timeout", "8s"]
    arguments += ["--store", f"sqlite:///{folder / 'cache.sqlite3'}"]

    async def start() -> tuple[Process, AsyncOpenAI]:
        process = await asyncio.to_thread(Process, folder, free_port(), *arguments)
        return process, AsyncOpenAI(base_url=process.base_url, api_key="k", max_retries=0)

    process, client = await start()
    is_over = False

    async def work(worker: int) -> None:
        while not is_over:
            tally.requests += 1
            texts = [f"{worker} {tally.requests}", f"common {tally.requests % 50}"]
            try:
                answer = await client.embeddings.create(model="m", input=texts)
                assert len(answer.data) == len(texts)
            except OpenAIError as error:
                tally.failures.append(f"{error!r} from {error.__cause__!r}")

    load = [asyncio.create_task(work(worker)) for worker in range(workers)]
    async with ClientSession() as session:
        for _ in range(restarts):
            last, last_client = process, client
            process, next_client = await start()
            last.popen.send_signal(signal.SIGTERM)
            told = time.monotonic()
            await until_not_ready(session, last)
            client = next_client
            status, _ = await asyncio.to_thread(last.wait)
            tally.exit_statuses.append(status)
            tally.exit_s.append(time.monotonic() - told)
            await last_client.close()
    is_over = True
    await asyncio.gather(*load)
    await client.close()
    await asyncio.to_thread(process.stop, signal.SIGTERM)
    return tally


async def until_not_ready(session: ClientSession, process: Process) -> None:
    while True:
        async with session.get(process.admin_url + "/readyz") as response:
            if response.status == 503:
                return
        await asyncio.sleep(0.01)
