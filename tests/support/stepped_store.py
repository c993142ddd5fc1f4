"""A store whose steps a state machine orders."""

import asyncio
from collections.abc import Collection, Mapping, Sequence

from proxy.cache.store import NOTHING, TTL, Changes, Page, Purge, Unleased
from proxy.errors import StoreError


class World:
    """What all processes with one store share. Steps are done as they come unless it ``is_stepped``."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.is_down = False
        self.is_stepped = True
        self.steps: list[tuple[SteppedStore, asyncio.Future[None]]] = []

    def proceed(self, which: int) -> None:
        """Do one of the steps, if there is any."""
        if self.steps:
            _release(self.steps.pop(which % len(self.steps))[1])

    def proceed_to_the_end(self) -> None:
        """Do all steps, also those to come, by a store that is up."""
        self.is_down = self.is_stepped = False
        for _, step in self.steps:
            _release(step)


def _release(step: "asyncio.Future[None]") -> None:
    if not step.done():
        step.set_result(None)


class SteppedStore(Unleased):
    """One process's view of the store. Each operation waits before it is done, and once more before its reply."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def step(self) -> None:
        if self.world.is_stepped:
            step: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.world.steps.append((self, step))
            await step
        if self.world.is_down:
            raise StoreError("connection", "down")

    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        await self.step()
        found = {key: self.world.values[key] for key in keys if key in self.world.values}
        await self.step()
        return found

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: TTL,
        overwrite: bool,
        invalid: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        """Without ``overwrite``."""
        await self.step()
        stored = self.world.values
        existing = {key: stored[key] for key in values if key in stored and stored[key] != invalid.get(key)}
        stored |= {key: value for key, value in values.items() if key not in existing}
        await self.step()  # it may go down between doing it and saying so
        return existing

    async def scan(self, cursor: bytes = b"") -> Page:
        return Page(dict(self.world.values), None)

    async def delete_many(self, keys: Collection[bytes]) -> int:
        await self.step()
        found = sum(self.world.values.pop(key, None) is not None for key in keys)
        await self.step()
        return found

    async def announce_purge(self, purge: Purge) -> None:
        return None

    async def changes(self) -> Changes:
        return Changes()

    async def aclose(self) -> None:
        return None
