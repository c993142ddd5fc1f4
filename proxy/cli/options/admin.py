"""The admin port that a command asks: named by its URL, or by the options of the proxy that has it."""

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import click
from click.core import ParameterSource

from proxy.cli.options.config_flag import READS_CONFIG
from proxy.cli.options.table import BY_KEY, CONFIG
from proxy.protocol.hosts import UNIX_PREFIX

_KEYS = ("admin_host", "admin_port")
# Where a proxy can be reached that listens on all addresses.
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def admin_url_parameter(help_prefix: str = "") -> click.Option:
    """The option that `admin_url_of` prefers."""
    return click.Option(
        ["--admin-url"],
        metavar="URL",
        show_default="from --admin-host and --admin-port",
        help=f"{help_prefix}URL of the proxy's admin port, or unix:/path.",
    )


def with_admin_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that `admin_url_of` reads to a click command, which takes the context and ``**_``."""
    parameters = [admin_url_parameter(), *(BY_KEY[key].parameter() for key in _KEYS), CONFIG.parameter(**READS_CONFIG)]
    command.__dict__.setdefault("__click_params__", []).extend(reversed(parameters))
    return command


def admin_url_of(ctx: click.Context) -> str:
    """A URL, or ``unix:`` and a path. Raises `click.UsageError`."""
    if ctx.params["admin_url"] is not None:
        for key in _KEYS:
            if ctx.get_parameter_source(key) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--admin-url and {BY_KEY[key].flag}; accepted: one of them")
        return str(ctx.params["admin_url"])
    host, port = ctx.params["admin_host"], ctx.params["admin_port"]
    if host.startswith(UNIX_PREFIX):
        return str(host)
    if port == 0:
        raise click.UsageError(
            "--admin-port 0 lets the proxy choose a port; accepted: --admin-url with the URL that its banner shows"
        )
    return f"http://{_reachable(host)}:{port}"


def _reachable(host: str) -> str:
    """The host of a URL for an address to listen on."""
    if not host:
        return _LOOPBACK[4]
    try:
        address = ip_address(host)
    except ValueError:
        return host
    shown = _LOOPBACK[address.version] if address.is_unspecified else host
    return f"[{shown}]" if address.version == 6 else shown  # noqa: PLR2004 - as the literal says
