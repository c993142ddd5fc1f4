"""A limit on further attempts after failed calls (pure)."""

# At most so many attempts after failures, to which each request adds a tenth of one. Extra calls are attempts beyond
# what merging saved.
_ATTEMPTS, _ATTEMPTS_PER_REQUEST = 16.0, 0.1
_EXTRA, _EXTRA_PER_REQUEST = 2.0, 0.05


class RetryBudget:
    """How many more calls may be made after some have failed, while none succeeds.

    A call that fails with a 5xx or a broken connection may have failed because of one of its items, or because the
    upstream is down. Smaller calls find out; in an outage they must not multiply the load. Attempts after a merged call
    are free up to the calls that merging saved. All others are extra calls: from forty requests on, an upstream that
    fails every call receives at most a tenth more calls than there are requests. A success restores both.
    """

    def __init__(self) -> None:
        self._attempts, self._extra = _ATTEMPTS, _EXTRA

    def __repr__(self) -> str:
        return f"<RetryBudget {self._attempts:.1f} left, {self._extra:.2f} extra>"

    def calls(self, saved: int = 0) -> int:
        """How many further calls may be made now, if merging ``saved`` so many."""
        return int(min(self._attempts, saved + self._extra))

    def requested(self) -> None:
        self._attempts = min(_ATTEMPTS, self._attempts + _ATTEMPTS_PER_REQUEST)
        self._extra = min(_EXTRA, self._extra + _EXTRA_PER_REQUEST)

    def succeeded(self) -> None:
        self._attempts, self._extra = _ATTEMPTS, _EXTRA

    def spend(self, calls: int, saved: int = 0) -> None:
        """So many calls are made. They count as failed until one succeeds."""
        self._attempts = max(0.0, self._attempts - calls)
        self._extra = max(0.0, self._extra - max(0, calls - saved))
