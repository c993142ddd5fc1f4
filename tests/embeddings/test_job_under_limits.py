"""A bulk job and queries beside it, under rate limits of every kind, on a virtual clock: nothing fails, and little is
refused."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.limited_route import CALL_S, LimitedRoute
from tests.support.limiters import CALLS_PER_S, LIMITERS
from tests.support.virtual_loop import run_virtually

BATCHES, ITEMS, CLIENTS = 100, 40, 24
QUERY_EVERY_S = 0.25
SETTLED_AFTER_S = 1.0
MAX_REFUSED = 0.05  # of the calls
# Of the time that the slowest limiter of constant rate needs for the calls of the job.
MOST_TIME = 1.25
SLOWER = {"halves after 4 s", "punishes retries"}  # no constant rate; every refusal costs a wait


class Job:
    def __init__(self, name: str) -> None:
        self.route = LimitedRoute(LIMITERS[name]())
        self.statuses: list[int] = []
        self.queries_s: list[float] = []

    async def run(self) -> float:
        """The seconds that it took."""
        now = asyncio.get_running_loop().time
        began_s = now()
        asking = asyncio.create_task(self._query())
        numbers = iter(range(BATCHES))
        await asyncio.gather(*(self._work(numbers) for _ in range(CLIENTS)))
        took_s = now() - began_s
        asking.cancel()
        await asyncio.wait([asking])
        return took_s

    async def _work(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            answer = await self.route.send([f"batch {number:04}, item {n:04}, of ten tokens" for n in range(ITEMS)])
            self.statuses.append(answer.status)

    async def _query(self) -> None:
        for number in range(10**6):
            answer = await self.route.send([f"query {number:04}, of ten tokens"])
            self.statuses.append(answer.status)
            self.queries_s.append(answer.took_s)
            await asyncio.sleep(max(0.0, QUERY_EVERY_S - answer.took_s))


@pytest.mark.parametrize("name", sorted(LIMITERS))
def test_nothing_fails_and_little_is_refused(name: str) -> None:
    async def run() -> tuple[Job, float]:
        job = Job(name)
        return job, await job.run()

    job, took_s = run_virtually(run())
    verdicts = job.route.upstream.verdicts
    assert len(job.statuses) > BATCHES
    assert set(job.statuses) == {200}
    late = [verdict for at_s, verdict in verdicts if at_s > SETTLED_AFTER_S and not verdict.is_accepted]
    assert len(late) <= MAX_REFUSED * len(verdicts)
    accepted = sum(verdict.is_accepted for _, verdict in verdicts)
    if name not in SLOWER:
        assert took_s <= MOST_TIME * max(accepted / 10, BATCHES * ITEMS / 400)


def test_queries_wait_for_one_slot_where_responses_state_the_limit() -> None:
    async def run() -> Job:
        job = Job("OpenAI's header fields")
        await job.run()
        return job

    queries_s = sorted(run_virtually(run()).queries_s)
    assert queries_s[int(0.95 * len(queries_s))] <= CALL_S + 1 / CALLS_PER_S
