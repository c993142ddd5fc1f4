"""What a request reserved is released, and freed in turns, after its last user."""

import asyncio
import weakref

from proxy.capacity import SharedCapacity
from proxy.reservation import MemoryReservation
from proxy.tenant import Tenant


class Item:
    """An object that can be referred to weakly."""


async def test_the_items_of_a_request_are_freed_after_its_last_user() -> None:
    reservation = MemoryReservation(SharedCapacity(1024, "bytes", unverified_limit=1024), Tenant(b"one"))
    fetch: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    items = [Item()]
    item = weakref.ref(items[0])
    reservation.keep(items)
    items.clear()
    reservation.lasts_until(fetch)
    reservation.release()
    await asyncio.sleep(0)
    assert item() is not None
    fetch.set_result(None)
    while item() is not None:
        await asyncio.sleep(0)


async def test_the_memory_is_given_back_after_the_last_user() -> None:
    capacity = SharedCapacity(1024, "bytes", unverified_limit=1024)
    reservation = MemoryReservation(capacity, Tenant(b"one"))
    reservation.take(100)
    fetch: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    reservation.lasts_until(fetch)
    reservation.release()
    assert capacity.used == 100
    fetch.set_result(None)
    await asyncio.sleep(0)
    assert capacity.used == 0
