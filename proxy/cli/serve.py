"""The command ``embedding-proxy serve``: its options as settings, and the processes that serve by them."""

import logging
import os
import sys
from functools import partial
from typing import Any

import click

from proxy.cli import banner
from proxy.cli.options import environment
from proxy.cli.options.config_flag import READS_CONFIG, VARIABLES
from proxy.cli.options.proxy_settings import settings_of
from proxy.cli.options.table import CONFIG, OPTIONS
from proxy.config.settings import Settings
from proxy.process import run
from proxy.process.supervisor import Supervisor
from proxy.telemetry import log

_log = logging.getLogger(__name__)

_PARAMETERS = [
    *(option.parameter() for option in OPTIONS),
    CONFIG.parameter(**READS_CONFIG),
]


@click.command(name="serve", params=_PARAMETERS)
@click.pass_context
def serve_command(ctx: click.Context, /, workers: int, **_: Any) -> int:
    """Run the proxy. Flags override environment variables, which override the file, which overrides the defaults."""
    environment.forbid_unknown_variables(VARIABLES)
    settings = settings_of(ctx)
    announce = partial(_announce, settings)
    if workers == 1:
        return run.run_proxy(settings, announce=lambda proxy: announce(proxy.base_url, proxy.admin_url))
    with log.logging_without_thread(settings.log_format):
        return Supervisor(settings, workers).run(announce)


def _announce(settings: Settings, base_url: str, admin_url: str) -> None:
    if settings.log_format == "json":
        if cost := banner.canary_cost(settings):
            _log.info("canary: %s", cost)
        _log.info(
            "serving %s, upstream %s, store %s, metrics %s/metrics",
            base_url,
            settings.upstream.base_url,
            settings.store,
            admin_url,
        )
        return
    try:
        click.echo(banner.text_of(settings, base_url, admin_url))
    except OSError as error:  # a full disk, or a reader that has left; the proxy serves nevertheless
        _log.warning("can't print the addresses: %s; serving %s, status %s/", error.strerror, base_url, admin_url)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # its last flush would fail too
