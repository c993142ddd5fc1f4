import asyncio
import logging

import pytest

from proxy.periodic import every


async def test_work_is_repeated_until_the_block_ends() -> None:
    late: list[float] = []
    twice = asyncio.Event()

    def work(late_s: float) -> None:
        late.append(late_s)
        if len(late) == 2:
            twice.set()

    async with every(0.0, work):
        await twice.wait()
    done = len(late)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(late) == done
    assert all(late_s >= 0 for late_s in late)


async def test_work_that_fails_is_logged_and_repeated(caplog: pytest.LogCaptureFixture) -> None:
    again = asyncio.Event()
    calls = 0

    def work(_: float) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("of the first call")
        again.set()

    with caplog.at_level(logging.ERROR):
        async with every(0.0, work):
            await again.wait()
    assert "of the first call" in caplog.text
