"""Until requests are where a test wants them."""

import asyncio

from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream


async def settle_down(client: Client, flights: int) -> None:
    """Until so many keys are being fetched and everybody else waits."""
    while len(client.proxy.fetcher._flights) < flights:
        await asyncio.sleep(0)


async def waiting(client: Client, requests: int) -> None:
    """Until so many requests are in the proxy's hands."""
    in_flight = client.proxy.metrics.requests_in_flight
    while next(iter(in_flight.collect())).samples[0].value < requests:
        await asyncio.sleep(0)


async def queued(client: Client, items: int) -> None:
    """Until so many items are queued for the upstream: unlike `waiting`, until the requests' bodies have been read."""
    while next(iter(client.proxy.metrics.queued_items.collect())).samples[0].value < items:
        await asyncio.sleep(0)


async def vouched_for(replicas: list[Client], upstream: ScriptedUpstream) -> list[Client]:
    """Replicas that know of the credential; one that doesn't asks the upstream before it serves what others fetched."""
    for number, client in enumerate(replicas):
        await client.embed(f"who is this? {number}")
    upstream.calls.clear()
    return replicas
