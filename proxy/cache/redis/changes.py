"""The log of replaced values in a Redis, a stream: its events, and where a reader is (pure).

An event has the keys whose values are replaced, one after the other, or none for all keys. The stream is trimmed to its
latest events, and a server that lost its data has lost the stream too. A reader notices either by its cursor: it always
reads from the latest event that it knows, which must still be there. Otherwise it reads the log again from its
beginning, since keys may be discarded any number of times.
"""

from collections.abc import Iterator, Sequence

from proxy.cache.redis.names import CHANGES_NAME
from proxy.cache.store import Changes
from proxy.protocol.keys import KEY_BYTES

# At most 5 MB: 2 KiB an event. Every process reads all of it once, when it starts.
MAX_EVENTS = 2_048
_KEYS_PER_EVENT = 64
_EVENTS_PER_READ = 256
_FIELD = b"keys"
# Above this, an event for all keys announces them.
MAX_ANNOUNCED_KEYS = 65_536

_Command = tuple[str | bytes | int, ...]
_Event = tuple[bytes, bytes]  # id, keys


def announcements(keys: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], _Command]]:
    """The commands that announce ``keys``, each with those that it announces."""
    if len(keys) > MAX_ANNOUNCED_KEYS:
        yield keys, _append(b"")
        return
    for start in range(0, len(keys), _KEYS_PER_EVENT):
        some = keys[start : start + _KEYS_PER_EVENT]
        yield some, _append(b"".join(some))


def _append(keys: bytes) -> _Command:
    return ("XADD", CHANGES_NAME, "MAXLEN", "~", MAX_EVENTS, "*", _FIELD, keys)


class Position:
    """Where a reader is in the log."""

    def __init__(self) -> None:
        self._cursor: bytes | None = None  # the id of the latest event that was read
        self._read_again = 0  # events since the beginning of the log, until its end is reached

    @property
    def command(self) -> _Command:
        """Reads from here on."""
        return ("XRANGE", CHANGES_NAME, self._cursor or "-", "+", "COUNT", _EVENTS_PER_READ)

    def advance(self, reply: object) -> Changes:
        """What the reply to `command` says. Raises `ValueError` if it is not one."""
        events = _events(reply)
        has_more = len(events) == _EVENTS_PER_READ
        if self._cursor is not None:
            if not events or events[0][0] != self._cursor:
                self._cursor = None
                return Changes(has_more=True)
            events = events[1:]
            self._read_again += len(events) if self._read_again else 0
        else:
            self._read_again = len(events)
        if events:
            self._cursor = events[-1][0]
        # Trimming leaves at least as many events as this, so a shorter log is all that there ever was.
        is_complete = self._read_again < MAX_EVENTS
        if not is_complete or not has_more:
            self._read_again = 0
        known = [keys for _, keys in events if keys and not len(keys) % KEY_BYTES]
        return Changes(
            {keys[at : at + KEY_BYTES] for keys in known for at in range(0, len(keys), KEY_BYTES)},
            is_complete=is_complete and len(known) == len(events),
            has_more=has_more,
        )


def _events(reply: object) -> list[_Event]:
    match reply:
        case list():
            return [_event(event) for event in reply]
    raise ValueError("XRANGE has no list of events")


def _event(event: object) -> _Event:
    match event:
        case [bytes(id_), [bytes(field), bytes(keys)]]:
            return id_, keys if field == _FIELD else b""
        case [bytes(id_), *_]:  # of another version: it could mean any key
            return id_, b""
    raise ValueError("XRANGE has something else than events")
