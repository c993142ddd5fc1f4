"""Requests that may be merged."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from proxy.fetch.lane import Lane
from proxy.fetch.waiting import Waiting


class CallLimits(NamedTuple):
    """How many calls a group may have under way."""

    in_all: int
    a_tenant: int


@dataclass(slots=True, eq=False)
class Group:
    """They gather in ``waiting`` while calls are under way. Once their ``lane`` has to wait, they wait in its queue.

    A call counts as that of its first request's tenant. The clients of a key that the proxy holds are in one group, and
    one whose calls hang leaves calls to the others.
    """

    name: bytes | None  # None: of a single request that may not be merged
    lane: Lane | None  # None: what the upstream refuses does not wait
    limits: CallLimits
    waiting: dict[bytes, list[Waiting]] = field(default_factory=dict)  # by tenant, in the order in which they came
    items: int = 0  # of these
    calls: int = 0  # under way
    timer: asyncio.Handle | None = None
    _calls_of: Counter[bytes] = field(default_factory=Counter)  # by tenant

    def is_full(self, tenant_name: bytes) -> bool:
        """Whether the requests of a tenant must wait for the end of a call."""
        return self.calls >= self.limits.in_all or self._calls_of[tenant_name] >= self.limits.a_tenant

    @property
    def has_ready(self) -> bool:
        """Whether a request waits whose tenant may have one more call."""
        return not all(map(self.is_full, self.waiting))

    def add(self, waiting: Waiting) -> None:
        self.waiting.setdefault(waiting.tenant_name, []).append(waiting)
        self.items += len(waiting.request.keys)

    def take_ready(self) -> list[Waiting]:
        """All that wait and whose tenants may have one more call, in the order in which they came. They wait here no
        longer."""
        ready = [self.waiting.pop(name) for name in list(self.waiting) if not self.is_full(name)]
        taken = ready[0] if len(ready) == 1 else sorted(chain(*ready), key=attrgetter("since_s"))
        self.items -= sum([len(one.request.keys) for one in taken])
        return taken

    def put_back(self, waiting: list[Waiting]) -> None:
        """What was taken last."""
        for one in waiting:
            self.add(one)

    def call_began(self, tenant_name: bytes) -> None:
        self.calls += 1
        self._calls_of[tenant_name] += 1

    def call_ended(self, tenant_name: bytes) -> None:
        self.calls -= 1
        self._calls_of[tenant_name] -= 1
        if not self._calls_of[tenant_name]:
            del self._calls_of[tenant_name]
