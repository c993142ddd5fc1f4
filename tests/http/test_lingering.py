"""From the last response until the connection is closed: what the client still sends is discarded, within bounds."""

import asyncio
from typing import Any

from proxy.http.lingering import Lingering, shut_down

MIB = 1024 * 1024


async def test_a_client_may_send_a_mebibyte_and_no_more() -> None:
    lingering = Lingering(asyncio.get_running_loop())
    assert lingering.discard(bytes(MIB - 1))
    assert lingering.discard(b"x")
    assert not lingering.discard(b"x")
    assert lingering.discarded_bytes == MIB + 1


async def test_its_end_may_come_twice() -> None:
    lingering = Lingering(asyncio.get_running_loop())
    assert not lingering.over.done()
    lingering.end()
    lingering.end()
    await lingering.over


class Transport:
    def __init__(self, *, can_write_eof: bool = True, error: OSError | None = None) -> None:
        self._can_write_eof, self._error = can_write_eof, error
        self.ended = 0

    def can_write_eof(self) -> bool:
        return self._can_write_eof

    def write_eof(self) -> None:
        self.ended += 1
        if self._error is not None:
            raise self._error


def test_only_the_writing_side_is_shut_down_if_the_transport_can() -> None:
    tcp: Any = Transport()
    shut_down(tcp)
    tls: Any = Transport(can_write_eof=False)
    shut_down(tls)
    assert (tcp.ended, tls.ended) == (1, 0)


def test_a_connection_that_the_peer_has_reset_is_no_error() -> None:
    reset: Any = Transport(error=ConnectionResetError())
    shut_down(reset)
    assert reset.ended == 1
