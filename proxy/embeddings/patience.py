"""How long a request may wait for an upstream's rate limit, and how urgent it is."""

import time
from collections.abc import Callable
from typing import NamedTuple

from proxy.fetch.limit_wait import LimitWait
from proxy.protocol.directives import urgency_of, wait_s_of
from proxy.protocol.headers import Headers


class Patience(NamedTuple):
    """The operator's settings. A client may wait less, by ``Prefer: wait``, and may be more or less urgent."""

    rate_limit_wait_s: float
    interactive_items: int
    clock: Callable[[], float] = time.monotonic  # the event loop's

    def of(self, received: Headers, items: int) -> LimitWait:
        """The wait of a request of so many ``items`` with these header fields, which begins now."""
        if not self.rate_limit_wait_s:
            return LimitWait()
        wait_s = wait_s_of(received)
        wait_s = self.rate_limit_wait_s if wait_s is None else min(wait_s, self.rate_limit_wait_s)
        began_s = self.clock()
        urgency = urgency_of(received, items=items, interactive_items=self.interactive_items)
        return LimitWait(urgency, began_s, deadline_s=began_s + wait_s)
