"""Options for the requests whose entries a command works on: the proxy's settings, and all but the requests' texts."""

import os
import re
from collections.abc import Callable
from typing import Any

import click
import orjson

from proxy.cli.options import environment
from proxy.cli.options.config_flag import READS_CONFIG, VARIABLES
from proxy.cli.options.proxy_settings import settings_of
from proxy.cli.options.table import CONFIG, OPTIONS
from proxy.config.models import is_utf8
from proxy.config.secrets import read_secret
from proxy.config.settings import Settings
from proxy.maintenance.identity import RequestForm

# The proxy's options that decide keys or the store. Its other options are hidden but accepted, because a file or the
# environment may be that of `serve`.
_SHOWN = {
    "upstream", "provider", "store", "store-limit", "ttl", "share", "key-headers", "neutral-headers",
    "upstream-key-env", "record-key-env",
}  # fmt: skip
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_OWN_FIELDS = {"model", "input"}


def with_request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that `request_settings`, `request_form` and `StoreOptions` read to a click command,
    which takes the context and ``**_``. It adds no option --model."""
    parameters = [
        *settings_parameters(),
        click.Option(
            ["--credential-env"],
            metavar="NAME",
            help="Env var holding the API key that the requests have, if each key has entries of its own.",
        ),
        click.Option(
            ["--field", "fields"],
            metavar="NAME=JSON",
            multiple=True,
            help="A further field of the requests' bodies, as dimensions=256. May be given several times.",
        ),
        click.Option(
            ["--header", "headers"],
            metavar="NAME:VALUE",
            multiple=True,
            help="A header field that all requests have. May be given several times.",
        ),
        click.Option(
            ["--path"],
            default="/v1/embeddings",
            show_default=True,
            help="The requests' path on the proxy. On Azure it has the deployment and the API version.",
        ),
    ]
    command.__dict__.setdefault("__click_params__", []).extend(reversed(parameters))
    return command


def settings_parameters() -> list[click.Option]:
    """The options of `serve`."""
    parameters = [option.parameter(hidden=option.name not in _SHOWN) for option in OPTIONS]
    return [*parameters, CONFIG.parameter(**READS_CONFIG)]


def request_settings(ctx: click.Context) -> Settings:
    """The settings of the proxy. Raises `ConfigError` and `click.UsageError`."""
    environment.forbid_unknown_variables(VARIABLES)
    return settings_of(ctx)


def request_form(ctx: click.Context, model: str) -> RequestForm:
    """Raises `ConfigError` and `click.UsageError`."""
    name = ctx.params["credential_env"]
    return RequestForm(
        model=model,
        credential=None if name is None else read_secret(name, os.environ, "--credential-env"),
        fields=dict(map(parse_field, ctx.params["fields"])),
        headers=tuple(map(parse_header, ctx.params["headers"])),
        path=ctx.params["path"],
    )


def parse_field(text: str) -> tuple[str, Any]:
    """A further field of a body. Raises `click.UsageError`."""
    name, equals, value = text.partition("=")
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        parsed = value  # a text without quotes
    if not equals or not name or name in _OWN_FIELDS or not is_utf8(text):
        raise click.UsageError(f"--field: {text!r} is not a field of the body; accepted: NAME=JSON, as dimensions=256")
    return name, parsed


def parse_header(text: str) -> tuple[str, str]:
    """Raises `click.UsageError`, without the value."""
    name, colon, value = text.partition(":")
    if not colon or not _NAME.fullmatch(name.strip()) or not value.isprintable():
        raise click.UsageError(f"--header: {name!r} is not a header field; accepted: NAME:VALUE")
    return name.strip(), value.strip()
