"""A request that waits to be sent."""

import asyncio
from collections.abc import Sequence

from msgspec import Struct

from proxy.errors import Abandoned, ProxyError
from proxy.fetch.client_wait import ClientWait
from proxy.fetch.outcomes import CallFailure, Outcome
from proxy.fetch.request import FetchRequest
from proxy.pacing.quotas import Cost
from proxy.pacing.wait_queue import Ticket
from proxy.protocol.directives import BULK_URGENCY


class Waiting(Struct, eq=False):
    """A request from when it is submitted until its ``outcome`` is known. It may be sent several times, if the upstream
    refuses it for its limits."""

    request: FetchRequest
    wait: ClientWait  # of the client that began the fetch
    outcome: "asyncio.Future[Outcome | ProxyError]"
    since_s: float  # by `time.perf_counter`
    call: "asyncio.Task[None] | None" = None  # that it is in; None: it waits
    refusal: CallFailure | None = None  # the last one
    refusals_together: int = 0  # of calls that it had in common with others
    refusals_alone: int = 0
    refused_alone_at_s: float = 0.0  # event loop time
    ticket: "Ticket[Waiting] | None" = None  # its place among those that a rate limit holds
    held_since_s: float = 0.0  # event loop time

    @property
    def is_bulk(self) -> bool:
        return self.request.client_request.limit_wait.urgency >= BULK_URGENCY

    @property
    def tenant_name(self) -> bytes:
        """Whose a call is that begins with it."""
        return self.request.client_request.tenant.name

    @property
    def is_dropped(self) -> bool:
        """Whether it was not sent because no client waited for it when its turn came."""
        return self.outcome.done() and isinstance(self.outcome.result(), Abandoned)

    def resolve(self, outcome: Outcome | ProxyError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


Ended = tuple[Waiting, Outcome | ProxyError]  # with the outcome that it is to be resolved with


def cost_of(batch: Sequence[Waiting]) -> Cost:
    if len(batch) == 1:  # the usual case
        return Cost(len(batch[0].request.keys), batch[0].request.tokens, 1, batch[0].is_bulk)
    items, tokens = sum([len(one.request.keys) for one in batch]), sum([one.request.tokens for one in batch])
    return Cost(items, tokens, len(batch), all(one.is_bulk for one in batch))
