"""The log of replaced values: what can't be announced now is announced later, and what never can be is given up."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from proxy.cache.redis import change_log
from proxy.cache.redis.change_log import ChangeLog
from proxy.cache.redis.changes import Position, announcements, purge_announcements
from proxy.cache.store import Purge, PurgedModels
from proxy.errors import StoreError
from tests.support import proxy_log
from tests.support.dict_store import A, B, C, key_of

DOWN = RedisConnectionError("down")
FORBIDDEN = [
    NoPermissionError("no permissions to run the 'xadd' command"),
    ResponseError("unknown command 'XADD'"),
    ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
]
Commands = list[tuple[Any, ...]]


class Server:
    """Replies to each command as ``reply`` says, or fails; ``sent`` are the commands since the last look."""

    def __init__(self) -> None:
        self.reply: Callable[[tuple[Any, ...]], object] = lambda _: b"1-1"
        self.failure: Exception | None = None
        self._sent: Commands = []
        self.log = ChangeLog(self._run)

    async def _run(self, commands: Sequence[Any]) -> Sequence[object]:
        assert commands, "nothing is sent for nothing"
        self._sent += commands
        if self.failure is not None:
            raise self.failure
        return [self.reply(command) for command in commands]

    @property
    def sent(self) -> Commands:
        sent, self._sent = self._sent, []
        return sent


@pytest.fixture
def server() -> Server:
    return Server()


def of(*keys: bytes) -> Commands:
    """The commands that announce these."""
    return [command for _, command in announcements(keys)]


async def test_keys_are_announced_once(server: Server) -> None:
    await server.log.announce([A, B])
    assert server.sent == of(A, B)
    await server.log.announce([])
    assert server.sent == []
    await server.log.announce([C])
    assert server.sent == of(C)


async def test_what_a_failing_server_does_not_take_is_announced_with_the_next(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.reply = lambda _: DOWN
    await server.log.announce([A])
    server.reply = lambda _: b"1-1"
    await server.log.announce([B])
    assert server.sent == of(A) + of(A, B)
    await server.log.announce([])
    assert server.sent == []
    assert not proxy_log.messages(caplog)


async def test_of_several_commands_only_those_that_failed_are_sent_again(server: Server) -> None:
    keys = [key_of(number) for number in range(130)]
    first, second, third = of(*keys)
    server.reply = lambda command: DOWN if command == second else b"1-1"
    await server.log.announce(keys)
    server.reply = lambda _: b"1-1"
    await server.log.announce([])
    assert server.sent == [first, second, third, second]


async def test_a_call_that_is_cancelled_or_breaks_forgets_nothing(server: Server) -> None:
    server.failure = StoreError("timeout", "hangs")
    with pytest.raises(StoreError):
        await server.log.announce([A])
    server.failure = None
    await server.log.announce([A, B])
    assert server.sent == of(A) + of(A, B)


async def test_what_is_announced_meanwhile_is_not_lost(server: Server) -> None:
    async def fails_after_another(_: Sequence[object]) -> Sequence[object]:
        server.log._run = server._run
        server.reply = lambda _: DOWN
        await server.log.announce([B])
        raise StoreError("timeout", "hangs")

    server.log._run = fails_after_another
    with pytest.raises(StoreError):
        await server.log.announce([A])
    server.reply = lambda _: b"1-1"
    await server.log.announce([])
    assert server.sent == of(B) + of(B, A)


async def test_no_more_is_remembered_than_one_event_for_all_keys_says(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_log, "MAX_ANNOUNCED_KEYS", 3)
    server.reply = lambda _: DOWN
    for number in range(5):
        await server.log.announce([key_of(number)])
    assert list(server.log._unannounced) == [key_of(number) for number in range(4)]


@pytest.mark.parametrize("refusal", FORBIDDEN, ids=str)
async def test_a_command_that_the_server_will_never_take_is_not_sent_again(
    server: Server, refusal: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    server.reply = lambda _: refusal
    await server.log.announce([A])
    await server.log.announce([B])
    assert server.sent == of(A) + of(B)
    (warning,) = proxy_log.messages(caplog)
    assert warning == (
        f"Redis refuses its log of replaced entries ({refusal}): what one process refreshes (Cache-Control: no-cache),"
        " others keep serving from memory. The user needs +xadd +xrange ~embedding-changes"
    )


async def test_a_purge_is_announced_or_raises(server: Server) -> None:
    purge = Purge({A}, {PurgedModels("text-*")})
    await server.log.announce_purge(purge)
    assert server.sent == list(purge_announcements(purge))
    server.reply = lambda command: DOWN if b"text-*" in command else b"1-1"
    with pytest.raises(StoreError) as failed:
        await server.log.announce_purge(purge)
    assert failed.value.reason == "connection"


async def test_what_others_announced_is_read_from_where_the_last_read_ended(server: Server) -> None:
    server.reply = lambda _: [[b"1-1", [b"keys", A + B]]]
    assert set((await server.log.read()).keys) == {A, B}
    server.reply = lambda _: [[b"1-1", [b"keys", A + B]], [b"1-2", [b"keys", C]]]
    assert set((await server.log.read()).keys) == {C}
    position = Position()
    first = position.command
    position.advance([[b"1-1", [b"keys", A + B]]])
    assert server.sent == [first, position.command]


async def test_what_waits_is_announced_before_a_read(server: Server) -> None:
    server.reply = lambda _: DOWN
    await server.log.announce([A])
    server.reply = lambda command: [] if command[0] == "XRANGE" else b"1-1"
    await server.log.read()
    assert server.sent == [*of(A), *of(A), Position().command]


@pytest.mark.parametrize(("reply", "reason"), [(DOWN, "connection"), (ResponseError("ERR no"), "refused")])
async def test_a_read_that_fails_raises(
    server: Server, reply: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.reply = lambda _: reply
    with pytest.raises(StoreError) as failed:
        await server.log.read()
    assert failed.value.reason == reason
    assert not proxy_log.messages(caplog)


async def test_a_read_that_is_forbidden_says_so_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.reply = lambda _: FORBIDDEN[0]
    for _ in range(2):
        with pytest.raises(StoreError):
            await server.log.read()
    assert len(proxy_log.messages(caplog)) == 1


async def test_a_reply_that_is_no_log_is_corrupt(server: Server) -> None:
    server.reply = lambda _: b"OK"
    with pytest.raises(StoreError) as failed:
        await server.log.read()
    assert failed.value.reason == "corrupt"
