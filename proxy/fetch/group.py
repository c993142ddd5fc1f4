"""Requests that may be merged."""

import asyncio
from dataclasses import dataclass, field

from proxy.fetch.lane import Lane
from proxy.fetch.waiting import Waiting


@dataclass(slots=True, eq=False)
class Group:
    """They gather in ``waiting`` while calls are under way. Once their ``lane`` has to wait, they wait in its queue."""

    name: bytes | None  # None: of a single request that may not be merged
    lane: Lane | None  # None: what the upstream refuses does not wait
    waiting: list[Waiting] = field(default_factory=list)
    items: int = 0  # of these
    calls: int = 0  # under way
    timer: asyncio.Handle | None = None

    def add(self, waiting: Waiting) -> None:
        self.waiting.append(waiting)
        self.items += len(waiting.request.keys)

    def take(self) -> list[Waiting]:
        """All that wait, which wait here no longer."""
        waiting, self.waiting, self.items = self.waiting, [], 0
        return waiting

    def put_back(self, waiting: list[Waiting]) -> None:
        """What was taken last."""
        for one in waiting:
            self.add(one)
