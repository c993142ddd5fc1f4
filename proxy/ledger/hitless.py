"""Notices clients that get no hits for a reason that can be named (pure)."""

from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from proxy.ledger.cause import EXPIRING_TOKEN, Cause

MANY_REQUESTS = 100
# If one program uses this many tokens without a hit between them, that is no coincidence.
MANY_TOKENS = 10
_MAX_CLIENTS = 1024
_MAX_CAUSES = 16


@dataclass(slots=True)
class _Streak:
    """The requests of one client since its last hit."""

    requests: int = 0
    causes: Counter[Cause] = field(default_factory=Counter)
    tokens: set[Hashable] = field(default_factory=set)


class Hitless:
    """Counts requests without a hit. After `MANY_REQUESTS` of one client, the count starts over."""

    def __init__(self) -> None:
        self.streaks: OrderedDict[Hashable, _Streak] = OrderedDict()

    def hit(self, client: Hashable) -> None:
        """Some item of a request was cached."""
        self.streaks.pop(client, None)

    def missed(self, client: Hashable, cause: Cause | None, *, requests: int = 1, weight: int = 1) -> Cause | None:
        """A request had no hit. After `MANY_REQUESTS`, returns the cause of at least half of them, if there is one.

        ``weight`` is the number of requests that the cause explains: some causes are known only after several requests.
        """
        streak = self._streak(client)
        streak.requests += requests
        if cause is not None and (cause in streak.causes or len(streak.causes) < _MAX_CAUSES):
            streak.causes[cause] += weight
        return self._ended(client, streak)

    def missed_with_token(self, program: Hashable, token: Hashable) -> Cause | None:
        """A request with a token that expires had no hit. After `MANY_REQUESTS` of this program, returns the cause if
        they had `MANY_TOKENS` different tokens."""
        streak = self._streak(program)
        streak.requests += 1
        if len(streak.tokens) < MANY_TOKENS:
            streak.tokens.add(token)
        if len(streak.tokens) == MANY_TOKENS:
            streak.causes[Cause(EXPIRING_TOKEN)] = streak.requests
        return self._ended(program, streak)

    def _streak(self, client: Hashable) -> _Streak:
        streak = self.streaks.get(client)
        if streak is None:
            streak = self.streaks[client] = _Streak()
        self.streaks.move_to_end(client)
        if len(self.streaks) > _MAX_CLIENTS:
            self.streaks.popitem(last=False)
        return streak

    def _ended(self, client: Hashable, streak: _Streak) -> Cause | None:
        if streak.requests < MANY_REQUESTS:
            return None
        del self.streaks[client]
        cause, count = next(iter(streak.causes.most_common(1)), (None, 0))
        return cause if 2 * count >= MANY_REQUESTS else None
