"""Back-pressure on large responses; small ones never wait."""

import asyncio

from proxy.upstream.flow_control import FlowControl, ResponseFlow

MIB = 1024 * 1024


async def read(control: FlowControl, sizes: list[int], read_mib: list[int], end: asyncio.Event) -> None:
    with control.response() as flow:
        for size in sizes:
            await flow.received(size)
            read_mib[0] += size // MIB
        await end.wait()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_large_response_waits_for_older_ones() -> None:
    control = FlowControl(4 * MIB)
    ends = [asyncio.Event() for _ in range(3)]
    progress: list[list[int]] = [[0], [0], [0]]
    readers = [
        asyncio.create_task(read(control, [MIB] * size, progress[n], ends[n])) for n, size in enumerate((20, 8, 8))
    ]
    await turns()
    assert progress[0] == [20]  # the oldest is read, however large
    assert control.used_bytes <= 19 * MIB
    # A small response never waits.
    small: list[int] = [0]
    ends.append(asyncio.Event())
    readers.append(asyncio.create_task(read(control, [MIB], small, ends[-1])))
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
    assert control.used_bytes == 0


async def test_cancelling_a_read_lets_waiting_reads_continue() -> None:
    control = FlowControl(MIB)
    never, end = asyncio.Event(), asyncio.Event()
    end.set()
    first = asyncio.create_task(read(control, [2 * MIB, 2 * MIB], [0], never))
    await turns()
    progress = [0]
    second = asyncio.create_task(read(control, [2 * MIB] * 2, progress, end))
    third = asyncio.create_task(read(control, [2 * MIB] * 2, [0], end))
    await turns()
    assert progress == [0]
    third.cancel()
    first.cancel()
    await second
    await asyncio.gather(first, third, return_exceptions=True)
    assert progress == [4]
    assert control.used_bytes == 0


async def test_small_response_is_not_counted() -> None:
    control = FlowControl(MIB)
    with control.response() as flow:
        assert isinstance(flow, ResponseFlow)
        await flow.received(MIB)
    assert control.used_bytes == 0
