"""Long loops over keys, in turns with everything else that the event loop does."""

import asyncio
from collections.abc import AsyncIterator, Sequence

KEYS_A_TURN = 64  # less than a millisecond of making entries


async def in_turns(keys: Sequence[bytes]) -> AsyncIterator[Sequence[bytes]]:
    """``keys`` in chunks. Thousands of entries may be made for one request while others wait for a hit, so the event
    loop runs everything else between two chunks."""
    for start in range(0, len(keys), KEYS_A_TURN):
        if start:
            await asyncio.sleep(0)
        yield keys[start : start + KEYS_A_TURN]
