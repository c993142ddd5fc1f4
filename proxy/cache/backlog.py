"""Back-pressure: how many bytes of writes wait for the store."""

import asyncio


class Backlog:
    """The bytes of unfinished writes.

    Above ``max_bytes`` new upstream calls wait, because their responses would have to be kept in memory too. Calls in
    progress are not stopped, so the responses of at most ``--upstream-concurrency`` calls exceed the bound. A store
    that finishes no write for ``stall_s`` is considered hung, and calls no longer wait for it.
    """

    def __init__(self, *, max_bytes: int, stall_s: float) -> None:
        self._max_bytes = max_bytes
        self._stall_s = stall_s
        self._is_stalled = False
        self._progress = asyncio.Event()  # set at the end of the next write, and then replaced
        self.pending_bytes = 0

    def __repr__(self) -> str:
        return f"<Backlog {self.pending_bytes} of {self._max_bytes} bytes{', stalled' if self._is_stalled else ''}>"

    @property
    def refuses(self) -> bool:
        """Whether no further write may wait: the backlog is full, and the store seems to hang."""
        return self._is_stalled and self._is_full

    @property
    def _is_full(self) -> bool:
        return self.pending_bytes > self._max_bytes

    def began(self, size_bytes: int) -> None:
        self.pending_bytes += size_bytes

    def ended(self, size_bytes: int) -> None:
        """A write has succeeded or failed."""
        self.pending_bytes -= size_bytes
        self._is_stalled = False
        self._progress.set()
        self._progress = asyncio.Event()

    async def room(self) -> None:
        """Wait until there is room for the responses of one more upstream call, or the store seems to hang."""
        while self._is_full and not self._is_stalled:
            progress = self._progress
            try:
                async with asyncio.timeout(self._stall_s):
                    await progress.wait()
            except TimeoutError:
                self._is_stalled = progress is self._progress  # a write may have ended at the same moment
