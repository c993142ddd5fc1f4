"""Sends a corpus through a proxy, so that all of it is cached: in bulk, a few requests at a time, after everybody else.

It needs no record of its progress. Whatever was sent before is a hit, so a corpus that is sent again continues where
the first attempt ended.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Protocol

from proxy.filling.batches import Batch
from proxy.filling.replies import Embedded, Later, Refused, Reply, Stopped, read_embedded
from proxy.filling.results import RefusedText, Warmed

_MAX_ATTEMPTS = 6  # for a batch; the pauses between them double
_MAX_LIMITED = 60  # likewise, if the upstream's rate limit is the cause
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_MAX_SHOWN = 20  # refused texts that are kept with their reason
# If this many texts are refused before any is accepted, the requests are wrong and not the texts.
_MAX_REFUSED_AT_FIRST = 3


class Embeds(Protocol):
    async def embed(self, texts: list[str]) -> Reply | Later: ...


class Warmer:
    """Keeps ``warmed`` up to date, and calls ``advance`` with how many more texts are done, and ``on_wait`` with the
    reason why texts have to wait.

    ``sleep`` and ``now``, in Unix time, are a clock.
    """

    def __init__(
        self,
        sender: Embeds,
        warmed: Warmed,
        *,
        concurrency: int,
        advance: Callable[[int], None],
        on_wait: Callable[[str], object] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._sender = sender
        self._concurrency = concurrency
        self._advance, self._on_wait = advance, on_wait
        self._sleep = sleep
        self._now = now
        self._resume_at_s = 0.0
        self.warmed = warmed

    async def run(self, batches: Iterable[Batch]) -> None:
        """Send ``batches``. Raises `ConfigError` for lines that can't be read."""
        shared = iter(batches)
        with suppress(Stopped):
            for first in shared:
                # Sent alone, to find a fault that all batches share.
                await self._send(first)
                break
            await self._send_all(shared)

    async def _send_all(self, batches: Iterator[Batch]) -> None:
        workers = [asyncio.create_task(self._work(batches)) for _ in range(self._concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            await self._send(batch)

    async def _send(self, batch: Batch) -> None:
        """Raises `Stopped`. Its message is then in ``warmed.stopped``."""
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            try:
                embedded = await self._until_embedded(part)
            except Refused as refused:
                if len(part.texts) > 1:
                    waiting += reversed(part.halves())
                else:
                    self._refuse(part, str(refused))
            except Stopped as stopped:
                self.warmed.stopped = self.warmed.stopped or str(stopped)
                raise
            else:
                self._count(embedded)
                self._advance(len(part.texts))

    async def _until_embedded(self, batch: Batch) -> Embedded:
        """Raises `Refused` and `Stopped`."""
        texts = [text.text for text in batch.texts]
        attempts = limited = 0
        while True:
            await self._wait()
            reply = await self._sender.embed(texts)
            self.warmed.requests += 1
            read = reply if isinstance(reply, Later) else read_embedded(reply, len(texts), now_s=self._now())
            if isinstance(read, Embedded):
                return read
            attempts, limited = attempts + (not read.is_limit), limited + read.is_limit
            if attempts >= _MAX_ATTEMPTS or limited >= _MAX_LIMITED:
                raise Stopped(read.reason)
            self._on_wait(read.reason)
            await self._pause(read, attempts + limited)

    async def _wait(self) -> None:
        """Until no rate limit makes all requests wait."""
        while (pause_s := self._resume_at_s - self._now()) > 0:
            await self._sleep(pause_s)

    async def _pause(self, later: Later, attempts: int) -> None:
        pause_s = later.retry_after_s
        if pause_s is None:
            pause_s = min(_FIRST_PAUSE_S * 2 ** min(attempts - 1, 10), _LONGEST_PAUSE_S)
        if later.is_limit:
            self._resume_at_s = max(self._resume_at_s, self._now() + pause_s)
        else:
            await self._sleep(pause_s)

    def _count(self, embedded: Embedded) -> None:
        self.warmed.hits += embedded.hits
        self.warmed.misses += embedded.misses
        self.warmed.billed_tokens += embedded.tokens

    def _refuse(self, batch: Batch, reason: str) -> None:
        warmed = self.warmed
        warmed.refused += 1
        self._advance(1)
        if len(warmed.refusals) < _MAX_SHOWN:
            warmed.refusals.append(RefusedText(batch.texts[0].line, reason))
        if not warmed.sent and warmed.refused >= _MAX_REFUSED_AT_FIRST:
            warmed.stopped = f"the first {warmed.refused} texts were refused: {reason}"
            raise Stopped(warmed.stopped)
