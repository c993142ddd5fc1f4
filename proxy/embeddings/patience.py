"""How long a request may wait for an upstream's rate limit, and how urgent it is."""

import time
from collections.abc import Callable
from typing import NamedTuple

from proxy.fetch.request import ClientRequest
from proxy.protocol.directives import urgency_of, wait_s_of


class Patience(NamedTuple):
    """The operator's settings. A client may wait less, by ``Prefer: wait``, and may be more or less urgent."""

    rate_limit_wait_s: float
    interactive_items: int
    clock: Callable[[], float] = time.monotonic  # the event loop's

    def apply(self, client_request: ClientRequest) -> None:
        if not self.rate_limit_wait_s:
            return
        wait_s = wait_s_of(client_request.received)
        wait_s = self.rate_limit_wait_s if wait_s is None else min(wait_s, self.rate_limit_wait_s)
        client_request.began_s = self.clock()
        client_request.held_until_s = client_request.began_s + wait_s
        items = len(client_request.spec.keys)
        client_request.urgency = urgency_of(
            client_request.received, items=items, interactive_items=self.interactive_items
        )
