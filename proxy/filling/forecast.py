"""What warming a cache would cost. Asks the proxy which texts it has, and sends nothing to the upstream."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from proxy.filling.batches import Batch
from proxy.filling.replies import Later, NotTold, Reply, Stopped, read_missing
from proxy.filling.results import Forecast
from proxy.protocol import rate_limits
from proxy.protocol.tokens import typical_tokens

_MAX_ATTEMPTS, _PAUSE_S = 5, 1.0
# Each worker validates credentials for itself, and any of them may get a new connection.
_MAX_UNTOLD = 24
_THROTTLED = 503


class Asks(Protocol):
    async def ask(self, texts: list[str]) -> Reply | Later: ...


async def forecast(
    sender: Asks,
    batches: Iterable[Batch],
    *,
    advance: Callable[[int], None],
    on_wait: Callable[[str], object] = lambda _: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    now: Callable[[], float] = time.time,
) -> Forecast:
    """Calls ``on_wait`` with the reason why it has to wait.

    Raises `Stopped` if the proxy does not say what is cached, or if the server is not a proxy.
    """
    found = Forecast()
    is_proxy = False
    for batch in batches:
        # A server that is not a proxy would embed the texts, so the first request has only one.
        for part in [batch] if is_proxy else [Batch(batch.texts[:1]), Batch(batch.texts[1:])]:
            if not part.texts:
                continue
            missing = await _missing(sender, part, on_wait, sleep, now)
            is_proxy = True
            found.cached += len(part.texts) - len(missing)
            found.missing += len(missing)
            found.missing_tokens += sum(typical_tokens(part.texts[position].text) for position in missing)
            advance(len(part.texts))
    return found


async def _missing(
    sender: Asks,
    batch: Batch,
    on_wait: Callable[[str], object],
    sleep: Callable[[float], Awaitable[None]],
    now: Callable[[], float],
) -> list[int]:
    untold = failed = 0
    while True:
        reply = await sender.ask([text.text for text in batch.texts])
        if isinstance(reply, Reply) and reply.status != _THROTTLED:
            try:
                return read_missing(reply, len(batch.texts))
            except NotTold:
                untold += 1
                if untold >= _MAX_UNTOLD:
                    raise
                continue
        failed += 1
        pause_s = None
        if isinstance(reply, Later):
            reason = reply.reason
        else:
            reason = f"the proxy is overloaded: {reply.status}"
            pause_s = rate_limits.of_headers(reply.headers, now_s=now()).retry_after_s
        if failed >= _MAX_ATTEMPTS:
            raise Stopped(reason)
        on_wait(reason)
        await sleep(_PAUSE_S if pause_s is None else pause_s)
