"""The log of replaced and removed values in a Redis, a stream: its events, and where a reader is (pure).

An event has the concatenated keys whose values are replaced or removed; no key means all keys. A purge has other
fields, which versions that do not know them take to mean all keys. The stream is trimmed to its latest events, and a
server that lost its data has lost the stream too. A reader notices both: it always reads from the latest event that it
knows, which must still be there. If it is not, the reader starts again at the beginning of the log; to discard a key
twice does no harm.
"""

from collections.abc import Iterator, Sequence

from proxy.cache import purge_conditions
from proxy.cache.redis.names import CHANGES_NAME
from proxy.cache.store import Changes, Purge, PurgedModels
from proxy.protocol.keys import KEY_BYTES

# At most 5 MB: 2 KiB an event. Every process reads all of it once, when it starts.
MAX_EVENTS = 2_048
_KEYS_PER_EVENT = 64
_EVENTS_PER_READ = 256
_FIELD, _PURGED_KEYS, _PURGED_MODELS, _PURGED_SOME = b"keys", b"purged-keys", b"purged-models", b"purged-some"
# Above this, an event for all keys announces them.
MAX_ANNOUNCED_KEYS = 65_536

_Command = tuple[str | bytes | int, ...]
_Event = tuple[bytes, bytes, bytes]  # id, field, its value


def announcements(keys: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], _Command]]:
    """The commands that announce ``keys``, each with those that it announces."""
    if len(keys) > MAX_ANNOUNCED_KEYS:
        yield keys, _append(b"")
        return
    for start in range(0, len(keys), _KEYS_PER_EVENT):
        some = keys[start : start + _KEYS_PER_EVENT]
        yield some, _append(b"".join(some))


def purge_announcements(purge: Purge) -> Iterator[_Command]:
    """The commands that announce ``purge``."""
    keys = list(purge.keys)
    for start in range(0, len(keys), _KEYS_PER_EVENT):
        yield _append(b"".join(keys[start : start + _KEYS_PER_EVENT]), _PURGED_KEYS)
    for models in purge.models:
        if models.has_conditions:
            yield _append(purge_conditions.encode(models), _PURGED_SOME)
        else:
            yield _append(models.pattern.encode(), _PURGED_MODELS)


def _append(value: bytes, field: bytes = _FIELD) -> _Command:
    return ("XADD", CHANGES_NAME, "MAXLEN", "~", MAX_EVENTS, "*", field, value)


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
        # Trimming leaves at least this many events, so a log with fewer has never been trimmed.
        is_complete = self._read_again < MAX_EVENTS
        if not is_complete or not has_more:
            self._read_again = 0
        keys, purged = _keys(events, _FIELD), _keys(events, _PURGED_KEYS)
        found = [_models(field, value) for _, field, value in events]
        models = {its for its in found if its is not None}
        known = len(found) - found.count(None) + sum(_is_keys(field, value) for _, field, value in events)
        return Changes(
            keys,
            is_complete=is_complete and known == len(events),
            has_more=has_more,
            purge=Purge(purged, models),
        )


def _keys(events: list[_Event], field: bytes) -> set[bytes]:
    found = [value for _, its_field, value in events if its_field == field and _is_keys(its_field, value)]
    return {value[at : at + KEY_BYTES] for value in found for at in range(0, len(value), KEY_BYTES)}


def _models(field: bytes, value: bytes) -> PurgedModels | None:
    if field == _PURGED_SOME:
        return purge_conditions.decode(value)
    return PurgedModels(value.decode(errors="replace")) if field == _PURGED_MODELS else None


def _is_keys(field: bytes, value: bytes) -> bool:
    return field in (_FIELD, _PURGED_KEYS) and bool(value) and not len(value) % KEY_BYTES


def _events(reply: object) -> list[_Event]:
    match reply:
        case list():
            return [_event(event) for event in reply]
    raise ValueError("XRANGE has no list of events")


def _event(event: object) -> _Event:
    match event:
        case [bytes(id_), [bytes(field), bytes(value)]]:
            return id_, field, value
        case [bytes(id_), *_]:  # of another version: it could mean any key
            return id_, b"", b""
    raise ValueError("XRANGE has something else than events")
