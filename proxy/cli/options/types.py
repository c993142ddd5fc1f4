"""The types of options: how a text becomes a value, and what is accepted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from proxy.config.cors_origins import parse_cors_origins
from proxy.config.header_names import parse_header_names, parse_neutral_headers
from proxy.config.models import parse_model
from proxy.config.paths import parse_file
from proxy.config.quantities import (
    parse_body_limit,
    parse_canary_interval,
    parse_duration,
    parse_held_limit,
    parse_overlap,
    parse_positive_seconds,
    parse_seconds,
    parse_size,
)
from proxy.config.scopes import parse_scope
from proxy.config.stores import parse_store, parse_store_limit
from proxy.errors import ConfigError
from proxy.upstream.egress import parse_proxy


class Parsed(click.ParamType[Any]):
    """The type of an option whose text a function of `proxy.config` parses; the function raises `ConfigError`."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):  # click converts a converted value once more
            return value
        try:
            return self._parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


PORT = click.IntRange(0, 65535)
COUNT = click.IntRange(1)
MODEL = Parsed("name", parse_model)
FILE: click.ParamType[Path] = click.Path(path_type=Path, dir_okay=False)
PEM_FILE = Parsed("file", parse_file)
SIZE = Parsed("size", parse_size)
BODY_LIMIT = Parsed("size", parse_body_limit)
HELD_LIMIT = Parsed("size", parse_held_limit)
STORE = Parsed("url", parse_store)
STORE_LIMIT = Parsed("size", parse_store_limit)
SECONDS = Parsed("duration", parse_seconds)
POSITIVE_SECONDS = Parsed("duration", parse_positive_seconds)
CANARY_INTERVAL = Parsed("duration", parse_canary_interval)
OVERLAP = Parsed("duration", parse_overlap)
TTL = Parsed("duration", parse_duration)
HEADER_NAMES = Parsed("names", parse_header_names)
NEUTRAL_HEADERS = Parsed("names", parse_neutral_headers)
ORIGINS = Parsed("origins", parse_cors_origins)
SCOPE = Parsed("fingerprint", parse_scope)
FORWARD_PROXY = Parsed("url", parse_proxy)
