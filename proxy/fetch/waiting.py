"""A request that waits to be sent."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.errors import Abandoned, ProxyError
from proxy.fetch.outcomes import CallFailure, Outcome
from proxy.fetch.pacer import Cost
from proxy.fetch.request import FetchRequest
from proxy.fetch.wait_queue import Ticket


@dataclass(slots=True, eq=False)
class Waiting:
    """A request from when it is submitted until its ``outcome`` is known. It may be sent several times, if the upstream
    refuses it for its limits."""

    request: FetchRequest
    outcome: "asyncio.Future[Outcome | ProxyError]"
    since_s: float  # by `time.perf_counter`
    call: "asyncio.Task[None] | None" = None  # that it is in; None: it waits
    refusal: CallFailure | None = None  # the last one
    ticket: "Ticket[Waiting] | None" = None  # its place among those that a rate limit holds
    held_since_s: float = 0.0  # event loop time
    give_up: asyncio.TimerHandle | None = None

    @property
    def is_abandoned(self) -> bool:
        """Whether its client has disconnected."""
        return self.request.client_request.reservation.has_request_ended

    def abandon(self) -> None:
        self.resolve(Abandoned("The client has disconnected."))

    def resolve(self, outcome: Outcome | ProxyError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


def cost_of(batch: Sequence[Waiting]) -> Cost:
    return Cost(sum([len(one.request.keys) for one in batch]), sum([one.request.tokens for one in batch]))
