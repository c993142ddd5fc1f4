"""The store that a command works on: the options that name it, and how it is opened."""

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import click

from proxy.app.storage import open_store
from proxy.cache.store import NoStore, Store
from proxy.cli.options import environment
from proxy.cli.options.config_flag import READS_CONFIG, VARIABLES
from proxy.cli.options.table import BY_KEY, CONFIG
from proxy.config.secrets import read_mac_key
from proxy.config.settings import StoreSetting
from proxy.errors import ConfigError
from proxy.protocol.records import RecordKey

_KEYS = ("store", "store_limit", "ttl", "record_key_env")
# A request of the proxy can't wait as long for Redis. A command can, and a server under load may need it.
_REDIS_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """What flags, environment and file say of the store, as they would to `serve`."""

    setting: StoreSetting
    limit_bytes: int
    ttl_s: float | None
    record_key: RecordKey | None

    @classmethod
    def of(cls, ctx: click.Context) -> Self:
        """Raises `ConfigError` and `click.UsageError`."""
        environment.forbid_unknown_variables(VARIABLES)
        name = ctx.params["record_key_env"]
        return cls(
            setting=ctx.params["store"],
            limit_bytes=ctx.params["store_limit"],
            ttl_s=ctx.params["ttl"],
            record_key=None if name is None else RecordKey(read_mac_key(name, os.environ, "--record-key-env")),
        )

    @asynccontextmanager
    async def opened(
        self, *, creates: bool = False, may_be_absent: bool = False, setting: StoreSetting | None = None
    ) -> AsyncIterator[Store]:
        """The store, or that of ``setting``, until the block ends.

        A SQLite file that does not exist yet is created if the command ``creates`` it, and is an empty store if it
        ``may_be_absent``. Raises `ConfigError` otherwise, and for a store that keeps nothing.
        """
        named = self.setting if setting is None else setting
        if named.path is None and named.url is None:
            raise ConfigError(f"{named} is only the memory of a running proxy; accepted: sqlite:///… or redis://…")
        if named.path is not None and not creates and not named.path.is_file():
            if may_be_absent:
                yield NoStore()
                return
            raise ConfigError(f"{named}: there is no such file")
        # If its name is mistyped, the file may be anything. So unlike a proxy, a command leaves a damaged file alone.
        store = open_store(named, self.limit_bytes, time.time, redis_timeout_s=_REDIS_TIMEOUT_S, replaces_damaged=False)
        try:
            yield store
        finally:
            await store.aclose()


def with_store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that `StoreOptions.of` reads to a click command, which takes the context and ``**_``."""
    parameters = [BY_KEY[key].parameter() for key in _KEYS]
    parameters.append(CONFIG.parameter(**READS_CONFIG))
    command.__dict__.setdefault("__click_params__", []).extend(reversed(parameters))
    return command
