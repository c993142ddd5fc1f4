"""Whether a proxy is draining, and by when its parts must close."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

_log = logging.getLogger(__name__)

# Each part gets this much even after the deadline.
_MIN_CLOSE_S = 0.5


class Lifecycle:
    """Shared by all parts that behave differently while the proxy drains."""

    def __init__(self) -> None:
        self.is_draining = False
        self._deadline_s = 0.0  # by `time.monotonic`

    def drain(self, timeout_s: float) -> None:
        """Start to drain: the last part must have closed in ``timeout_s``."""
        self.is_draining = True
        self._deadline_s = time.monotonic() + timeout_s

    def close_at_exit(self, stack: AsyncExitStack, part: str, close: Callable[[], Awaitable[None]]) -> None:
        """When ``stack`` is closed, wait for ``close`` until the deadline. ``part`` names it in the log."""
        stack.push_async_callback(self._close, part, close)

    async def _close(self, part: str, close: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(max(_MIN_CLOSE_S, self._deadline_s - time.monotonic())):
                await close()
        except TimeoutError:
            _log.warning("stopping: %s did not end in time", part)
