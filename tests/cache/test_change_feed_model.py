"""Processes on one store that fetch, replace records, read, poll its log and die in any order, and an operator who
purges: once all is quiet, each process serves the store's records, from memory too, and none of them was asked for
before the last purge began."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from proxy.cache.cache import Cache
from proxy.cache.change_feed import AGAIN_AFTER_S, POLL_S
from proxy.cache.discards import Mark
from proxy.cache.entry import Entry
from proxy.cache.memory import Memory
from proxy.cache.store import NOTHING, TTL, Changes, Purge, PurgedModels
from proxy.errors import StoreError
from proxy.protocol import records
from proxy.protocol.records import Record
from proxy.telemetry.metrics import Metrics
from tests.support.dict_store import Clock, look_up, record, served, written
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.stepped_store import SteppedStore, World

KEYS = [bytes(32)]
PROCESSES = 2
PURGES = [
    Purge(keys=frozenset(KEYS[:1])),
    Purge(models={PurgedModels("mod*")}),
    Purge(models={PurgedModels("mod*", b"another")}),  # covers nothing
]
MODEL = "model"
# Turns of the loop after which everything that can happen without the store has happened.
TURNS = 30


class FedWorld(World):
    """With a log of changes, and a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Changes] = []
        self.now_s = 0.0
        self.asked = 0  # the number of the latest fetch, which is in its vector
        self.has_purged = False  # anything that is stored
        self.purged_up_to: dict[bytes, float] = {}  # by key the number of the latest fetch before its last purge

    def clock(self) -> float:
        return self.now_s


class Process(SteppedStore):
    """One process, its cache, and what it knows of the log."""

    world: FedWorld

    def __init__(self, world: FedWorld, timeout_s: float) -> None:
        super().__init__(world)
        self.read = 0  # events
        self.replacing = 0  # writes that are announced and not done
        self.unfinished = 0  # likewise, or done and not announced a second time
        self.unannounced: set[bytes] = set()
        self.tasks: list[asyncio.Task[Any]] = []
        self.cache = Cache(
            Memory(10**6), self, Metrics(), ttl_s=None, timeout_s=timeout_s, clock=Clock(), monotonic=world.clock
        )
        self.cache.feed._is_first = False  # it has polled before it served
        for breaker in self.cache._store._breakers.values():
            breaker._clock = world.clock  # a run must not depend on how long it takes

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: TTL,
        overwrite: bool,
        invalid: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        if not overwrite:
            return await super().put_many(values, ttl_s=ttl_s, overwrite=False, invalid=invalid)
        await self._announce(values)
        self.replacing += 1
        self.unfinished += 1
        try:
            await self.step()
            self.world.values |= values
        except StoreError:
            self.unfinished -= 1
            raise
        finally:
            self.replacing -= 1
        await self._announce(values)
        self.unfinished -= 1
        await self.step()
        return {}

    async def _announce(self, keys: Mapping[bytes, bytes]) -> None:
        self.unannounced |= keys.keys()
        try:
            await self.step()
        except StoreError:
            return
        self.world.log.append(Changes(frozenset(self.unannounced)))
        self.unannounced.clear()

    async def delete_many(self, keys: Collection[bytes]) -> int:
        assert not keys or self.world.has_purged
        named = dict.fromkeys(keys, b"")
        await self._announce(named)
        self.replacing += 1
        try:
            found = await super().delete_many(keys)
        finally:
            self.replacing -= 1
        await self._announce(named)
        return found

    async def announce_purge(self, purge: Purge) -> None:
        await self.step()
        self.world.log.append(Changes(purge=purge))
        await self.step()

    async def purge(self, purge: Purge) -> None:
        """As an operator does it: what the store then has of ``KEYS`` is deleted."""
        asked = self.world.asked
        covered = [key for key in KEYS if purge.covers(key, record(model=MODEL))]
        self.world.has_purged |= bool(covered)
        with suppress(StoreError):
            await self.announce_purge(purge)
            await self.delete_many(covered)
            await self.announce_purge(purge)
            self.world.purged_up_to |= dict.fromkeys(covered, float(asked))

    async def changes(self) -> Changes:
        if self.unannounced:
            await self._announce({})
        await self.step()
        events = self.world.log[self.read :]
        await self.step()
        self.read += len(events)
        purged = frozenset().union(*(event.purge.keys for event in events))
        models = frozenset().union(*(event.purge.models for event in events))
        return Changes(frozenset().union(*(event.keys for event in events)), purge=Purge(purged, models))


class Fetch(NamedTuple):
    """One that is under way."""

    process: Process
    asked: Mark
    fresh: Mapping[bytes, Record]
    overwrite: bool


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(debug=False)
        self.world = FedWorld()
        self.fetches: list[Fetch] = []
        self.has_lost_a_purged_write = False
        self.has_lost_an_announcement = False

    @initialize(timeouts_s=st.lists(st.sampled_from([0.0, 1000.0]), min_size=PROCESSES, max_size=PROCESSES))
    def begin(self, timeouts_s: list[float]) -> None:
        """A process of budget 0 waits for no write, one of 1000 s for each."""
        for key in KEYS:
            self.world.values[key] = records.encode(key, record(-1.0, model=MODEL))
        self.processes = [self.process(timeout_s) for timeout_s in timeouts_s]
        self.operator = self.process(0.0)

    def process(self, timeout_s: float) -> Process:
        async def open_() -> Process:
            return Process(self.world, timeout_s)

        return self.runner.run(open_())

    def turn(self) -> None:
        async def take() -> None:
            for _ in range(TURNS):
                await asyncio.sleep(0)

        self.runner.run(take())

    @rule(which=st.integers(0, PROCESSES - 1), keys=st.sets(st.sampled_from(KEYS), min_size=1), overwrite=st.booleans())
    def upstream_is_asked(self, which: int, keys: set[bytes], overwrite: bool) -> None:
        process = self.processes[which]
        self.world.asked += 1
        fresh = {key: record(float(self.world.asked), model=MODEL) for key in sorted(keys)}
        self.fetches.append(Fetch(process, process.cache.now, fresh, overwrite))

    @rule(which=st.integers(0))
    def upstream_responds(self, which: int) -> None:
        if not self.fetches:
            return
        process, asked, fresh, overwrite = self.fetches.pop(which % len(self.fetches))
        if process in self.processes:
            self.start(
                self.processes.index(process), lambda cache: cache.write(fresh, overwrite=overwrite, asked=asked)
            )

    @rule(purge=st.sampled_from(PURGES))
    def operator_purges(self, purge: Purge) -> None:
        if all(task.done() for task in self.operator.tasks):  # one at a time

            async def begin() -> None:
                self.operator.tasks.append(asyncio.create_task(self.operator.purge(purge)))

            self.runner.run(begin())
            self.turn()

    @rule(which=st.integers(0, PROCESSES - 1), keys=st.sets(st.sampled_from(KEYS), min_size=1))
    def client_requests(self, which: int, keys: set[bytes]) -> None:
        self.start(which, lambda cache: look_up(cache, *sorted(keys)))

    @rule(which=st.integers(0, PROCESSES - 1))
    def process_polls(self, which: int) -> None:
        self.start(which, lambda cache: cache.feed.poll())

    def start(self, which: int, what: Callable[[Cache], Coroutine[Any, Any, object]]) -> None:
        process = self.processes[which]

        async def begin() -> None:
            process.tasks.append(asyncio.create_task(what(process.cache)))

        self.runner.run(begin())
        self.turn()

    @rule(which=st.integers(0))
    def store_proceeds(self, which: int) -> None:
        if not self.world.steps:
            return
        self.world.proceed(which)
        self.turn()

    @rule()
    def store_catches_up(self) -> None:
        for _ in range(TURNS):
            self.store_proceeds(0)

    @rule(is_down=st.booleans())
    def store_changes(self, is_down: bool) -> None:
        self.world.is_down = is_down

    @rule()
    def time_passes(self) -> None:
        # What is announced is done, or fails, long before it is discarded again.
        if not any(process.replacing for process in (*self.processes, self.operator)):
            self.world.now_s += POLL_S

    @rule(which=st.integers(0, PROCESSES - 1), timeout_s=st.sampled_from([0.0, 1000.0]))
    def process_dies(self, which: int, timeout_s: float) -> None:
        process = self.processes[which]
        if not process.unannounced:  # which would die with it
            self.runner.run(self.kill(process))
            self.processes[which] = self.process(timeout_s)

    async def kill(self, process: Process) -> None:
        self.has_lost_an_announcement |= process.unfinished > 0
        # Another process does not know when this one asked for what it stored.
        recent = process.cache.feed._recent
        self.has_lost_a_purged_write |= bool(recent._writes or process.cache._writer.tasks._tasks or process.tasks)
        self.world.steps = [(its, step) for its, step in self.world.steps if its is not process]
        for task in process.tasks:
            task.cancel()
        await process.cache._writer.tasks.aclose()
        await asyncio.gather(*process.tasks, return_exceptions=True)

    def teardown(self) -> None:
        try:
            if hasattr(self, "processes"):
                self.runner.run(self.all_serve_the_stored_records())
        finally:
            self.runner.close()

    async def all_serve_the_stored_records(self) -> None:
        self.world.proceed_to_the_end()
        await asyncio.gather(*self.operator.tasks)
        for process in self.processes:
            await asyncio.gather(*process.tasks)
            await written(process.cache)
            for breaker in process.cache._store._breakers.values():
                breaker._cooled_at_s = float("-inf")  # the clock has gone on
        for _ in range(3):  # an item may first have to be written, or its circuit be closed
            for process in self.processes:
                await look_up(process.cache, *KEYS)
                await written(process.cache)
        if self.has_lost_an_announcement:
            await self.all_poll()
            self.world.now_s += AGAIN_AFTER_S
        await self.all_poll()
        await self.all_poll()  # the first may have deleted what was purged
        if not self.has_lost_a_purged_write:
            for key, value in self.world.values.items():
                number, _ = records.decode(key, value).vector.array()
                assert number > self.world.purged_up_to.get(key, -2.0)
        stored = {key: Entry.of(records.decode(key, value)).numbers() for key, value in self.world.values.items()}
        for process in self.processes:
            in_memory = served(process.cache.peek_confirmed(KEYS, min_stored_at_s=0.0).found)
            assert in_memory == {key: stored[key] for key in in_memory}
            assert await look_up(process.cache, *KEYS) == stored

    async def all_poll(self) -> None:
        for process in self.processes:
            await process.cache.feed.poll()


TestChangeFeed = Machine.TestCase
TestChangeFeed.settings = settings(
    max_examples=3000 if IS_SLOW_PROFILE else 100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # on a busy machine
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
pytestmark = pytest.mark.timeout(600)
