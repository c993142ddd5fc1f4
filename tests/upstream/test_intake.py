"""Large responses of upstreams are read by and by, and small ones at once."""

import asyncio

from proxy.upstream.intake import Incoming, Intake

MIB = 1024 * 1024


async def read(intake: Intake, sizes: list[int], read_mib: list[int], end: asyncio.Event) -> None:
    with intake.response() as incoming:
        for size in sizes:
            await incoming.take(size)
            read_mib[0] += size // MIB
        await end.wait()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_large_response_waits_for_those_that_came_before() -> None:
    intake = Intake(4 * MIB)
    ends = [asyncio.Event() for _ in range(3)]
    progress: list[list[int]] = [[0], [0], [0]]
    readers = [
        asyncio.create_task(read(intake, [MIB] * size, progress[n], ends[n])) for n, size in enumerate((20, 8, 8))
    ]
    await turns()
    assert progress[0] == [20]  # the oldest is read, however large
    assert intake.used_bytes <= 19 * MIB
    # What is small waits for nobody.
    small: list[int] = [0]
    ends.append(asyncio.Event())
    readers.append(asyncio.create_task(read(intake, [MIB], small, ends[-1])))
    await turns()
    assert small == [1]
    ends[0].set()
    await turns()
    assert progress[1] == [8]
    assert progress[2][0] < 8
    ends[1].set()
    await turns()
    assert progress[2] == [8]
    for end in ends:
        end.set()
    await asyncio.gather(*readers)
    assert intake.used_bytes == 0


async def test_one_that_is_cancelled_lets_the_others_go_on() -> None:
    intake = Intake(MIB)
    never, end = asyncio.Event(), asyncio.Event()
    end.set()
    first = asyncio.create_task(read(intake, [2 * MIB, 2 * MIB], [0], never))
    await turns()
    progress = [0]
    second = asyncio.create_task(read(intake, [2 * MIB] * 2, progress, end))
    third = asyncio.create_task(read(intake, [2 * MIB] * 2, [0], end))
    await turns()
    assert progress == [0]
    third.cancel()
    first.cancel()
    await second
    await asyncio.gather(first, third, return_exceptions=True)
    assert progress == [4]
    assert intake.used_bytes == 0


async def test_what_has_not_come_counts_for_nothing() -> None:
    intake = Intake(MIB)
    with intake.response() as incoming:
        assert isinstance(incoming, Incoming)
        await incoming.take(MIB)
    assert intake.used_bytes == 0
