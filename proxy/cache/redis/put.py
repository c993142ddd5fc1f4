"""One `put_many`: the commands that store values, and what their replies say."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from proxy.cache.redis.connection import Command
from proxy.cache.redis.names import record_names
from proxy.cache.store import TTL
from proxy.turns import in_turns

_KEYS_A_TURN = 256  # whose commands are made in a quarter of a millisecond


class Put:
    def __init__(
        self,
        run: Callable[[Mapping[str, Command]], Awaitable[dict[str, object]]],
        get: Callable[[Sequence[bytes]], Awaitable[dict[bytes, object]]],
        ttl_s: TTL,
    ) -> None:
        """``run`` runs commands and returns their results by name, in their order; ``get`` reads the values of keys."""
        self._run = run
        self._get = get
        self._ttl_s = ttl_s
        self.accepted: set[bytes] = set()  # keys whose values were stored
        self.existing: dict[bytes, bytes] = {}  # values that were there before, and still are
        self.results: list[object] = []  # of all commands

    async def set(self, values: Mapping[bytes, bytes]) -> None:
        """Store ``values`` unconditionally."""
        await self._set(values, ())

    async def set_free(self, values: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Store ``values`` whose keys are free. Returns the values whose keys are taken but have no readable value."""
        taken = await self._set(values, ("NX",))
        read = await self._read(taken)
        self.existing |= {key: value for key, value in read.items() if value is not None}
        return {key: values[key] for key, value in read.items() if value is None}

    async def replace(self, values: Mapping[bytes, bytes], invalid: Mapping[bytes, bytes]) -> Collection[bytes]:
        """Store ``values`` whose keys have the values in ``invalid``. Returns these keys.

        Another replica may do the same between the two commands. Only a script could prevent that.
        """
        read = await self._read(list(invalid))
        replaced = {key: values[key] for key, value in read.items() if value == invalid[key]}
        await self._set(replaced, ())
        return replaced.keys()

    async def _set(self, values: Mapping[bytes, bytes], options: tuple[str, ...]) -> list[bytes]:
        """Returns the keys that are taken."""
        if not values:
            return []
        commands: dict[str, Command] = {}
        async for keys in in_turns(list(values), size=_KEYS_A_TURN):
            named = zip(keys, record_names(keys), strict=True)
            commands |= {name: ("SET", name, values[key], *self._expiry(key), *options) for key, name in named}
        results = await self._run(commands)
        self.results += results.values()
        replies = list(zip(values, results.values(), strict=True))
        taken: list[bytes] = []
        async for some in in_turns(replies, size=_KEYS_A_TURN):
            self.accepted |= {key for key, reply in some if reply == b"OK"}
            taken += [key for key, reply in some if reply is None]
        return taken

    def _expiry(self, key: bytes) -> tuple[str | int, ...]:
        ttl_s = self._ttl_s.get(key) if isinstance(self._ttl_s, Mapping) else self._ttl_s
        return () if ttl_s is None else ("PX", max(1, int(ttl_s * 1000)))

    async def _read(self, keys: list[bytes]) -> dict[bytes, bytes | None]:
        """The values of ``keys``, None where there is none. Keys that could not be read are left out."""
        if not keys:
            return {}
        results = await self._get(keys)
        self.results += results.values()
        return {key: value for key, value in results.items() if value is None or isinstance(value, bytes)}
