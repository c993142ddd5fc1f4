from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, TCPConnector


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    """Each request has its own connection, so any worker can get it."""
    async with ClientSession(connector=TCPConnector(force_close=True)) as session:
        yield session
